//! The watches: what they bring is taken in, and pods that it concerns are looked at again. What is kept of a pod, and what to
//! make of it, is decided elsewhere.

use std::collections::HashSet;
use std::future::ready;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::sync::watch;

use super::fleet::{self, Fleet, Sight};
use super::metrics::ControllerMetrics;
use super::pods::{KeptPod, PodKey, Pods};
use super::restarts_by_condition::Memory;
use crate::api::{CRD_MISSING, brief, is_forbidden, is_not_found};
use crate::authorship::mend;
use crate::resource::SandboxHealth;
use crate::sandbox_condition::KubeletSaid;
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

/// The pods, what is remembered of them, and the fleet, filled by the watches; whoever reconciles asks it.
#[derive(Debug)]
pub struct Lookout {
    scope: Scope,
    fleet: Mutex<Fleet>,
    memory: Mutex<Memory>,
    /// Whether objects were listed.
    objects_listed: AtomicBool,
    /// Whether all of that is known.
    known: watch::Sender<bool>,
    /// UIDs of agents in the list that is being received.
    agents_listed: Mutex<HashSet<String>>,
    /// The pods that are looked after.
    pods: Mutex<Pods>,
    /// Pods that must be looked at again.
    again: UnboundedSender<PodKey>,
}

impl Lookout {
    /// It knows nothing yet.
    #[must_use]
    pub fn new(scope: Scope, again: UnboundedSender<PodKey>) -> Self {
        Self {
            scope,
            fleet: Mutex::default(),
            memory: Mutex::default(),
            objects_listed: AtomicBool::new(false),
            known: watch::Sender::new(false),
            agents_listed: Mutex::default(),
            pods: Mutex::default(),
            again,
        }
    }

    /// Waits until pods, agents, nodes and objects are known. Many may wait: to wait for the store of objects is for one alone, as kube
    /// wakes up the last who asked.
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

    /// The pod of this name, if it is one that is looked after.
    #[must_use]
    pub fn pod(&self, key: &PodKey) -> Option<Arc<KeptPod>> {
        self.pods().get(key)
    }

    /// Has a pod looked at again.
    pub fn look_again(&self, pod: PodKey) {
        // Nobody listens any more when this replica has lost the lease.
        let _ = self.again.unbounded_send(pod);
    }

    /// Has all of these pods looked at again.
    fn look_again_at(&self, which: impl Fn(&KeptPod) -> bool) {
        for pod in self.pods().iter().filter(|pod| which(pod)) {
            self.look_again(pod.key.clone());
        }
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what changed, and what time made count: the pods of nodes whose sight is another one are looked at again.
    pub fn settle(&self, now: Timestamp) {
        let (changed, known) = {
            let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
            (fleet.settle(now), fleet.is_known() && self.objects_listed.load(Ordering::Relaxed))
        };
        self.known.send_if_modified(|before| std::mem::replace(before, known) != known);
        if changed.is_empty() {
            return;
        }
        let changed: HashSet<_> = changed.into_iter().collect();
        self.look_again_at(|pod| changed.contains(&*pod.node));
    }

    pub(super) fn pods_changed(&self, event: &watcher::Event<Pod>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let kept = self.pods().take_in(event, self.scope.watch_pods);
        match event {
            Init => self.agents_listed().clear(),
            InitApply(pod) | Apply(pod) => {
                if let Some(kept) = &kept {
                    self.remembered(|memory| memory.watched(&kept.uid, KubeletSaid::of(pod)));
                }
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
                self.look_again_at(|_| true);
            }
        }
        if let Some(pod) = kept.filter(|_| matches!(event, Apply(_) | Delete(_))) {
            self.look_again(pod.key.clone());
        }
        if matches!(event, Apply(pod) | Delete(pod) if self.scope.is_agent(pod)) || matches!(event, InitDone)
        {
            self.settle(Timestamp::now());
        }
    }

    fn agents_listed(&self) -> MutexGuard<'_, HashSet<String>> {
        self.agents_listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent_applied(&self, pod: &Pod) {
        let Some((node, uid)) = node_and_uid(pod) else { return };
        let ready = is_ready(pod);
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner).agent_applied(node, uid, ready);
    }

