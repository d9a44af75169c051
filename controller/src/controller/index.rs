//! The caches: observed pods, SandboxHealth objects, nodes, agent pods and their DaemonSet, and where pauses are installed the Leases of
//! their installers, each filled by a watch (kube's reflector).
//! A change requeues the pods that it concerns. `core` decides what to do with a pod.

#[cfg(test)]
pub(super) mod fake;

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::future::OptionFuture;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, Resource, ResourceExt as _};
use tokio::time::Instant;

use super::ControllerOptions;
use super::agents::Agents;
use super::metrics::ControllerMetrics;
use crate::core::conditions::{AgentState, UnavailableReason};
use crate::health::Readiness;
use crate::k8s::node::LeanNode;
use crate::k8s::pod::{LeanPod, PidNamespaces};
use crate::k8s::watch::{GuardedObject, prune, watch};

/// Page size of lists. A pod has some 10 kB of JSON: one page at a time is in memory.
const PAGE_SIZE: u32 = 100;

pub struct Index {
    options: ControllerOptions,
    /// Observed pods.
    pub pods: Store<LeanPod>,
    /// All SandboxHealth objects.
    pub objects: Store<GuardedObject>,
    nodes: Store<LeanNode>,
    agent_pods: Store<LeanPod>,
    /// The agents' DaemonSet, or none.
    daemon_sets: Store<DaemonSet>,
    /// All Leases of the namespace, those of the pause installers among them.
    pub leases: Store<Lease>,
    agents: Mutex<Agents>,
    queue: Mutex<Option<UnboundedSender<ObjectRef<LeanPod>>>>,
}

/// The writers of the caches.
#[derive(Default)]
pub struct Writers {
    pods: Writer<LeanPod>,
    objects: Writer<GuardedObject>,
    nodes: Writer<LeanNode>,
    agent_pods: Writer<LeanPod>,
    daemon_sets: Writer<DaemonSet>,
    leases: Writer<Lease>,
}

impl Index {
    pub fn new(options: &ControllerOptions) -> (Arc<Self>, Writers) {
        let writers = Writers::default();
        let index = Self {
            options: options.clone(),
            pods: writers.pods.as_reader(),
            objects: writers.objects.as_reader(),
            nodes: writers.nodes.as_reader(),
            agent_pods: writers.agent_pods.as_reader(),
            daemon_sets: writers.daemon_sets.as_reader(),
            leases: writers.leases.as_reader(),
            agents: Mutex::default(),
            queue: Mutex::default(),
        };
        (Arc::new(index), writers)
    }

    /// Waits until all caches but that of Leases are complete. An error means a dropped writer; writers last as long as the process.
    pub async fn wait_until_synced(&self) {
        let _ = tokio::join!(
            self.pods.wait_until_ready(),
            self.objects.wait_until_ready(),
            self.nodes.wait_until_ready(),
            self.daemon_sets.wait_until_ready(),
        );
    }

    /// The pods to reconcile from now on, all of them first.
    pub fn queue(&self) -> UnboundedReceiver<ObjectRef<LeanPod>> {
        let (sender, receiver) = unbounded();
        *locked(&self.queue) = Some(sender);
        self.requeue(|_| true);
        receiver
    }

    /// The PID namespaces of a pod, or none if it is not observed.
    pub fn watched(&self, pod: &LeanPod) -> Option<PidNamespaces> {
        pod.watched(&self.options.watch)
    }

    pub fn object(&self, pod: &LeanPod) -> Option<Arc<GuardedObject>> {
        self.objects.get(&ObjectRef::new(pod.name()).within(pod.namespace()))
    }

    pub fn pod(&self, object: &impl Resource) -> Option<Arc<LeanPod>> {
        self.pods.get(&pod_of(object))
    }

    pub fn agent_state(&self, node: &str) -> AgentState {
        locked(&self.agents).state(node)
    }

