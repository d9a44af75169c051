//! Which objects are created, deleted, updated and left alone.

use super::*;

#[tokio::test]
async fn observed_pod_gets_an_object_that_it_owns() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests(), ["POST shop/sandboxhealths"]);
    let body = &world.bodies()[0];
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u-1");
    assert_eq!(body["spec"], json!({"podName": "web", "podUID": "u-1", "nodeName": "n"}));
}

#[tokio::test]
async fn stale_object_is_deleted_by_its_uid() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-0", healthy()));
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests(), ["GET shop/pods/web", "DELETE shop/sandboxhealths/web"]);
    assert_eq!(world.bodies()[1]["preconditions"], json!({"uid": "o-u-0"}));
}

#[tokio::test]
async fn object_of_a_newer_pod_than_the_cached_one_is_not_deleted() {
    for newer in [Answer::Object(pod("web", "u-2")), Answer::Refused(StatusCode::NOT_FOUND)] {
        let newer = Mutex::new(Some(newer));
        let mut world = World::new(move |_| newer.lock().unwrap().take().unwrap());
        world.watches.apply_pod(pod("web", "u-1"));
        world.watches.apply_object(object("u-2", healthy()));
        world.reconcile("web").await.unwrap();
        assert_eq!(world.requests(), ["GET shop/pods/web"]);
    }
}

#[tokio::test]
async fn object_that_cannot_be_read_is_left_alone() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    let mut unreadable = object("u-1", healthy());
    unreadable["spec"]["nodeName"] = json!(7);
    world.watches.apply_object(unreadable);
    world.reconcile("web").await.unwrap();
    assert!(world.requests().is_empty());
}

#[tokio::test]
async fn enum_values_and_fields_of_a_newer_version_are_no_obstacle() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    let mut status = restarted();
    status["source"] = json!("Telepathy");
    status["lastRestart"]["reason"] = json!("SolarFlare");
    status["telepathy"] = json!({"strength": 7});
    world.watches.apply_object(object("u-1", status));
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests(), ["PATCH shop/sandboxhealths/web/status"]);
}

#[tokio::test]
async fn conditions_are_written_only_when_they_change() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-1", healthy()));
    world.reconcile("web").await.unwrap();
    // The watch is behind.
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests(), ["PATCH shop/sandboxhealths/web/status"]);
    assert_eq!(world.bodies()[0]["status"]["conditions"][0]["reason"], "SandboxHealthy");
    world.watches.apply_object(object("u-1", evaluated(healthy())));
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test]
async fn write_that_changed_nothing_is_not_waited_for() {
    let mut world = World::new(|_| Answer::Object(object("u-1", json!({}))));
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-1", healthy()));
    for _ in 0..2 {
        world.reconcile("web").await.unwrap();
    }
    assert_eq!(world.requests().len(), 2, "the watch brings no newer version");
}

