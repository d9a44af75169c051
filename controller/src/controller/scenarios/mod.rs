//! Stories of one pod against an API server that answers as it's told to: which requests are made, and which are not. What the
//! requests follow from is tested where it's decided.

mod failures;
mod objects;
mod strays;
mod taking_over;
mod telling;
mod without_agent;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{self, UnboundedReceiver};
use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::DeserializeGuard;
use kube::runtime::reflector;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::conditions::judge;
use super::fleet::{Blindness, GRACE, Sight};
use super::look_after_all;
use super::metrics::ControllerMetrics;
use super::pods::{KeptPod, PodKey};
use super::reconcile::{Again, Context, ReconcileError, look_after, reconcile};
use super::storm::{Leave, Restarted};
use super::summaries::{Attempts, tell};
use super::watches::{Lookout, Scope, keep_ours};
use crate::mock_server::{Answer, CREATE, DELETE, EVENTS, Exchange, POD, REPORT, STATUS, answering, server};
use crate::resource::SandboxHealth;
use crate::scope::{Selector, WatchPods};
use crate::serve::{Metrics as _, Readiness};

/// Where the summary of a node goes.
const NODE_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events?";
/// Where the Events of a leader before this one are read.
const OUR_EVENTS: &str = "/apis/events.k8s.io/v1/events?&fieldSelector=reportingController%3Dsandboxhealth.dev%2Fcontroller&limit=500";
/// When the pod's sandbox was ready.
const READY: &str = "2026-11-24T08:00:00Z";
/// When the next one was.
const READY_AGAIN: &str = "2026-11-24T09:00:00Z";

fn pod(uid: &str) -> Value {
    let ready = json!({"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": READY});
    json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"nodeName": "n", "containers": [], "shareProcessNamespace": true},
        "status": {"phase": "Running", "conditions": [ready]},
    })
}

fn pod_ready_again() -> Value {
    let mut pod = pod("u-1");
    pod["status"]["conditions"][0]["lastTransitionTime"] = json!(READY_AGAIN);
    pod
}

fn object(pod_uid: &str, status: Value) -> Value {
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": pod_uid});
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": "o-1", "resourceVersion": "7", "ownerReferences": [owner]},
        "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
        "status": status,
    })
}

fn restarted() -> Value {
    json!({
        "restarts": 1,
        "announcedRestarts": 0,
        "source": "PauseStatusFile",
        "sandbox": {"id": "b", "startedAt": READY},
        "history": [{"sandboxID": "a", "startedAt": READY, "reason": "PauseExited"}],
        "lastRestart": {"time": READY_AGAIN, "reason": "PauseExited", "message": "pause was killed by SIGKILL"},
    })
}

/// A status with the conditions that it is judged to have.
fn judged(mut status: Value, sight: Sight) -> Value {
    let known = serde_json::from_value(status.clone()).unwrap();
    status["conditions"] =
        serde_json::to_value(judge(&known, None, sight, Timestamp::now()).conditions).unwrap();
    status
}

/// An object as the watch keeps it.
fn as_watched(object: Value) -> DeserializeGuard<SandboxHealth> {
    let mut object = serde_json::from_value(object).unwrap();
    keep_ours(&mut object);
    object
}

/// The server takes it.
fn taken(method: Method, path: &'static str) -> Exchange {
    let answer = if path.contains("events") { json!({"metadata": {}}) } else { object("u-1", json!({})) };
    (method, path, Answer::Object(answer))
}

/// A replica of the controller and what it knows.
struct World {
    context: Arc<Context>,
    pod: Pod,
    objects: Writer<DeserializeGuard<SandboxHealth>>,
    again: UnboundedReceiver<PodKey>,
    served: JoinHandle<Vec<Value>>,
}

/// What differs between worlds.
struct Setting {
    /// Whether an agent is on the node.
    agent: bool,
    /// How many objects there may be.
    max_objects: u32,
    /// Whose sandboxes are watched.
    watch_pods: WatchPods,
    /// Whether there was a leader before this one.
    takes_over: bool,
}

const USUAL: Setting =
    Setting { agent: true, max_objects: 100, watch_pods: WatchPods::SharedPidNamespace, takes_over: false };
const TAKES_OVER: Setting = Setting { takes_over: true, ..USUAL };
const NO_AGENT: Setting = Setting { agent: false, ..USUAL };

