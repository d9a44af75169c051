//! The watches: what is kept of pods and nodes, and who is told of what they bring. What to make of it is decided elsewhere.

use std::collections::HashSet;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, PodStatus};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;

use super::fleet::{self, Fleet, Sight};
use super::metrics::ControllerMetrics;
use super::restarts_by_condition::Memory;
use crate::api::{CRD_MISSING, brief, is_forbidden, is_not_found};
use crate::authorship::mend;
use crate::resource::SandboxHealth;
use crate::sandbox_condition::READY_TO_START;
use crate::scope::{Selector, WatchPods, is_ready};
use crate::serve::Readiness;

/// Names of what is watched, in `/readyz`.
pub const PODS: &str = "pods";
/// The same.
pub const OBJECTS: &str = "SandboxHealth objects";
/// The same.
pub const NODES: &str = "nodes";

/// Objects of a page of a list. A pod has some 10 kB, so that a cluster of 20,000 is listed in 200 pages of 1 MB.
const PAGE: u32 = 100;

/// Which pods are looked at, and which are agents'.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Whose sandboxes are watched.
    pub watch_pods: WatchPods,
    /// Labels of agents' pods.
    pub agents: Selector,
    /// Labels of the nodes that are to have an agent.
    pub nodes: Selector,
    /// Namespace of agents' pods.
    pub namespace: String,
}

impl Scope {
    fn is_agent(&self, pod: &Pod) -> bool {
        pod.metadata.namespace.as_ref() == Some(&self.namespace) && self.agents.matches(&pod.metadata)
    }
}

/// The fleet and what is remembered of pods, filled by the watches; whoever reconciles asks it.
#[derive(Debug)]
pub struct Lookout {
    scope: Scope,
    fleet: Mutex<Fleet>,
    memory: Mutex<Memory>,
    known: watch::Sender<bool>,
    /// UIDs of agents in the list that is being received.
    listed: Mutex<HashSet<String>>,
    pods: Store<Pod>,
    /// Pods that must be looked at again.
    again: UnboundedSender<ObjectRef<Pod>>,
}

impl Lookout {
    /// It knows nothing yet.
    #[must_use]
    pub fn new(scope: Scope, pods: Store<Pod>, again: UnboundedSender<ObjectRef<Pod>>) -> Self {
        Self {
            scope,
            fleet: Mutex::default(),
            memory: Mutex::default(),
            known: watch::Sender::new(false),
            listed: Mutex::default(),
            pods,
            again,
        }
    }

    /// Waits until all agents and nodes are known.
    pub async fn wait_until_known(&self) {
        // It cannot fail: the sender is ours.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Whether somebody sees the sandboxes of the node.
    #[must_use]
    pub fn sight(&self, node: &str) -> Sight {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner).sight(node)
    }

