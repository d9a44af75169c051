//! Stories of one pod against an API server that answers as it's told to: which requests are made, and which are not. What the
//! requests follow from is tested where it's decided.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::channel::mpsc::{self, UnboundedReceiver};
use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::conditions::judge;
use super::fleet::{GRACE, Sight};
use super::metrics::ControllerMetrics;
use super::reconcile::{Context, ReconcileError, look_after};
use super::storm::{Leave, Restarted};
use super::summaries::{Attempts, tell};
use super::watches::{Lookout, Scope};
use crate::mock_server::{Answer, COUNTED, CREATE, DELETE, EVENTS, Exchange, POD, STATUS, server};
use crate::resource::SandboxHealth;
use crate::scope::WatchPods;
use crate::serve::{Metrics as _, Readiness};

/// Where the summary of a node goes.
const NODE_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events?";
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
        serde_json::to_value(judge(&known, false, sight, Timestamp::now()).conditions).unwrap();
    status
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
    again: UnboundedReceiver<ObjectRef<Pod>>,
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
}

const USUAL: Setting = Setting { agent: true, max_objects: 100, watch_pods: WatchPods::SharedPidNamespace };
const NO_AGENT: Setting = Setting { agent: false, ..USUAL };

impl World {
    fn new(
        setting: Setting,
        pod: Value,
        object: Option<Value>,
        script: impl IntoIterator<Item = Exchange>,
    ) -> Self {
        let (store, mut objects) = reflector::store();
        objects.apply_watcher_event(&Event::Init);
        if let Some(object) = object {
            objects.apply_watcher_event(&Event::InitApply(serde_json::from_value(object).unwrap()));
        }
        objects.apply_watcher_event(&Event::InitDone);
        let (client, served) = server(script);
        let (again, asked) = mpsc::unbounded();
        let context = Arc::new(Context::new(
            client,
            store,
            Arc::new(lookout(&setting, again)),
            Arc::new(ControllerMetrics::default()),
            Arc::new(Readiness::default()),
            "test".to_owned(),
            setting.max_objects,
        ));
        Self { context, pod: serde_json::from_value(pod).unwrap(), objects, again: asked, served }
    }

    async fn look(&self) -> Result<Action, ReconcileError> {
        look_after(&self.pod, &self.context).await
    }

    /// The watch brings an object.
    fn brings(&mut self, object: Value) {
        self.objects.apply_watcher_event(&Event::Apply(serde_json::from_value(object).unwrap()));
    }