/// The agent writes 8 while the controller writes 9: neither 7, which the controller knew, nor 8 has its conditions.
#[tokio::test(start_paused = true)]
async fn write_of_the_agent_in_between_is_no_reason_for_another() {
    let versioned = |version: &str, status| {
        let mut object = object("u-1", status);
        object["metadata"]["resourceVersion"] = json!(version);
        object
    };
    let mut world = World::new(move |_| Answer::Object(versioned("9", json!({}))));
    world.watches.apply_pod(pod("web", "u-1"));
    for version in ["7", "8"] {
        world.watches.apply_object(versioned(version, healthy()));
        world.reconcile("web").await.unwrap();
        assert_eq!(world.requests().len(), 1, "{version}");
    }
    world.watches.apply_object(versioned("9", evaluated(healthy())));
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests().len(), 1);
    // After the restore of a backup of etcd versions are lower for good.
    world.watches.apply_object(versioned("3", healthy()));
    assert_eq!(world.reconcile("web").await.unwrap(), Requeue::requeue(Duration::from_secs(10)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.reconcile("web").await.unwrap();
    assert_eq!(world.requests().len(), 2);
}

#[tokio::test]
async fn limit_counts_objects_of_pods_that_are_not_finished() {
    let mut world = World::with_max_objects(1, accepting);
    let mut finished = pod("web", "u-1");
    finished["status"]["phase"] = json!("Succeeded");
    world.watches.list_pods([finished, pod("a", "u-a"), pod("b", "u-b")]);
    world.watches.apply_object(object("u-1", healthy()));
    world.context.update_room();
    for name in ["a", "b", "b"] {
        world.reconcile(name).await.unwrap();
    }
    assert_eq!(world.requests(), ["POST shop/sandboxhealths"], "there was room for one");
    assert!(world.context.metrics.render().unwrap().contains("\nsandboxhealth_objects 0\n"));
}

#[tokio::test]
async fn finished_pod_gets_no_object() {
    let mut world = World::new(accepting);
    let mut finished = pod("web", "u-1");
    finished["status"]["phase"] = json!("Failed");
    world.watches.apply_pod(finished);
    world.reconcile("web").await.unwrap();
    assert!(world.requests().is_empty());
}

fn not_created() -> Value {
    json!({"restarts": 0, "readFailure": {"reason": "SandboxNotCreated", "message": "no sandbox"}})
}

/// A server with one Event of the kubelet, or none.
fn with_warning(note: Option<&'static str>) -> impl Fn(&Received) -> Answer {
    move |request| {
        if request.method != Method::GET {
            return accepting(request);
        }
        let event = |note| json!({"metadata": {}, "eventTime": null, "note": note});
        let events: Vec<_> = note.map(event).into_iter().collect();
        Answer::Object(
            json!({"kind": "EventList", "apiVersion": "events.k8s.io/v1", "metadata": {}, "items": events}),
        )
    }
}

#[tokio::test(start_paused = true)]
async fn sandbox_that_cannot_be_created_is_unknown_with_the_kubelets_warning() {
    let mut world = World::new(with_warning(Some("Failed to create pod sandbox:\nno address")));
    let mut mirror = pod("web", "u-1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    world.watches.apply_pod(mirror);
    world.watches.apply_object(object("u-1", not_created()));
    assert_eq!(world.reconcile("web").await.unwrap(), Requeue::requeue(Duration::from_secs(60)));
    assert_eq!(world.requests(), ["GET shop/events", "PATCH shop/sandboxhealths/web/status"]);
    let list = world.requests.lock().unwrap()[0].path.clone();
    assert!(list.contains("regarding.uid%3Dhash%2Ctype%3DWarning%2CreportingController%3Dkubelet"), "{list}");
    let condition = world.bodies()[1]["status"]["conditions"][0].clone();
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("Unknown"), &json!("SandboxNotCreated"))
    );
    assert_eq!(condition["message"], "no sandbox; kubelet: Failed to create pod sandbox: no address");
    // The message stays, and Events are listed again after five minutes.
    let mut known = not_created();
    known["conditions"] = world.bodies()[1]["status"]["conditions"].clone();
    let mut known = object("u-1", known);
    known["metadata"]["resourceVersion"] = json!("8");
    world.watches.apply_object(known);
    for (seconds, requests) in [(0, 2), (299, 2), (1, 3), (0, 3)] {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        world.reconcile("web").await.unwrap();
        assert_eq!(world.requests().len(), requests, "{seconds}");
    }
}

#[tokio::test]
async fn sandbox_that_is_not_created_is_unknown_without_warning_too() {
    let refused = |request: &Received| match request.method {
        Method::GET => Answer::Refused(StatusCode::FORBIDDEN),
        _ => accepting(request),
    };
    for mut world in [World::new(with_warning(None)), World::new(refused)] {
        world.watches.apply_pod(pod("web", "u-1"));
        world.watches.apply_object(object("u-1", not_created()));
        world.reconcile("web").await.unwrap();
        assert_eq!(world.bodies()[1]["status"]["conditions"][0]["message"], "no sandbox");
    }
}

#[tokio::test(start_paused = true)]
async fn lists_of_events_are_limited() {
    let mut world = World::new(with_warning(None));
    let names: Vec<_> = (0..40).map(|number| format!("web-{number}")).collect();
    world.watches.list_pods(names.iter().map(|name| pod(name, &format!("u-{name}"))));
    for name in &names {
        let mut object = json!(SandboxHealth::of_pod("shop", name, &format!("u-{name}"), "n"));
        object["status"] = not_created();
        world.watches.apply_object(object);
        world.reconcile(name).await.unwrap();
    }
    let lists = world.requests().iter().filter(|request| request.starts_with("GET")).count();
    assert_eq!((lists, world.requests().len()), (10, 50));
}