impl World {
    fn new(
        setting: Setting,
        pod: Value,
        object: Option<Value>,
        script: impl IntoIterator<Item = Exchange>,
    ) -> Self {
        let (store, mut objects) = reflector::store();
        let (client, served) = server(script);
        let (again, asked) = mpsc::unbounded();
        let lookout = lookout(&setting, again);
        let listed = object.map(|object| Event::InitApply(serde_json::from_value(object).unwrap()));
        for event in [Event::Init].into_iter().chain(listed).chain([Event::InitDone]) {
            lookout.objects_changed(event, &mut objects);
        }
        let context = Arc::new(Context::new(
            client,
            store,
            Arc::new(lookout),
            Arc::new(ControllerMetrics::default()),
            Arc::new(Readiness::default()),
            "test".to_owned(),
            setting.max_objects,
        ));
        if !setting.takes_over {
            context.told_before.there_was_nobody();
        }
        Self { context, pod: serde_json::from_value(pod).unwrap(), objects, again: asked, served }
    }

    async fn look(&self) -> Result<Again, ReconcileError> {
        look_after(&self.kept(), &self.context).await
    }

    fn kept(&self) -> KeptPod {
        KeptPod::of(&self.pod, self.context.lookout.watch_pods()).unwrap()
    }

    /// The watch brings an object.
    fn brings(&mut self, object: Value) {
        self.objects.apply_watcher_event(&Event::Apply(as_watched(object)));
    }

    /// The watch tells that an object is gone.
    fn removes(&mut self, object: Value) {
        self.objects.apply_watcher_event(&Event::Delete(as_watched(object)));
    }

    /// The watch brings another version of the pod, or another pod of its name.
    fn brings_pod(&mut self, pod: Value) {
        self.pod = serde_json::from_value(pod).unwrap();
        self.context.lookout.pods_changed(&Event::Apply(self.pod.clone()));
    }

    fn metric(&self, line: &str) -> bool {
        self.context.metrics.render().unwrap().lines().any(|shown| shown == line)
    }

    /// The bodies that the server got; it fails if there were other requests than it expected.
    async fn end(self) -> Vec<Value> {
        drop(self.context);
        self.served.await.unwrap()
    }
}

fn lookout(setting: &Setting, again: mpsc::UnboundedSender<PodKey>) -> Lookout {
    let agents = "component=agent".parse().unwrap();
    let scope = Scope {
        watch_pods: setting.watch_pods,
        agents,
        nodes: Selector::default(),
        namespace: "ops".to_owned(),
    };
    let lookout = Lookout::new(scope, again);
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let agent = json!({"metadata": {"name": "a", "namespace": "ops", "uid": "a", "labels": {"component": "agent"}}, "spec": {"nodeName": "n", "containers": []}, "status": {"conditions": ready}});
    let node: Node = serde_json::from_value(
        json!({"metadata": {"name": "n", "uid": "n-1"}, "status": {"conditions": ready}}),
    )
    .unwrap();
    lookout.pods_changed(&Event::Init);
    if setting.agent {
        lookout.pods_changed(&Event::InitApply(serde_json::from_value(agent).unwrap()));
    }
    lookout.pods_changed(&Event::InitDone);
    let mut listed = HashSet::new();
    for event in [Event::Init, Event::InitApply(node), Event::InitDone] {
        lookout.nodes_changed(&event, &mut listed);
    }
    lookout.settle(Timestamp::now() + GRACE);
    lookout
}

/// Looks once in a usual world.
async fn looked_after(
    pod: Value,
    object: Option<Value>,
    script: impl IntoIterator<Item = Exchange>,
) -> (Result<Again, ReconcileError>, Vec<Value>) {
    let world = World::new(USUAL, pod, object, script);
    let outcome = world.look().await;
    (outcome, world.end().await)
}

/// So many other pods of the node use up its budget.
fn others_are_told_of(world: &World, pods: u32, now: Timestamp) {
    for pod in 0..pods {
        let other = Restarted {
            uid: format!("u-other-{pod}"),
            pod: PodKey::new("shop", &format!("other-{pod}")),
            restarts: 1,
            untold: 1,
            reasons: [("Replaced", 1)].into(),
        };
        assert_eq!(world.context.storms().ask("n", other, now), Leave::Granted);
    }
}

fn agent() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "ops", "uid": "a", "labels": {"component": "agent"}},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}
