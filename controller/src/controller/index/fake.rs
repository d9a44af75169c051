//! Caches for unit tests, filled without watches.

use serde_json::{Value, json};

use super::*;
use crate::controller::agents::GRACE;
use crate::k8s::pod::WatchPods;

pub(in crate::controller) struct FakeWatches {
    pub(in crate::controller) index: Arc<Index>,
    writers: Writers,
}

impl FakeWatches {
    /// A ready node `n`, with a ready agent if so, and nothing else; all caches are complete.
    pub(in crate::controller) fn new(options: &ControllerOptions, has_agent: bool) -> Self {
        let (index, writers) = Index::new(options);
        let mut watches = Self { index, writers };
        watches.list_pods(has_agent.then(agent));
        watches.list_objects(Vec::new());
        let node = json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        for event in [Event::Init, Event::InitApply(serde_json::from_value(node).unwrap()), Event::InitDone] {
            watches.writers.nodes.apply_watcher_event(&event);
        }
        watches.index.update_agents(Instant::now());
        watches.index.update_agents(Instant::now() + GRACE);
        watches
    }

    pub(in crate::controller) fn pod(&mut self, event: Event<LeanPod>) {
        let Writers { pods, agent_pods, .. } = &mut self.writers;
        self.index.pods_changed(event, pods, agent_pods);
    }

    pub(in crate::controller) fn apply_pod(&mut self, pod: Value) {
        self.pod(Event::Apply(serde_json::from_value(pod).unwrap()));
    }

    pub(in crate::controller) fn list_pods(&mut self, pods: impl IntoIterator<Item = Value>) {
        self.pod(Event::Init);
        for pod in pods {
            self.pod(Event::InitApply(serde_json::from_value(pod).unwrap()));
        }
        self.pod(Event::InitDone);
    }

    pub(in crate::controller) fn object(&mut self, event: Event<GuardedObject>) {
        self.index.objects_changed(event, &mut self.writers.objects);
    }

    pub(in crate::controller) fn apply_object(&mut self, object: Value) {
        self.object(Event::Apply(serde_json::from_value(object).unwrap()));
    }

    pub(in crate::controller) fn daemon_set(&mut self, event: &Event<DaemonSet>) {
        self.writers.daemon_sets.apply_watcher_event(event);
    }

    pub(in crate::controller) fn lease(&mut self, event: &Event<Lease>) {
        self.writers.leases.apply_watcher_event(event);
    }

    pub(in crate::controller) fn list_objects(&mut self, objects: Vec<Value>) {
        self.object(Event::Init);
        for object in objects {
            self.object(Event::InitApply(serde_json::from_value(object).unwrap()));
        }
        self.object(Event::InitDone);
    }
}

pub(in crate::controller) fn agent() -> Value {
    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d", "controller": true});
    json!({
        "metadata": {"name": "agent-x", "namespace": "ops", "uid": "a", "ownerReferences": [owner]},
        "spec": {"nodeName": "n", "hostPID": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

pub(in crate::controller) fn daemon_set(desired: i32) -> DaemonSet {
    let status = json!({
        "desiredNumberScheduled": desired, "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
    });
    let metadata = json!({"name": "agent", "namespace": "ops", "uid": "d"});
    serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
}

pub(in crate::controller) fn pod(name: &str, uid: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": uid},
        "spec": {"nodeName": "n", "shareProcessNamespace": true},
        "status": {"phase": "Running"},
    })
}

pub(in crate::controller) fn options(max_objects: u32) -> ControllerOptions {
    ControllerOptions {
        lease_namespace: "ops".to_owned(),
        lease_name: "l".to_owned(),
        identity: "me".to_owned(),
        watch: WatchPods::SharedPidNamespace.into(),
        max_objects,
        agent_daemonset: "agent".to_owned(),
        pause_installer_lease: None,
        pause_canary: None,
    }
}