    /// UID of the node.
    #[must_use]
    pub fn node_uid(&self, node: &str) -> Option<String> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner).node_uid(node).map(str::to_owned)
    }

    /// Shows who sees which node, once that is known.
    pub fn show(&self, metrics: &ControllerMetrics) {
        let fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        if fleet.is_known() {
            metrics.set_sights(fleet.sights());
        }
    }

    /// Whose sandboxes are watched.
    #[must_use]
    pub fn watch_pods(&self) -> WatchPods {
        self.scope.watch_pods
    }

    /// What is remembered of pods, for as long as `asked` takes.
    pub fn remembered<T>(&self, asked: impl FnOnce(&mut Memory) -> T) -> T {
        asked(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the pod is one that is looked after.
    #[must_use]
    pub fn keeps(&self, pod: &ObjectRef<Pod>) -> bool {
        self.pods.get(pod).is_some()
    }

    /// Has a pod looked at again.
    pub fn look_again(&self, pod: ObjectRef<Pod>) {
        // Nobody listens any more when this replica has lost the lease.
        let _ = self.again.unbounded_send(pod);
    }

    /// Has every pod looked at again.
    fn look_at_all(&self) {
        for pod in self.pods.state() {
            self.look_again(ObjectRef::from_obj(&*pod));
        }
    }

    /// Takes in what changed, and what time made count: the pods of nodes whose sight is another one are looked at again.
    pub fn settle(&self, now: Timestamp) {
        let (changed, known) = {
            let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
            (fleet.settle(now), fleet.is_known())
        };
        self.known.send_if_modified(|before| std::mem::replace(before, known) != known);
        if changed.is_empty() {
            return;
        }
        let changed: HashSet<_> = changed.into_iter().collect();
        for pod in self.pods.state() {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            if node.is_some_and(|node| changed.contains(node)) {
                self.look_again(ObjectRef::from_obj(&*pod));
            }
        }
    }

    pub(super) fn pods_changed(&self, event: &watcher::Event<Pod>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match event {
            Init => self.agents_listed().clear(),
            InitApply(pod) | Apply(pod) => {
                self.remembered(|memory| memory.watched(pod));
                if self.scope.is_agent(pod) {
                    if matches!(event, InitApply(_)) {
                        self.agents_listed().extend(pod.metadata.uid.clone());
                    }
                    self.agent_applied(pod);
                }
            }
            Delete(pod) => {
                self.remembered(|memory| memory.forget(pod.metadata.uid.as_deref().unwrap_or_default()));
                if let Some((node, uid)) = node_and_uid(pod).filter(|_| self.scope.is_agent(pod)) {
                    self.fleet.lock().unwrap_or_else(PoisonError::into_inner).agent_deleted(node, uid);
                }
            }
            InitDone => {
                let listed = std::mem::take(&mut *self.agents_listed());
                self.fleet.lock().unwrap_or_else(PoisonError::into_inner).agents_listed(&listed);
            }
        }
        if matches!(event, Apply(pod) | Delete(pod) if self.scope.is_agent(pod)) || matches!(event, InitDone)
        {
            self.settle(Timestamp::now());
        }
    }

    fn agents_listed(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent_applied(&self, pod: &Pod) {
        let Some((node, uid)) = node_and_uid(pod) else { return };
        let ready = is_ready(pod);
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner).agent_applied(node, uid, ready);
    }

    pub(super) fn nodes_changed(&self, event: &watcher::Event<Node>, listed: &mut HashSet<String>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Init => listed.clear(),
            InitApply(node) | Apply(node) => {
                if matches!(event, InitApply(_)) {
                    listed.insert(node.name_any());
                }
                fleet.node_applied(
                    &node.name_any(),
                    fleet::Node {
                        uid: node.metadata.uid.clone().unwrap_or_default(),
                        ready: is_ready_node(node),
                        wants_agent: self.scope.nodes.matches(&node.metadata),
                    },
                );
            }
            Delete(node) => fleet.node_deleted(&node.name_any()),
            InitDone => fleet.nodes_listed(&std::mem::take(listed)),
        }
        drop(fleet);
        if !matches!(event, Init | InitApply(_)) {
            self.settle(Timestamp::now());
        }
    }
}

fn node_and_uid(pod: &Pod) -> Option<(&str, &str)> {
    Some((pod.spec.as_ref()?.node_name.as_deref()?, pod.metadata.uid.as_deref()?))
}

fn is_ready_node(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|has| has.type_ == "Ready" && has.status == "True")
}

/// Changed pods that concern us. All pods are watched, and the lookout sees each.
pub fn pods(
    client: Client,
    lookout: Arc<Lookout>,
    readiness: Arc<Readiness>,
    writer: Writer<Pod>,
) -> impl Stream<Item = watcher::Result<Pod>> {
    let events = watcher(Api::<Pod>::all(client), in_pages()).default_backoff();
    let watch_pods = lookout.watch_pods();
    let seen = lookout.clone();
    let kept = told(events, PODS, readiness)
        .inspect_ok(move |event| seen.pods_changed(event))
        .try_filter(move |event| ready(concerns_us(watch_pods, event)))
        .modify(keep_little)
        .reflect(writer);
    changed(kept, lookout)
}

