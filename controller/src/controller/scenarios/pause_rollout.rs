//! Switches of nodes to our pause image, as the controller sees them in the Leases of the installers.

use std::collections::HashSet;

use k8s_openapi::api::coordination::v1::Lease;

use super::super::{pause_rollout, run};
use super::*;
use crate::k8s::pause_lease::{Step, Switch};

const SINCE_MINUTES: i64 = 5;

fn rollout_options() -> ControllerOptions {
    ControllerOptions {
        pause_installer_lease: Some("pause".to_owned()),
        pause_canary: Some("canary".to_owned()),
        ..options(100)
    }
}

/// A server on which the name of an Event is taken once it was created.
fn server() -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    let names = Mutex::<HashSet<String>>::default();
    move |request| {
        let name = request.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match request.method {
            Method::POST if !names.lock().unwrap().insert(name) => Answer::Refused(StatusCode::CONFLICT),
            Method::DELETE => Answer::Object(canary("n", "c-1")),
            Method::PUT => Answer::Object(request.body.clone()),
            _ => Answer::Object(json!({"metadata": {}, "eventTime": null})),
        }
    }
}

fn world() -> World {
    World::with_options(rollout_options(), server())
}

/// A canary pod of this node.
fn canary(node: &str, uid: &str) -> Value {
    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "canary", "uid": "d", "controller": true});
    let mut pod = pod(&format!("canary-{node}"), uid);
    pod["metadata"]["namespace"] = json!("ops");
    pod["metadata"]["ownerReferences"] = json!([owner]);
    pod["spec"]["nodeName"] = json!(node);
    pod
}

fn canary_object(node: &str, uid: &str, started_minutes_ago: i64, version: Option<&str>) -> Value {
    let mut object = json!(SandboxHealth::of_pod("ops", &format!("canary-{node}"), uid, node));
    object["status"] = json!({"restarts": 0, "sandbox": {"id": uid, "startedAt": ago(started_minutes_ago), "pauseVersion": version}});
    object
}

/// The Lease of the node `n`, which reached this step [`SINCE_MINUTES`] ago.
fn lease(step: Step) -> Lease {
    lease_since(step, ago(SINCE_MINUTES).parse().unwrap())
}

fn lease_since(step: Step, since: Timestamp) -> Lease {
    let mut switch = Switch::new("n", "0.1.0", "registry.example/pause:0.1.0", Timestamp::UNIX_EPOCH);
    switch.advance(step, "no proof within 180 s", since);
    let mut lease = Lease::default();
    lease.metadata.name = Some("pause-0".to_owned());
    lease.metadata.namespace = Some("ops".to_owned());
    lease.metadata.resource_version = Some("7".to_owned());
    switch.write(&mut lease);
    lease
}

impl World {
    fn apply_lease(&mut self, lease: Lease) {
        self.watches.lease(&Event::Apply(lease));
    }

    /// Acts on the Leases for this time, and delivers Events.
    async fn roll_out(&mut self, seconds: u64) {
        let events = self.events.take().unwrap();
        let context = self.context.clone();
        let acting = async { tokio::join!(pause_rollout::run(&context), context.emitter.run(events)) };
        let _ = tokio::time::timeout(Duration::from_secs(seconds), acting).await;
    }