    /// Updates the agents' states. Pods of nodes whose state changed are requeued.
    pub fn update_agents(&self, now: Instant) {
        let (nodes, agent_pods) = (self.nodes.state(), self.agent_pods.state());
        let (nodes, agent_pods) = (nodes.iter().map(|it| &**it), agent_pods.iter().map(|it| &**it));
        let changed = locked(&self.agents).update(nodes, agent_pods, now);
        if !changed.is_empty() {
            self.requeue(|pod| changed.contains(&*pod.node));
        }
    }

    pub fn export_agents(&self, metrics: &ControllerMetrics) {
        let desired = self.daemon_sets.state().pop().map(|daemon_set| desired_agents(&daemon_set));
        let agents = locked(&self.agents);
        metrics.set_agents(agents.present(), agents.missing(desired));
        metrics.set_agent_creation_failing(agents.creation_error.is_some());
    }

    /// The agents' DaemonSet, if nodes lack an agent pod that it wants.
    pub fn incomplete_daemon_set(&self) -> Option<Arc<DaemonSet>> {
        let present = locked(&self.agents).present().count();
        self.daemon_sets.state().pop().filter(|daemon_set| present < desired_agents(daemon_set))
    }

    pub fn creation_error(&self) -> Option<String> {
        locked(&self.agents).creation_error.clone()
    }

    /// Sets why agents cannot be created. If that is news, the pods of nodes without an agent are requeued.
    pub fn set_creation_error(&self, error: Option<String>) {
        let before = std::mem::replace(&mut locked(&self.agents).creation_error, error.clone());
        if error == before {
            return;
        }
        match error {
            Some(error) => tracing::warn!(error, "agents cannot be created"),
            None => tracing::info!("agents can be created"),
        }
        let missing = AgentState::Unavailable(UnavailableReason::AgentMissing);
        self.requeue(|pod| self.agent_state(&pod.node) == missing);
    }

    pub async fn watch(&self, client: Client, writers: Writers, readiness: Arc<Readiness>) {
        let Writers { mut pods, mut objects, mut nodes, mut agent_pods, mut daemon_sets, mut leases } =
            writers;
        let pages = || Config::default().page_size(PAGE_SIZE);
        // Few objects: from the watch cache, and in one piece, since pages bypass the cache.
        let few = || Config { page_size: None, ..Config::default().any_semantic() };
        let own = few().fields(&format!("metadata.name={}", self.options.agent_daemonset));
        let namespace = &self.options.lease_namespace;
        let daemon_set: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
        let lease: Api<Lease> = Api::namespaced(client.clone(), namespace);
        // The leader renews its own every 2 s.
        let others = few().fields(&format!("metadata.name!={}", self.options.lease_name));
        let watched_leases = self.options.pause_installer_lease.as_ref().map(|_| {
            watch(lease, others, "leases", readiness.clone())
                .map(|event| leases.apply_watcher_event(&event))
                .for_each(ready)
        });
        tokio::join!(
            watch(Api::all(client.clone()), pages(), "pods", readiness.clone())
                .map(|event| self.pods_changed(event, &mut pods, &mut agent_pods))
                .for_each(ready),
            watch(Api::all(client.clone()), pages(), "sandboxhealths", readiness.clone())
                .map(|event| self.objects_changed(event, &mut objects))
                .for_each(ready),
            watch(Api::all(client), pages(), "nodes", readiness.clone())
                .map(|event| nodes.apply_watcher_event(&event))
                .for_each(ready),
            watch(daemon_set, own, "daemonsets", readiness)
                .map(|event| daemon_sets.apply_watcher_event(&event))
                .for_each(ready),
            OptionFuture::from(watched_leases),
        );
    }

    fn pods_changed(&self, event: Event<LeanPod>, pods: &mut Writer<LeanPod>, agents: &mut Writer<LeanPod>) {
        let event = event.modify(|pod| self.record_deletion(pod));
        let is_agent = |pod: &LeanPod| {
            pod.namespace() == self.options.lease_namespace
                && pod.daemon_set.as_deref() == Some(&self.options.agent_daemonset)
                && !pod.node.is_empty()
        };
        write_if(agents, &event, is_agent);
        write_if(pods, &event, |pod| self.watched(pod).is_some());
        match event {
            Event::Apply(pod) => self.requeue_one(ObjectRef::from_obj(&pod)),
            Event::InitDone => self.requeue(|_| true),
            Event::Init | Event::InitApply(_) | Event::Delete(_) => {}
        }
    }