/// Changed and deleted objects.
pub fn objects(
    client: Client,
    lookout: Arc<Lookout>,
    readiness: Arc<Readiness>,
    writer: Writer<DeserializeGuard<SandboxHealth>>,
) -> impl Stream<Item = watcher::Result<DeserializeGuard<SandboxHealth>>> {
    let api: Api<DeserializeGuard<SandboxHealth>> = Api::all(client);
    let events = watcher(api, in_pages()).default_backoff();
    let kept = told(events, OBJECTS, readiness).modify(keep_ours).reflect(writer);
    changed(kept, lookout)
}

/// What somebody else wrote into a row is not judged, nor told of.
pub(super) fn keep_ours(object: &mut DeserializeGuard<SandboxHealth>) {
    match &mut object.0 {
        Ok(object) => mend(object),
        Err(invalid) => invalid.metadata.managed_fields = None,
    }
}

/// What changed or went, one by one. What a list brings is kept only once the list is complete, and what it lacks is told by
/// nothing: then every pod is looked at.
fn changed<K>(
    kept: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    lookout: Arc<Lookout>,
) -> impl Stream<Item = watcher::Result<K>> {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    kept.filter_map(move |event| {
        ready(match event {
            Ok(Apply(object) | Delete(object)) => Some(Ok(object)),
            Ok(InitDone) => {
                lookout.look_at_all();
                None
            }
            Ok(Init | InitApply(_)) => None,
            Err(error) => Some(Err(error)),
        })
    })
}

/// Watches nodes for the lookout, for ever.
pub async fn nodes(client: Client, lookout: Arc<Lookout>, readiness: Arc<Readiness>) {
    let events = watcher(Api::<Node>::all(client), in_pages()).default_backoff();
    let mut listed = HashSet::new();
    told(events, NODES, readiness)
        .for_each(|event| {
            if let Ok(event) = event {
                lookout.nodes_changed(&event, &mut listed);
            }
            ready(())
        })
        .await;
}

/// What is listed comes in pages: one of them is in memory as a whole, as text and as objects.
fn in_pages() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// Passes a watch through, and tells `readiness` whether its objects are known.
fn told<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    part: &'static str,
    readiness: Arc<Readiness>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> {
    readiness.expect(part);
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    events.inspect(move |event| match event {
        Ok(InitDone | Apply(_) | Delete(_)) => readiness.done(part),
        Ok(Init | InitApply(_)) => {}
        // A watch that was once started goes on trying when the CRD is deleted.
        Err(InitialListFailed(error) | WatchStartFailed(error)) if is_not_found(error) => {
            readiness.pending(part, CRD_MISSING);
        }
        Err(InitialListFailed(error)) => {
            readiness.pending(part, format!("cannot be listed: {}", brief(error)))
        }
        // It was listed, and no change would be seen.
        Err(WatchStartFailed(error)) if is_forbidden(error) => {
            readiness.pending(part, format!("cannot be watched: {}", brief(error)))
        }
        Err(_) => {}
    })
}

fn concerns_us(watch_pods: WatchPods, event: &watcher::Event<Pod>) -> bool {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    match event {
        Apply(pod) | InitApply(pod) => watch_pods.watched(pod).is_some(),
        Delete(_) | Init | InitDone => true,
    }
}