    pub(super) fn objects_changed(
        &self,
        mut event: watcher::Event<DeserializeGuard<SandboxHealth>>,
        writer: &mut Writer<DeserializeGuard<SandboxHealth>>,
    ) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        if let Apply(object) | InitApply(object) | Delete(object) = &mut event {
            keep_ours(object);
        }
        writer.apply_watcher_event(&event);
        match event {
            Apply(object) | Delete(object) => self.look_again(PodKey::of(object.meta())),
            // What the list lacks is told by nothing else.
            InitDone => {
                self.objects_listed.store(true, Ordering::Relaxed);
                self.look_again_at(|_| true);
                self.settle(Timestamp::now());
            }
            Init | InitApply(_) => {}
        }
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

/// Watches all pods for the lookout, for ever.
pub async fn pods(client: Client, lookout: Arc<Lookout>, readiness: Arc<Readiness>) {
    let events = watcher(Api::<Pod>::all(client), in_pages()).default_backoff();
    let mut events = pin!(told(events, PODS, readiness));
    while let Some(event) = events.next().await {
        lookout.pods_changed(&event);
    }
}

/// Watches SandboxHealth objects, for ever: the pod of one that changed or is gone is looked at again.
pub async fn objects(
    client: Client,
    lookout: Arc<Lookout>,
    readiness: Arc<Readiness>,
    mut writer: Writer<DeserializeGuard<SandboxHealth>>,
) {
    let api: Api<DeserializeGuard<SandboxHealth>> = Api::all(client);
    let events = watcher(api, in_pages()).default_backoff();
    let mut events = pin!(told(events, OBJECTS, readiness));
    while let Some(event) = events.next().await {
        lookout.objects_changed(event, &mut writer);
    }
}

/// What somebody else wrote into a row is not judged, nor told of.
pub(super) fn keep_ours(object: &mut DeserializeGuard<SandboxHealth>) {
    match &mut object.0 {
        Ok(object) => mend(object),
        Err(invalid) => invalid.metadata.managed_fields = None,
    }
}

/// Watches nodes for the lookout, for ever.
pub async fn nodes(client: Client, lookout: Arc<Lookout>, readiness: Arc<Readiness>) {
    let events = watcher(Api::<Node>::all(client), in_pages()).default_backoff();
    let mut listed = HashSet::new();
    let mut events = pin!(told(events, NODES, readiness));
    while let Some(event) = events.next().await {
        lookout.nodes_changed(&event, &mut listed);
    }
}

/// What is listed comes in pages: one of them is in memory as a whole, as text and as objects.
fn in_pages() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// What a watch brings. Tells `readiness` whether its objects are known; what fails is tried again by the watch itself.
fn told<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    part: &'static str,
    readiness: Arc<Readiness>,
) -> impl Stream<Item = watcher::Event<K>> {
    readiness.expect(part);
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    events.filter_map(move |event| {
        match &event {
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
        }
        ready(event.inspect_err(|error| tracing::debug!(part, %error, "the watch failed")).ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fleet::Blindness;
    use crate::sandbox_condition::READY_TO_START;
    use crate::serve::Metrics as _;
    use futures::channel::mpsc;
    use kube::runtime::reflector;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

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

    fn web(name: &str) -> Pod {
        let spec = json!({"nodeName": "n", "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]});
        pod(name, "shop", &json!({"app": "web"}), &spec)
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
    fn an_agent_is_known_by_its_labels_and_its_namespace() {
        assert!(scope().is_agent(&agent()));
        let mut posing = agent();
        posing.metadata.namespace = Some("shop".to_owned());
        assert!(!scope().is_agent(&posing) && !scope().is_agent(&web("web")));
    }

    #[test]
    fn what_changes_between_lists_is_not_kept_for_the_next() {
        use watcher::Event::Apply;
        let lookout = Lookout::new(scope(), mpsc::unbounded().0);
        let mut nodes = HashSet::new();
        feed([Apply(agent())], |event| lookout.pods_changed(event));
        feed([Apply(node("True"))], |event| lookout.nodes_changed(event, &mut nodes));
        assert!(lookout.agents_listed().is_empty() && nodes.is_empty());
    }

    /// The names of the pods that are to be looked at, each once.
    fn asked_for(asked: &mut mpsc::UnboundedReceiver<PodKey>) -> Vec<String> {
        let names: BTreeSet<_> = std::iter::from_fn(|| asked.try_recv().ok()).collect();
        names.iter().map(PodKey::to_string).collect()
    }

    #[test]
    fn what_a_list_of_pods_brings_is_looked_at_when_all_of_it_is_known() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let (again, mut asked) = mpsc::unbounded();
        let lookout = Lookout::new(scope(), again);
        let mut asked_after = |event: watcher::Event<Pod>| {
            lookout.pods_changed(&event);
            asked_for(&mut asked)
        };
        let not_watched = pod("own", "shop", &json!({}), &json!({"nodeName": "n", "containers": []}));
        for event in [Init, InitApply(web("web")), InitApply(web("new")), InitApply(not_watched.clone())] {
            assert!(asked_after(event).is_empty());
        }
        assert_eq!(asked_after(InitDone), ["shop/new", "shop/web"]);
        assert_eq!(asked_after(Apply(web("web"))), ["shop/web"]);
        assert!(asked_after(Apply(not_watched)).is_empty());
        assert_eq!(asked_after(Delete(web("web"))), ["shop/web"], "it is not to wait in the queue any more");
        assert!(asked_after(Delete(web("web"))).is_empty());
        let keeps = |name| lookout.pod(&PodKey::new("shop", name)).is_some();
        assert!(keeps("new") && !keeps("web") && !keeps("own"));
    }

    #[test]
    fn the_pods_of_rows_that_changed_or_that_a_list_lacks_are_looked_at_again() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let (again, mut asked) = mpsc::unbounded();
        let lookout = Lookout::new(scope(), again);
        feed([Apply(web("web")), Apply(web("other"))], |event| lookout.pods_changed(event));
        asked_for(&mut asked);
        let (rows, mut writer) = reflector::store();
        let mut asked_after = |event| {
            lookout.objects_changed(event, &mut writer);
            (asked_for(&mut asked), rows.len())
        };
        let row = |name: &str| DeserializeGuard(Ok(SandboxHealth::of_pod("shop", name, "u", "n")));
        let names = |names: &[&str]| names.iter().map(|name| format!("shop/{name}")).collect::<Vec<_>>();
        assert_eq!(asked_after(Init), (vec![], 0));
        assert_eq!(asked_after(InitApply(row("web"))), (vec![], 0));
        assert_eq!(asked_after(InitDone), (names(&["other", "web"]), 1));
        assert_eq!(asked_after(Apply(row("other"))), (names(&["other"]), 2));
        assert_eq!(asked_after(Delete(row("web"))), (names(&["web"]), 1));
        assert_eq!(asked_after(Init), (vec![], 1));
        assert_eq!(asked_after(InitDone), (names(&["other", "web"]), 0));
    }

    #[test]
    fn what_the_kubelet_said_is_remembered_of_pods_that_are_watched() {
        use watcher::Event::{Apply, Delete};
        let lookout = Lookout::new(scope(), mpsc::unbounded().0);
        let said = |name: &str| lookout.remembered(|memory| memory.said(&format!("u-{name}")));
        let gone = |mut pod: Pod| {
            let conditions = json!([{"type": READY_TO_START, "status": "False", "lastTransitionTime": "2027-01-15T08:00:00Z", "message": "it was killed"}]);
            pod.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
            pod
        };
        feed([Apply(gone(web("web"))), Apply(gone(agent()))], |event| lookout.pods_changed(event));
        assert_eq!(said("web").unwrap().message, "it was killed");
        assert_eq!(said("agent"), None);
        feed([Apply(web("web"))], |event| lookout.pods_changed(event));
        assert!(said("web").is_some(), "the phase without a sandbox lasts a moment");
        feed([Delete(web("web"))], |event| lookout.pods_changed(event));
        assert_eq!(said("web"), None);
    }

    #[test]
    fn a_node_that_is_to_have_no_agent_misses_none() {
        use watcher::Event::{Apply, Init, InitApply, InitDone};
        let lookout = Lookout::new(scope(), mpsc::unbounded().0);
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
        let (again, mut asked) = mpsc::unbounded();
        let lookout = Lookout::new(scope(), again);
        let mut elsewhere = web("elsewhere");
        elsewhere.spec.as_mut().unwrap().node_name = Some("other".to_owned());
        let pods = [web("web"), elsewhere, agent()].map(InitApply);
        feed([Init].into_iter().chain(pods).chain([InitDone]), |event| lookout.pods_changed(event));
        assert!(!*lookout.known.borrow(), "the nodes are not known yet");
        let mut listed = HashSet::new();
        feed([Init, InitApply(node("True")), InitDone], |event| lookout.nodes_changed(event, &mut listed));
        assert!(!*lookout.known.borrow(), "the objects are not known yet");
        lookout.objects_changed(watcher::Event::InitDone, &mut reflector::store().1);
        assert!(*lookout.known.borrow());
        assert_eq!((lookout.sight("n"), lookout.node_uid("n").as_deref()), (Sight::Seen, Some("n-1")));
        feed([Delete(agent())], |event| lookout.pods_changed(event));
        assert_eq!(lookout.sight("n"), Sight::Unsettled);
        asked_for(&mut asked);
        lookout.settle(Timestamp::now() + super::super::fleet::GRACE);
        assert_eq!(lookout.sight("n"), Sight::Blind(Blindness::AgentMissing));
        assert_eq!(asked_for(&mut asked), ["shop/web"]);
    }
}