    /// Records when the deletion of a pod was first observed.
    fn record_deletion(&self, pod: &mut LeanPod) {
        if pod.deletion_grace.is_some() {
            let before = self.pods.get(&ObjectRef::from_obj(pod)).filter(|before| before.uid() == pod.uid());
            let seen_at = before.and_then(|before| before.deletion_seen_at);
            pod.deletion_seen_at = Some(seen_at.unwrap_or_else(Instant::now));
        }
    }

    fn objects_changed(&self, event: Event<GuardedObject>, objects: &mut Writer<GuardedObject>) {
        let event = event.modify(prune);
        objects.apply_watcher_event(&event);
        match event {
            Event::Apply(object) | Event::Delete(object) => self.requeue_one(pod_of(&object)),
            // No event reports objects that a new list lacks.
            Event::InitDone => self.requeue(|_| true),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn requeue(&self, which: impl Fn(&LeanPod) -> bool) {
        for pod in self.pods.state().iter().filter(|pod| which(pod)) {
            self.requeue_one(ObjectRef::from_obj(&**pod));
        }
    }

    /// Standbys reconcile nothing. Before all caches are complete, nothing is queued: all pods are queued then.
    fn requeue_one(&self, pod: ObjectRef<LeanPod>) {
        if let Some(queue) = &*locked(&self.queue) {
            let _ = queue.unbounded_send(pod);
        }
    }
}

/// Applies the event of a pod that is kept. A pod that is not, or no longer, is deleted from the cache, as is an earlier one of its name.
fn write_if(writer: &mut Writer<LeanPod>, event: &Event<LeanPod>, keep: impl Fn(&LeanPod) -> bool) {
    match event {
        Event::Apply(pod) if !keep(pod) => writer.apply_watcher_event(&Event::Delete(pod.clone())),
        Event::InitApply(pod) if !keep(pod) => {}
        event => writer.apply_watcher_event(event),
    }
}

fn desired_agents(daemon_set: &DaemonSet) -> usize {
    let desired = daemon_set.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
    usize::try_from(desired).unwrap_or_default()
}

fn pod_of(object: &impl Resource) -> ObjectRef<LeanPod> {
    ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default())
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeWatches, agent, daemon_set, options, pod};
    use super::*;
    use crate::controller::agents::GRACE;
    use crate::core::conditions::UnavailableReason;
    use crate::crd::SandboxHealth;
    use crate::telemetry::Metrics as _;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn watches() -> FakeWatches {
        FakeWatches::new(&options(100), true)
    }

    /// Names of the pods that were queued, each once.
    fn queued(queue: &mut UnboundedReceiver<ObjectRef<LeanPod>>) -> Vec<String> {
        let names: BTreeSet<_> = std::iter::from_fn(|| queue.try_recv().ok()).map(|pod| pod.name).collect();
        names.into_iter().collect()
    }

    fn object(name: &str) -> Value {
        json!(SandboxHealth::of_pod("shop", name, "u", "n"))
    }

    #[test]
    fn list_of_pods_replaces_the_cache_when_it_is_complete() {
        let mut watches = watches();
        let mut queue = watches.index.queue();
        watches.apply_pod(pod("old", "u-0"));
        assert_eq!(queued(&mut queue), ["old"]);
        watches.pod(Event::Init);
        watches.pod(Event::InitApply(serde_json::from_value(pod("new", "u-1")).unwrap()));
        assert!(queued(&mut queue).is_empty());
        assert_eq!(watches.index.pods.len(), 1);
        watches.pod(Event::InitDone);
        assert_eq!(queued(&mut queue), ["new"]);
        assert_eq!(watches.index.pods.len(), 1);
    }