/// Of a pod that is watched some 3 kB are kept, most of it the empty fields of its type; of others nothing. A cluster has many.
fn keep_little(pod: &mut Pod) {
    let metadata = std::mem::take(&mut pod.metadata);
    pod.metadata.name = metadata.name;
    pod.metadata.namespace = metadata.namespace;
    pod.metadata.uid = metadata.uid;
    pod.metadata.resource_version = metadata.resource_version;
    pod.metadata.deletion_timestamp = metadata.deletion_timestamp;
    pod.metadata.deletion_grace_period_seconds = metadata.deletion_grace_period_seconds;
    let (node_name, share_process_namespace) =
        pod.spec.take().map(|spec| (spec.node_name, spec.share_process_namespace)).unwrap_or_default();
    pod.spec = Some(PodSpec { node_name, share_process_namespace, ..PodSpec::default() });
    let status = pod.status.take().unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| condition.type_ == READY_TO_START);
    conditions.shrink_to_fit();
    pod.status =
        Some(PodStatus { phase: status.phase, conditions: Some(conditions), ..PodStatus::default() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fleet::Blindness;
    use crate::serve::Metrics as _;
    use futures::channel::mpsc;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::runtime::reflector;
    use serde_json::{Value, json};

    fn pod(name: &str, namespace: &str, labels: &Value, spec: &Value) -> Pod {
        let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": "2027-01-15T08:00:00Z"});
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("u-{name}"), "labels": labels, "annotations": {"a": "b"}},
            "spec": spec,
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [condition("Ready"), condition(READY_TO_START)]},
        }))
        .unwrap()
    }

    fn agent() -> Pod {
        pod(
            "agent",
            "ops",
            &json!({"component": "agent"}),
            &json!({"nodeName": "n", "hostPID": true, "containers": []}),
        )
    }

    fn web() -> Pod {
        let spec = json!({"nodeName": "n", "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]});
        pod("web", "shop", &json!({"app": "web"}), &spec)
    }

    fn node(status: &str) -> Node {
        let condition = json!({"type": "Ready", "status": status});
        serde_json::from_value(
            json!({"metadata": {"name": "n", "uid": "n-1", "labels": {"os": "linux"}}, "status": {"conditions": [condition]}}),
        )
        .unwrap()
    }

    fn scope() -> Scope {
        Scope {
            watch_pods: WatchPods::SharedPidNamespace,
            agents: "component=agent".parse().unwrap(),
            nodes: "os=linux".parse().unwrap(),
            namespace: "ops".to_owned(),
        }
    }

    fn feed<K>(events: impl IntoIterator<Item = watcher::Event<K>>, mut to: impl FnMut(&watcher::Event<K>)) {
        events.into_iter().for_each(|event| to(&event));
    }

    #[test]
    fn little_is_kept_of_a_pod_and_that_is_what_decisions_need() {
        let mut kept = web();
        kept.metadata.deletion_timestamp = Some(Time("2027-01-15T09:00:00Z".parse().unwrap()));
        kept.metadata.deletion_grace_period_seconds = Some(3600);
        keep_little(&mut kept);
        let kept = serde_json::to_value(kept).unwrap();
        let metadata = json!({
            "name": "web", "namespace": "shop", "uid": "u-web",
            "deletionTimestamp": "2027-01-15T09:00:00Z", "deletionGracePeriodSeconds": 3600,
        });
        assert_eq!(kept["metadata"], metadata);
        assert_eq!(kept["spec"], json!({"nodeName": "n", "shareProcessNamespace": true, "containers": []}));
        assert_eq!(kept["status"]["conditions"][0]["type"], READY_TO_START);
        assert_eq!(kept["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(kept["status"]["phase"], "Running");
    }

    #[test]
    fn an_agent_is_known_by_its_labels_and_its_namespace() {
        assert!(scope().is_agent(&agent()));
        let mut posing = agent();
        posing.metadata.namespace = Some("shop".to_owned());
        assert!(!scope().is_agent(&posing) && !scope().is_agent(&web()));
    }

    #[test]
    fn what_changes_between_lists_is_not_kept_for_the_next() {
        use watcher::Event::Apply;
        let lookout = Lookout::new(scope(), reflector::store().0, mpsc::unbounded().0);
        let mut nodes = HashSet::new();
        feed([Apply(agent())], |event| lookout.pods_changed(event));
        feed([Apply(node("True"))], |event| lookout.nodes_changed(event, &mut nodes));
        assert!(lookout.agents_listed().is_empty() && nodes.is_empty());
    }

    #[tokio::test]
    async fn what_a_list_brings_is_looked_at_when_all_of_it_is_known() {
        use watcher::Event::{Apply, Init, InitApply, InitDone};
        let (pods, mut writer) = reflector::store();
        feed([Init, InitApply(web()), InitDone], |event| writer.apply_watcher_event(event));
        let (again, mut asked) = mpsc::unbounded();
        let lookout = Arc::new(Lookout::new(scope(), pods.clone(), again));
        let mut asked_for =
            move || std::iter::from_fn(|| asked.try_recv().ok()).map(|pod| pod.name).collect::<Vec<_>>();
        let new = pod("new", "shop", &json!({}), &json!({"containers": []}));
        let events = [Init, InitApply(web()), InitApply(new), InitDone, Apply(web())].map(Ok);
        let mut changes =
            std::pin::pin!(changed(futures::stream::iter(events).reflect(writer), lookout.clone()));
        assert_eq!(
            changes.next().await.unwrap().unwrap().name_any(),
            "web",
            "the one that changed after the list"
        );
        let mut names = asked_for();
        names.sort();
        assert_eq!(names, ["new", "web"]);
        let keeps = |name| lookout.keeps(&ObjectRef::new(name).within("shop"));
        assert!(keeps("new") && keeps("web") && !keeps("gone"));
    }

    #[test]
    fn a_node_that_is_to_have_no_agent_misses_none() {
        use watcher::Event::{Apply, Init, InitApply, InitDone};
        let lookout = Lookout::new(scope(), reflector::store().0, mpsc::unbounded().0);
        feed([Init, InitDone], |event| lookout.pods_changed(event));
        let mut other = node("True");
        other.metadata.labels = Some([("os".to_owned(), "windows".to_owned())].into());
        let mut listed = HashSet::new();
        feed([Init, InitApply(other), InitDone], |event| lookout.nodes_changed(event, &mut listed));
        let metrics = ControllerMetrics::default();
        let missed = || {
            lookout.settle(Timestamp::now() + super::super::fleet::GRACE);
            lookout.show(&metrics);
            metrics.render().unwrap().contains("reason=\"AgentMissing\"} 1")
        };
        assert!(!missed());
        feed([Apply(node("True"))], |event| lookout.nodes_changed(event, &mut listed));
        assert!(missed(), "it has the label now");
    }

    #[test]
    fn the_pods_of_a_node_that_is_out_of_sight_are_looked_at_again() {
        use watcher::Event::{Delete, Init, InitApply, InitDone};
        let (pods, mut writer) = reflector::store();
        let (again, mut asked) = mpsc::unbounded();
        let lookout = Lookout::new(scope(), pods, again);
        feed([Init, InitApply(web()), InitApply(agent()), InitDone], |event| {
            writer.apply_watcher_event(event);
            lookout.pods_changed(event);
        });
        assert!(!*lookout.known.borrow(), "the nodes are not known yet");
        let mut listed = HashSet::new();
        feed([Init, InitApply(node("True")), InitDone], |event| lookout.nodes_changed(event, &mut listed));
        assert!(*lookout.known.borrow());
        assert_eq!((lookout.sight("n"), lookout.node_uid("n").as_deref()), (Sight::Seen, Some("n-1")));
        feed([Delete(agent())], |event| lookout.pods_changed(event));
        assert_eq!(lookout.sight("n"), Sight::Unsettled);
        while asked.try_recv().is_ok() {}
        lookout.settle(Timestamp::now() + super::super::fleet::GRACE);
        assert_eq!(lookout.sight("n"), Sight::Blind(Blindness::AgentMissing));
        let names: Vec<_> = std::iter::from_fn(|| asked.try_recv().ok()).map(|pod| pod.name).collect();
        assert!(names.contains(&"web".to_owned()), "{names:?}");
    }
}