    /// The watch tells that an object is gone.
    fn removes(&mut self, object: Value) {
        self.objects.apply_watcher_event(&Event::Delete(serde_json::from_value(object).unwrap()));
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

fn lookout(setting: &Setting, again: mpsc::UnboundedSender<ObjectRef<Pod>>) -> Lookout {
    let agents = "component=agent".parse().unwrap();
    let scope = Scope { watch_pods: setting.watch_pods, agents, namespace: "ops".to_owned() };
    let (pods, _) = reflector::store();
    let lookout = Lookout::new(scope, pods, again);
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
) -> (Result<Action, ReconcileError>, Vec<Value>) {
    let world = World::new(USUAL, pod, object, script);
    let outcome = world.look().await;
    (outcome, world.end().await)
}

// Objects

#[tokio::test]
async fn a_pod_without_an_object_gets_one() {
    let (outcome, _) = looked_after(pod("u-1"), None, [taken(Method::POST, CREATE)]).await;
    outcome.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_or_has_no_node_gets_none() {
    let mut deleted = pod("u-1");
    deleted["metadata"]["deletionTimestamp"] = json!(READY);
    let mut pending = pod("u-1");
    pending["spec"]["nodeName"] = Value::Null;
    for pod in [deleted, pending] {
        looked_after(pod, None, []).await.0.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_done_before_agents_nodes_and_objects_are_known() {
    let (again, _asked) = mpsc::unbounded();
    let agents = "component=agent".parse().unwrap();
    let scope = Scope { watch_pods: WatchPods::SharedPidNamespace, agents, namespace: "ops".to_owned() };
    let mut world = World::new(USUAL, pod("u-1"), None, []);
    let context = Arc::get_mut(&mut world.context).unwrap();
    context.lookout = Arc::new(Lookout::new(scope, reflector::store().0, again));
    tokio::time::timeout(Duration::from_millis(50), world.look()).await.unwrap_err();
    world.end().await;
}

#[tokio::test]
async fn each_pod_of_a_name_gets_an_object_of_its_own() {
    let one_more = |uid: &'static str| {
        [
            (Method::GET, POD, Answer::Object(pod(uid))),
            taken(Method::DELETE, DELETE),
            taken(Method::POST, CREATE),
        ]
    };
    let script = std::iter::once(taken(Method::POST, CREATE)).chain(one_more("u-2")).chain(one_more("u-3"));
    let mut world = World::new(USUAL, pod("u-1"), None, script);
    world.look().await.unwrap();
    for (before, uid) in [("u-1", "u-2"), ("u-2", "u-3")] {
        world.brings(object(before, json!({"restarts": 4})));
        world.brings_pod(pod(uid));
        world.look().await.unwrap();
        world.removes(object(before, json!({"restarts": 4})));
        world.look().await.unwrap();
    }
    let created: Vec<_> = world
        .end()
        .await
        .iter()
        .filter_map(|body| body["spec"]["podUID"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(created, ["u-1", "u-2", "u-3"]);
}

#[tokio::test]
async fn an_object_that_a_user_took_the_owner_from_is_made_again_once() {
    let mut edited = object("u-1", json!({}));
    edited["metadata"]["ownerReferences"] = json!([]);
    let script = [
        (Method::GET, POD, Answer::Object(pod("u-1"))),
        taken(Method::DELETE, DELETE),
        taken(Method::POST, CREATE),
    ];
    let mut world = World::new(USUAL, pod("u-1"), Some(edited.clone()), script);
    world.look().await.unwrap();
    world.removes(edited);
    world.look().await.unwrap();
    world.brings(object("u-1", judged(json!({"announcedRestarts": 0}), Sight::Seen)));
    world.look().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn conditions_that_a_user_edited_are_put_right() {
    let mut status = judged(json!({"announcedRestarts": 0}), Sight::Seen);
    status["conditions"][0]["status"] = json!("True");
    let (outcome, bodies) =
        looked_after(pod("u-1"), Some(object("u-1", status)), [taken(Method::PATCH, STATUS)]).await;
    outcome.unwrap();
    assert_eq!(bodies[0]["status"]["conditions"][0]["status"], "Unknown");
}

#[tokio::test]
async fn an_object_that_is_not_understood_is_neither_made_again_nor_changed_and_told_of_once() {
    let of_a_later_version = object("u-1", json!({"source": "Telepathy"}));
    let world = World::new(NO_AGENT, pod("u-1"), Some(of_a_later_version), []);
    world.look().await.unwrap();
    world.look().await.unwrap();
    assert!(world.metric("sandbox_health_objects_not_understood_total 1"));
    world.end().await;
}

#[tokio::test]
async fn fields_of_a_later_version_are_no_obstacle() {
    let mut status = judged(json!({"announcedRestarts": 0}), Sight::Seen);
    status["telepathy"] = json!({"strength": 7});
    looked_after(pod("u-1"), Some(object("u-1", status)), []).await.0.unwrap();
}

#[tokio::test]
async fn in_a_namespace_that_is_being_deleted_nothing_is_tried_again() {
    let refusal = || {
        let cause =
            json!([{"reason": "NamespaceTerminating", "message": "namespace shop is being terminated"}]);
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403, "details": {"causes": cause}});
        Answer::RefusedWith(StatusCode::FORBIDDEN, status)
    };
    let (outcome, _) = looked_after(pod("u-1"), None, [(Method::POST, CREATE, refusal())]).await;
    assert_eq!(outcome.unwrap(), Action::await_change());
    let script = [(Method::POST, EVENTS, refusal()), taken(Method::PATCH, STATUS)];
    let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
    outcome.unwrap();
    assert_eq!(bodies[1]["status"]["announcedRestarts"], 1);
}

#[tokio::test]
async fn above_the_limit_only_a_pod_with_something_wrong_gets_an_object() {
    let full = |agent| Setting { agent, max_objects: 1, ..USUAL };
    let mut other = object("u-9", json!({}));
    other["metadata"]["name"] = json!("other");
    let world = World::new(full(true), pod("u-1"), Some(other.clone()), []);
    assert_ne!(world.look().await.unwrap(), Action::await_change(), "there may be room later");
    world.end().await;
    let mut world = World::new(full(false), pod("u-1"), Some(other), [taken(Method::POST, CREATE)]);
    world.look().await.unwrap();
    world.brings_pod(pod_ready_again());
    world.look().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn objects_that_the_watch_has_yet_to_bring_count_against_the_limit() {
    let setting = Setting { max_objects: 1, ..USUAL };
    let mut world = World::new(setting, pod("u-1"), None, [taken(Method::POST, CREATE)]);
    world.look().await.unwrap();
    let mut other = pod("u-2");
    other["metadata"]["name"] = json!("other");
    world.brings_pod(other);
    world.look().await.unwrap();
    world.end().await;
}

// Judgements and Events

#[tokio::test]
async fn a_restart_is_announced_before_it_is_noted_as_announced() {
    let script = [taken(Method::POST, EVENTS), taken(Method::PATCH, STATUS)];
    let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
    outcome.unwrap();
    assert_eq!(bodies[0]["reason"], "SandboxRestarted");
    assert!(bodies[0]["note"].as_str().unwrap().contains("SIGKILL"), "{}", bodies[0]);
    assert_eq!(bodies[0]["regarding"]["uid"], "u-1");
    assert_eq!(bodies[1]["status"]["announcedRestarts"], 1);
    let conditions = bodies[1]["status"]["conditions"].as_array().unwrap();
    let types: Vec<_> = conditions.iter().map(|has| has["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Healthy", "ZombiesReaped", "SandboxStable", "Reporting"]);
}

#[tokio::test]
async fn what_could_not_be_announced_is_judged_all_the_same_and_stays_unannounced() {
    let unavailable = (Method::POST, EVENTS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    let script = [unavailable, taken(Method::PATCH, STATUS)];
    let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
    assert!(matches!(outcome, Err(ReconcileError::Event(_))), "{outcome:?}");
    let status = &bodies[1]["status"];
    assert_eq!(status["announcedRestarts"], 0);
    let types: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|has| &has["type"]).collect();
    assert_eq!(types, ["Healthy", "SandboxStable", "Reporting"]);
}

#[tokio::test]
async fn a_replica_that_takes_over_between_event_and_note_makes_no_second_event() {
    let script =
        [(Method::POST, EVENTS, Answer::Refused(StatusCode::CONFLICT)), taken(Method::PATCH, STATUS)];
    let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
    outcome.unwrap();
    assert_eq!(bodies[1]["status"]["announcedRestarts"], 1);
}

#[tokio::test]
async fn an_event_that_has_expired_is_not_made_again_by_a_controller_that_starts() {
    let onset = "2026-11-24T08:30:00Z";
    let mut status = restarted();
    status["announcedRestarts"] = json!(1);
    status["processes"] =
        json!({"zombies": 7, "zombiesPeak": 7, "total": 9, "observedAt": onset, "accumulatingSince": onset});
    looked_after(pod("u-1"), Some(object("u-1", judged(status, Sight::Seen))), []).await.0.unwrap();
}

#[tokio::test]
async fn a_restart_and_an_onset_cost_an_event_and_one_write_of_conditions_each() {
    let event_and_write = || [taken(Method::POST, EVENTS), taken(Method::PATCH, STATUS)];
    let script = event_and_write().into_iter().chain(event_and_write());
    let mut world = World::new(USUAL, pod("u-1"), Some(object("u-1", restarted())), script);
    world.look().await.unwrap();
    let mut status = restarted();
    status["announcedRestarts"] = json!(1);
    let quiet = judged(status.clone(), Sight::Seen);
    world.brings(object("u-1", quiet.clone()));
    world.look().await.unwrap();
    let onset = "2026-11-24T09:30:00Z";
    status["conditions"] = quiet["conditions"].clone();
    status["processes"] =
        json!({"zombies": 7, "zombiesPeak": 7, "total": 9, "observedAt": onset, "accumulatingSince": onset});
    world.brings(object("u-1", status.clone()));
    world.look().await.unwrap();
    world.brings(object("u-1", judged(status, Sight::Seen)));
    world.look().await.unwrap();
    let reasons: Vec<_> =
        world.end().await.iter().filter_map(|body| body["reason"].as_str().map(str::to_owned)).collect();
    assert_eq!(reasons, ["SandboxRestarted", "ZombiesAccumulating"]);
}

#[tokio::test]
async fn past_the_budget_a_restart_is_judged_at_once_and_noted_once_the_summary_is_made() {
    let mut world = World::new(
        USUAL,
        pod("u-1"),
        Some(object("u-1", restarted())),
        [taken(Method::PATCH, STATUS), taken(Method::POST, NODE_EVENTS), taken(Method::PATCH, STATUS)],
    );
    let now = Timestamp::now();
    let other = |pod: i64| Restarted {
        uid: format!("u-{pod}"),
        name: format!("shop/other-{pod}"),
        restarts: 1,
        untold: 1,
        reasons: [("Replaced", 1)].into(),
        at: now,
    };
    for pod in 100..120 {
        assert_eq!(world.context.storms().ask("n", other(pod), now), Leave::Granted);
    }
    world.look().await.unwrap();
    let mut attempts = Attempts::default();
    tell(&world.context, &mut attempts, now).await;
    tell(&world.context, &mut attempts, Timestamp::now() + SignedDuration::from_secs(6)).await;
    assert_eq!(world.again.try_recv().unwrap(), ObjectRef::new("web").within("shop"));
    world.brings(object("u-1", judged(restarted(), Sight::Seen)));
    world.look().await.unwrap();
    assert!(world.metric("sandbox_health_restarts_summed_up_total 1"));
    assert!(world.metric("sandbox_health_events_total{reason=\"SandboxesRestarted\"} 1"));
    let bodies = world.end().await;
    assert_eq!(
        (&bodies[0]["status"]["announcedRestarts"], &bodies[2]["status"]["announcedRestarts"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        (&bodies[1]["reason"], &bodies[1]["regarding"]["uid"]),
        (&json!("SandboxesRestarted"), &json!("n-1"))
    );
}

#[tokio::test]
async fn a_summary_that_fails_is_tried_again_later_with_the_same_name() {
    let world = World::new(
        USUAL,
        pod("u-1"),
        None,
        [
            (Method::POST, NODE_EVENTS, Answer::Refused(StatusCode::TOO_MANY_REQUESTS)),
            taken(Method::POST, NODE_EVENTS),
        ],
    );
    let now = Timestamp::now();
    let many = Restarted {
        uid: "u-1".to_owned(),
        name: "shop/web".to_owned(),
        restarts: 1,
        untold: 1,
        reasons: [].into(),
        at: now,
    };
    for pod in 0..21 {
        world.context.storms().ask("n", Restarted { name: format!("shop/{pod}"), ..many.clone() }, now);
    }
    let mut attempts = Attempts::default();
    for second in [6, 6, 7] {
        tell(&world.context, &mut attempts, now + SignedDuration::from_secs(second)).await;
    }
    let bodies = world.end().await;
    assert_eq!(bodies[0]["metadata"]["name"], bodies[1]["metadata"]["name"]);
}

// Nodes without an agent

#[tokio::test]
async fn a_restart_on_a_node_without_an_agent_is_counted_by_the_pod_s_condition_and_told() {
    let script = [
        taken(Method::PATCH, COUNTED),
        taken(Method::PATCH, COUNTED),
        taken(Method::POST, EVENTS),
        taken(Method::PATCH, STATUS),
    ];
    let mut world = World::new(NO_AGENT, pod("u-1"), Some(object("u-1", json!({}))), script);
    world.look().await.unwrap();
    let baseline = json!({"restarts": 0, "source": "PodConditions", "sandbox": {"startedAt": READY}});
    let mut before = baseline.clone();
    before["announcedRestarts"] = json!(0);
    world.brings(object("u-1", judged(before, Sight::Blind(super::fleet::Blindness::AgentMissing))));
    world.look().await.unwrap();
    let mut gone = pod("u-1");
    gone["status"]["conditions"][0] = json!({"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": "2026-11-24T08:59:58Z", "message": "its sandbox was killed"});
    world.brings_pod(gone);
    world.look().await.unwrap();
    world.brings_pod(pod_ready_again());
    world.look().await.unwrap();
    let mut counted = restarted();
    counted["source"] = json!("PodConditions");
    counted["sandbox"] = json!({"startedAt": READY_AGAIN});
    world.brings(object("u-1", counted));
    world.look().await.unwrap();
    let bodies = world.end().await;
    assert_eq!(
        (&bodies[0]["status"]["restarts"], &bodies[0]["status"]["source"]),
        (&json!(0), &json!("PodConditions"))
    );
    let status = &bodies[1]["status"];
    assert_eq!((&bodies[1]["metadata"]["resourceVersion"], &status["restarts"]), (&json!("7"), &json!(1)));
    assert_eq!(status["lastRestart"]["reason"], "Replaced");
    let message = status["lastRestart"]["message"].as_str().unwrap();
    assert!(message.ends_with("the kubelet said: its sandbox was killed"), "{message}");
    assert_eq!(bodies[2]["reason"], "SandboxRestarted");
}

#[tokio::test]
async fn an_agent_that_writes_first_is_not_overwritten() {
    let script = [
        (Method::PATCH, COUNTED, Answer::Refused(StatusCode::CONFLICT)),
        taken(Method::POST, EVENTS),
        taken(Method::PATCH, STATUS),
    ];
    let mut world = World::new(
        NO_AGENT,
        pod_ready_again(),
        Some(object("u-1", json!({"sandbox": {"id": "a", "startedAt": READY}}))),
        script,
    );
    assert!(matches!(world.look().await, Err(ReconcileError::Count(_))));
    world.brings(object("u-1", restarted()));
    world.context.lookout.pods_changed(&Event::Apply(agent()));
    world.look().await.unwrap();
    assert_eq!(world.end().await[2]["status"]["announcedRestarts"], 1, "judged anew");
}

fn agent() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "ops", "uid": "a", "labels": {"component": "agent"}},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_crd_that_is_too_old_is_told_of_where_readiness_is_asked_for() {
    let message = ".status.foo: field not declared in schema";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "", "code": 500});
    let script = [
        (Method::PATCH, STATUS, Answer::RefusedWith(StatusCode::INTERNAL_SERVER_ERROR, status)),
        taken(Method::PATCH, STATUS),
    ];
    let world = World::new(USUAL, pod("u-1"), Some(object("u-1", json!({}))), script);
    world.look().await.unwrap_err();
    let reasons = world.context.readiness.reasons();
    assert!(reasons.contains("older than this program; update it"), "{reasons}");
    world.look().await.unwrap();
    assert_eq!(world.context.readiness.reasons(), "");
    world.end().await;
}

// Failures

/// What may become of a write.
#[derive(Debug, Clone, Copy)]
enum Scenario {
    /// The server has too much to do: 429.
    Throttled,
    /// It's up and cannot serve: 503.
    Unavailable,
    /// Somebody else wrote: 409.
    Conflict,
    /// The connection hangs: no answer, ever.
    Hung,
    /// The network is parted: the connection breaks.
    Partition,
}

impl Scenario {
    const ALL: [Self; 5] = [Self::Throttled, Self::Unavailable, Self::Conflict, Self::Hung, Self::Partition];

    fn answer(self) -> Answer {
        match self {
            Self::Throttled => Answer::Refused(StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable => Answer::Refused(StatusCode::SERVICE_UNAVAILABLE),
            Self::Conflict => Answer::Refused(StatusCode::CONFLICT),
            Self::Hung => Answer::Silence,
            Self::Partition => Answer::Broken,
        }
    }
}

/// One kind of write: what it needs, and its request.
type Write = (Setting, Option<Value>, Method, &'static str);

fn writes() -> [Write; 3] {
    let counted = json!({"source": "PodConditions", "sandbox": {"startedAt": "2026-11-24T07:00:00Z"}});
    [
        (USUAL, None, Method::POST, CREATE),
        (USUAL, Some(object("u-1", json!({}))), Method::PATCH, STATUS),
        (NO_AGENT, Some(object("u-1", counted)), Method::PATCH, COUNTED),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_made_again_and_ends_in_time() {
    for scenario in Scenario::ALL {
        for (setting, object, method, path) in writes() {
            // An object that is there already is what was wanted.
            let fails = !(matches!(scenario, Scenario::Conflict) && path == CREATE);
            let again = fails.then(|| taken(method.clone(), path));
            let script = std::iter::once((method, path, scenario.answer())).chain(again);
            let world = World::new(setting, pod("u-1"), object, script);
            let began = tokio::time::Instant::now();
            assert_eq!(world.look().await.is_err(), fails, "{scenario:?} {path}");
            assert!(began.elapsed() <= Duration::from_secs(11), "{scenario:?} {path}");
            if fails {
                world.look().await.unwrap();
            }
            world.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_is_made_again_under_the_same_name() {
    for scenario in [Scenario::Throttled, Scenario::Unavailable, Scenario::Hung, Scenario::Partition] {
        let script = [
            (Method::POST, EVENTS, scenario.answer()),
            taken(Method::PATCH, STATUS),
            taken(Method::POST, EVENTS),
            taken(Method::PATCH, STATUS),
        ];
        let world = World::new(USUAL, pod("u-1"), Some(object("u-1", restarted())), script);
        world.look().await.unwrap_err();
        world.look().await.unwrap();
        let bodies = world.end().await;
        assert_eq!(bodies[0]["metadata"]["name"], bodies[2]["metadata"]["name"], "{scenario:?}");
        assert_eq!(bodies[3]["status"]["announcedRestarts"], 1, "{scenario:?}");
    }
}

#[tokio::test]
async fn a_status_that_changed_after_a_failed_write_is_judged_anew() {
    let unavailable = (Method::PATCH, STATUS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    let script = [unavailable, taken(Method::PATCH, STATUS)];
    let mut world = World::new(USUAL, pod("u-1"), Some(object("u-1", json!({}))), script);
    world.look().await.unwrap_err();
    let processes = json!({"zombies": 0, "zombiesPeak": 0, "total": 2, "observedAt": READY});
    world.brings(object(
        "u-1",
        json!({"source": "ProcScan", "sandbox": {"id": "a", "startedAt": READY}, "processes": processes}),
    ));
    world.look().await.unwrap();
    let reasons: Vec<_> = world
        .end()
        .await
        .iter()
        .map(|body| body["status"]["conditions"][0]["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons, ["NoReport", "AllWell"]);
}

#[tokio::test]
async fn a_pod_that_fails_again_and_again_is_left_for_longer_and_longer() {
    let world = World::new(USUAL, pod("u-1"), None, []);
    let waits: Vec<_> = (0..8).map(|_| world.context.wait_after_failure(&world.pod)).collect();
    assert!(waits[0] <= Duration::from_secs(1) && waits[7] > Duration::from_secs(30), "{waits:?}");
}

/// Everything but the watches' connections, for two minutes. The pod is deleted after `deleted_after` if that is sooner.
async fn run(deleted_after: Duration, script: impl IntoIterator<Item = Exchange>) {
    let World { context, pod, served, .. } = World::new(USUAL, pod("u-1"), None, script);
    let (pods, mut writer) = reflector::store();
    for event in [Event::Init, Event::InitApply(pod.clone()), Event::InitDone] {
        writer.apply_watcher_event(&event);
    }
    let (_again, asked) = mpsc::unbounded();
    let changed =
        futures::stream::iter([Ok::<_, watcher::Error>(pod.clone())]).chain(futures::stream::pending());
    let work = super::look_after_all(pods, changed, futures::stream::pending(), asked, context);
    let delete = async {
        tokio::time::sleep(deleted_after).await;
        writer.apply_watcher_event(&Event::Delete(pod));
        std::future::pending::<()>().await;
    };
    let both = async { tokio::join!(work, delete) };
    tokio::time::timeout(Duration::from_secs(120), both).await.unwrap_err();
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_that_matters_is_made_until_it_gets_through_and_not_once_more() {
    let failures = Scenario::ALL.into_iter().filter(|scenario| !matches!(scenario, Scenario::Conflict));
    let failures = failures.map(|scenario| (Method::POST, CREATE, scenario.answer()));
    run(Duration::from_secs(200), failures.chain([taken(Method::POST, CREATE)])).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_for_a_pod_that_is_gone_is_not_made_again() {
    let unavailable = (Method::POST, CREATE, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    run(Duration::from_millis(100), [unavailable]).await;
}