    #[test]
    fn pod_that_is_not_observed_is_not_kept() {
        let mut watches = watches();
        watches.apply_pod(pod("web", "u-1"));
        let mut other = pod("web", "u-2");
        other["spec"]["shareProcessNamespace"] = json!(false);
        watches.apply_pod(other);
        assert_eq!(watches.index.pods.len(), 0, "it took the name of the one that is gone");
    }

    #[test]
    fn changed_or_deleted_object_requeues_its_pod() {
        let mut watches = watches();
        watches.list_pods([pod("web", "u-1"), pod("other", "u-2"), agent()]);
        let mut queue = watches.index.queue();
        assert_eq!(queued(&mut queue), ["other", "web"]);
        watches.apply_object(object("web"));
        assert_eq!(queued(&mut queue), ["web"]);
        watches.object(Event::Delete(serde_json::from_value(object("web")).unwrap()));
        assert_eq!(queued(&mut queue), ["web"]);
        watches.list_objects(Vec::new());
        assert_eq!(queued(&mut queue), ["other", "web"]);
    }

    #[test]
    fn object_of_any_shape_is_kept_without_managed_fields() {
        let mut watches = watches();
        let mut unreadable = object("web");
        unreadable["spec"]["podUID"] = json!(7);
        unreadable["metadata"]["managedFields"] = json!([{"manager": "m"}]);
        watches.apply_object(unreadable);
        let kept = watches.index.objects.state().pop().unwrap();
        assert!(kept.0.is_err() && kept.meta().managed_fields.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_is_gone_for_a_minute_requeues_the_pods_of_its_node() {
        let mut watches = watches();
        let mut elsewhere = pod("elsewhere", "u-2");
        elsewhere["spec"]["nodeName"] = json!("m");
        watches.list_pods([pod("web", "u-1"), elsewhere]);
        let mut queue = watches.index.queue();
        queued(&mut queue);
        let now = Instant::now() + GRACE;
        watches.index.update_agents(now);
        assert_eq!(watches.index.agent_state("n"), AgentState::Pending);
        queued(&mut queue);
        watches.index.update_agents(now + GRACE);
        let missing = AgentState::Unavailable(UnavailableReason::AgentMissing);
        assert_eq!(watches.index.agent_state("n"), missing);
        assert_eq!(queued(&mut queue), ["web"]);
    }

    #[tokio::test(start_paused = true)]
    async fn agents_are_missing_only_if_the_daemon_set_wants_them() {
        let mut watches = FakeWatches::new(&options(100), false);
        let metrics = ControllerMetrics::default();
        for (event, missing) in [
            (Event::Init, 1),
            (Event::Apply(daemon_set(1)), 1),
            (Event::Apply(daemon_set(0)), 0),
            (Event::Delete(daemon_set(0)), 1),
        ] {
            watches.daemon_set(&event);
            watches.index.export_agents(&metrics);
            let line = format!("sandboxhealth_nodes{{state=\"AgentMissing\"}} {missing}\n");
            assert!(metrics.render().unwrap().contains(&line), "{event:?}");
        }
    }

    #[test]
    fn agent_is_a_pod_of_the_daemon_set() {
        let mut watches = watches();
        assert_eq!(watches.index.agent_pods.len(), 1);
        let changed = |part: &str, field: &str, value: Value| {
            let mut pod = agent();
            pod[part][field] = value;
            pod
        };
        for other in [
            changed("metadata", "namespace", json!("shop")),
            changed("metadata", "ownerReferences", json!([])),
        ] {
            watches.list_pods([other]);
            assert_eq!(watches.index.agent_pods.len(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deletion_of_a_pod_is_timed_from_its_first_event() {
        let mut watches = watches();
        let mut deleted = pod("web", "u-1");
        deleted["metadata"]["deletionTimestamp"] = json!("1999-01-01T00:00:00Z");
        let first = Instant::now();
        for _ in 0..2 {
            watches.apply_pod(deleted.clone());
            let kept = watches.index.pods.state().pop().unwrap();
            assert_eq!(kept.deletion_seen_at, Some(first));
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}