    fn failed_nodes(&self) -> Vec<String> {
        let text = self.context.metrics.render().unwrap();
        let series = text.lines().filter(|line| line.starts_with("sandboxhealth_pause_switch_failed{"));
        series.map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn new_canary_of_the_version_proves_the_switch() {
    let mut world = world();
    world.apply_lease(lease(Step::Switched));
    world.watches.apply_pod(canary("n", "c-1"));
    world.watches.apply_object(canary_object("n", "c-1", 4, Some("0.1.0")));
    world.roll_out(1).await;
    assert_eq!(world.requests(), ["PUT ops/leases/pause-0"]);
    let written: Lease = serde_json::from_value(world.bodies().remove(0)).unwrap();
    assert!(Switch::read(&written).unwrap().unwrap().is_proven());
    assert_eq!(written.metadata.resource_version.as_deref(), Some("7"), "the installer may have been faster");
}

#[tokio::test(start_paused = true)]
async fn proven_switch_is_not_proven_again() {
    let mut world = world();
    let mut proven = lease(Step::Switched);
    let mut switch = Switch::read(&proven).unwrap().unwrap();
    switch.proven = Some(switch.since);
    switch.write(&mut proven);
    world.apply_lease(proven);
    world.watches.apply_pod(canary("n", "c-1"));
    world.watches.apply_object(canary_object("n", "c-1", 4, Some("0.1.0")));
    world.roll_out(60).await;
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn canary_older_than_the_switch_is_deleted_once_by_its_uid() {
    let mut world = world();
    world.apply_lease(lease(Step::Switched));
    world.watches.apply_pod(canary("n", "c-1"));
    world.watches.apply_object(canary_object("n", "c-1", 60, Some("0.1.0")));
    // That of a node that is not switched.
    world.watches.apply_pod(canary("m", "c-2"));
    world.watches.apply_object(canary_object("m", "c-2", 60, None));
    world.roll_out(1).await;
    assert_eq!(world.requests(), ["DELETE ops/pods/canary-n"]);
    assert_eq!(world.bodies()[0]["preconditions"]["uid"], "c-1");
    let mut deleted = canary("n", "c-1");
    deleted["metadata"]["deletionTimestamp"] = json!(ago(0));
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    world.watches.apply_pod(deleted);
    let (base, daemon_set) = ("pause", "canary");
    assert!(pause_rollout::update(base, daemon_set, &world.context).await);
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pod_that_is_no_running_canary_of_ours_proves_nothing() {
    let changed = |pointer: &str, value: &str| {
        let mut pod = canary("n", "c-1");
        *pod.pointer_mut(pointer).unwrap() = json!(value);
        pod
    };
    for (pod, is_canary) in [
        (changed("/metadata/ownerReferences/0/name", "other"), false),
        (changed("/metadata/ownerReferences/0/kind", "ReplicaSet"), false),
        (changed("/metadata/namespace", "shop"), false),
        (changed("/status/phase", "Failed"), false),
        (canary("n", "c-1"), true),
    ] {
        let mut world = world();
        world.apply_lease(lease(Step::Switched));
        let mut object = canary_object("n", "c-1", 4, Some("0.1.0"));
        object["metadata"]["namespace"] = pod["metadata"]["namespace"].clone();
        world.watches.apply_pod(pod.clone());
        world.watches.apply_object(object);
        world.roll_out(1).await;
        assert_eq!(!world.requests().is_empty(), is_canary, "{pod}");
    }
}

#[tokio::test(start_paused = true)]
async fn canary_of_another_version_or_without_an_object_proves_nothing() {
    for object in [
        None,
        Some(canary_object("n", "c-1", 4, Some("0.0.9"))),
        Some(canary_object("n", "c-1", 4, None)),
        // That of an earlier pod of the name.
        Some(canary_object("n", "c-0", 4, Some("0.1.0"))),
    ] {
        let mut world = world();
        world.apply_lease(lease(Step::Switched));
        world.watches.apply_pod(canary("n", "c-1"));
        if let Some(object) = object {
            world.watches.apply_object(object);
        }
        world.roll_out(60).await;
        assert_eq!(world.requests(), [""; 0]);
        assert_eq!(world.failed_nodes(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_switch_has_one_event_on_its_node_from_all_leaders() {
    let (server, since) = (Arc::new(server()), ago(SINCE_MINUTES).parse().unwrap());
    let mut names = Vec::new();
    for step in [Step::Reverting, Step::Failed] {
        // A new leader for each step.
        let server = server.clone();
        let mut world = World::with_options(rollout_options(), move |request| server(request));
        world.apply_lease(lease_since(step, since));
        world.roll_out(600).await;
        assert_eq!(world.requests(), ["POST default/events"], "{step:?}");
        let event = world.bodies().remove(0);
        assert_eq!(event["regarding"]["name"], "n");
        assert_eq!(event["reason"], "PauseSwitchFailed");
        names.push(event["metadata"]["name"].clone());
        let counted = "sandboxhealth_events_total{reason=\"PauseSwitchFailed\",outcome=\"created\"} 1\n";
        assert!(world.context.metrics.render().unwrap().contains(counted), "a conflict is no failure");
    }
    assert_eq!(names[0], names[1], "the second is a conflict");
}

#[tokio::test(start_paused = true)]
async fn failed_node_has_a_series_until_its_lease_is_deleted() {
    let mut world = world();
    for step in [Step::Switching, Step::Switched] {
        world.apply_lease(lease(step));
        assert!(pause_rollout::update("pause", "canary", &world.context).await);
        assert_eq!(world.failed_nodes(), [""; 0]);
    }
    for step in [Step::Reverting, Step::Failed] {
        world.apply_lease(lease(step));
        assert!(pause_rollout::update("pause", "canary", &world.context).await);
        assert_eq!(world.failed_nodes(), ["sandboxhealth_pause_switch_failed{node=\"n\"} 1"]);
    }
    world.watches.lease(&Event::Delete(lease(Step::Failed)));
    assert!(pause_rollout::update("pause", "canary", &world.context).await);
    assert_eq!(world.failed_nodes(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn lease_of_another_name_is_ignored() {
    let mut world = world();
    let mut other = lease(Step::Failed);
    other.metadata.name = Some("other-0".to_owned());
    world.apply_lease(other);
    world.roll_out(60).await;
    assert_eq!((world.requests(), world.failed_nodes()), (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn refused_delete_is_retried_and_conflicting_proof_is_not_a_failure() {
    for (started, code, is_ok) in [(60, StatusCode::FORBIDDEN, false), (4, StatusCode::CONFLICT, true)] {
        let mut world = World::with_options(rollout_options(), move |_| Answer::Refused(code));
        world.apply_lease(lease(Step::Switched));
        world.watches.apply_pod(canary("n", "c-1"));
        world.watches.apply_object(canary_object("n", "c-1", started, Some("0.1.0")));
        assert_eq!(pause_rollout::update("pause", "canary", &world.context).await, is_ok);
        world.roll_out(60).await;
        assert!(world.requests().len() > 2, "{:?}", world.requests());
    }
}

#[tokio::test(start_paused = true)]
async fn leases_are_watched_only_with_the_options() {
    for (options, expected) in [(options(100), false), (rollout_options(), true)] {
        let (client, requests) = answering(|request| {
            if request.path.ends_with("/leases/l") || request.path.ends_with("/leases") {
                let spec = json!({"holderIdentity": "me", "leaseDurationSeconds": 15});
                Answer::Object(json!({"metadata": {"name": "l", "resourceVersion": "1"}, "spec": spec}))
            } else if request.path.contains("watch=true") {
                Answer::Silence
            } else {
                Answer::Object(json!({"metadata": {"resourceVersion": "1"}, "items": []}))
            }
        });
        let stop = tokio::time::sleep(Duration::from_secs(5));
        run(options, client, Arc::default(), Arc::default(), stop).await;
        let requests = requests.lock().unwrap();
        let lists: Vec<_> = requests.iter().filter(|request| request.path.contains("/leases?")).collect();
        assert_eq!(!lists.is_empty(), expected);
        let selector = "fieldSelector=metadata.name%21%3Dl";
        assert!(
            lists.iter().all(|list| list.path.contains("/namespaces/ops/") && list.path.contains(selector))
        );
    }
}