#[tokio::test(start_paused = true)]
async fn missing_agent_is_reported_with_the_message_of_its_refusal() {
    let mut world = World::new(|request| match with_warning(Some("Error creating: no hostPID"))(request) {
        Answer::Object(mut list) if request.path.contains("/events?") => {
            list["items"][0]["reason"] = json!("FailedCreate");
            Answer::Object(list)
        }
        answer => answer,
    });
    world.watches.list_pods([pod("web", "u-1")]);
    for wait in [0, 60] {
        world.watches.index.update_agents(Instant::now() + Duration::from_secs(wait));
    }
    let messages = async |world: &mut World, desired: i32, failing: i32| {
        let mut object = object("u-1", healthy());
        object["metadata"]["resourceVersion"] = json!(format!("9{desired}"));
        world.watches.apply_object(object);
        world.watches.daemon_set(&Event::Apply(daemon_set(desired)));
        agent_events::update(&world.context).await;
        world.context.index.export_agents(&world.context.metrics);
        let metrics = world.context.metrics.render().unwrap();
        assert!(
            metrics.contains(&format!("\nsandboxhealth_agent_creation_failing {failing}\n")),
            "{metrics}"
        );
        world.reconcile("web").await.unwrap();
        world.bodies().last().unwrap()["status"]["conditions"][0]["message"].clone()
    };
    let missing = "no sandbox-health agent runs on node n; see the DaemonSet's events";
    assert_eq!(messages(&mut world, 1, 1).await, format!("{missing}; agents cannot be created: no hostPID"));
    let list = world.requests.lock().unwrap()[0].path.clone();
    assert!(list.contains("/namespaces/ops/events?") && list.contains("regarding.uid%3Dd"), "{list}");
    // No agent is wanted there any more.
    assert_eq!(messages(&mut world, 0, 0).await, missing);
    assert_eq!(world.requests().iter().filter(|request| request.starts_with("GET")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn terminating_pod_is_marked_unknown_once_after_grace() {
    let mut world = World::new(accepting);
    let mut deleted = pod("web", "u-1");
    deleted["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(3600);
    world.watches.apply_object(object("u-1", evaluated(healthy())));
    world.watches.apply_pod(deleted);
    assert_eq!(world.reconcile("web").await.unwrap(), Requeue::requeue(Duration::from_secs(3660)));
    assert!(world.requests().is_empty());
    tokio::time::sleep(Duration::from_secs(3660)).await;
    for _ in 0..2 {
        world.reconcile("web").await.unwrap();
    }
    assert_eq!(world.requests().len(), 1);
    assert_eq!(world.bodies()[0]["status"]["conditions"][0]["reason"], "PodTerminating");
}

#[tokio::test]
async fn new_leader_repeats_the_events_of_the_last_hour() {
    for _leader in 0..2 {
        let mut world = World::new(|request| {
            if brief(request).ends_with("/events") {
                Answer::Refused(StatusCode::CONFLICT)
            } else {
                accepting(request)
            }
        });
        world.watches.apply_pod(pod("web", "u-1"));
        world.watches.apply_object(object("u-1", evaluated(restarted())));
        world.reconcile("web").await.unwrap();
        world.reconcile("web").await.unwrap();
        world.deliver(1).await;
        assert_eq!(world.requests(), ["POST shop/events"]);
        assert!(world.context.metrics.render().unwrap().contains("outcome=\"created\"} 1"));
    }
}

#[tokio::test]
async fn event_of_a_mirror_pod_regards_the_hash_of_its_manifest() {
    let mut world = World::new(accepting);
    let mut mirror = pod("web", "u-1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    world.watches.apply_pod(mirror);
    world.watches.apply_object(object("u-1", evaluated(restarted())));
    world.reconcile("web").await.unwrap();
    world.deliver(1).await;
    assert_eq!(world.bodies()[0]["regarding"]["uid"], "hash");
}
