//! Objects of pods that are not watched: who made them is not known, and they are deleted.

use super::*;
use crate::controller::strays::look;

fn not_sharing() -> Value {
    let mut pod = pod("u-1");
    pod["spec"]["shareProcessNamespace"] = json!(false);
    pod
}

/// One look in a world where no pod is kept, and there is this object.
async fn looked(
    watch_pods: WatchPods,
    object: Value,
    script: impl IntoIterator<Item = Exchange>,
) -> Vec<Value> {
    let world = World::new(Setting { watch_pods, ..USUAL }, pod("u-1"), Some(object), script);
    look(&world.context).await;
    world.end().await
}

#[tokio::test]
async fn an_object_of_a_pod_that_is_not_watched_is_deleted_by_its_uid() {
    let script = [(Method::GET, POD, Answer::Object(not_sharing())), taken(Method::DELETE, DELETE)];
    let sent = looked(WatchPods::SharedPidNamespace, object("u-1", restarted()), script).await;
    assert_eq!(sent[1]["preconditions"], json!({"uid": "o-1"}));
}

#[tokio::test]
async fn an_object_is_left_to_a_pod_that_is_watched_or_gone() {
    let object = object("u-1", json!({}));
    for (watch_pods, live) in [
        (WatchPods::SharedPidNamespace, Answer::Object(pod("u-1"))),
        (WatchPods::All, Answer::Object(not_sharing())),
        (WatchPods::SharedPidNamespace, Answer::Refused(StatusCode::NOT_FOUND)),
    ] {
        looked(watch_pods, object.clone(), [(Method::GET, POD, live)]).await;
    }
}

#[tokio::test]
async fn nothing_is_asked_where_the_pod_is_one_that_is_looked_after() {
    let mut world = World::new(USUAL, pod("u-1"), Some(object("u-1", json!({}))), []);
    world.brings_pod(pod("u-1"));
    look(&world.context).await;
    world.end().await;
}

#[tokio::test]
async fn nothing_is_asked_of_an_object_that_is_going_or_not_understood() {
    let mut going = object("u-1", json!({}));
    going["metadata"]["deletionTimestamp"] = json!(READY);
    let mut later = object("u-1", json!({}));
    later["spec"] = json!({"pod": "web"});
    for object in [going, later] {
        looked(WatchPods::SharedPidNamespace, object, []).await;
    }
}

#[tokio::test]
async fn what_fails_is_tried_at_the_next_look() {
    let script = [
        (Method::GET, POD, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)),
        (Method::GET, POD, Answer::Object(not_sharing())),
        (Method::DELETE, DELETE, Answer::Refused(StatusCode::TOO_MANY_REQUESTS)),
        (Method::GET, POD, Answer::Object(not_sharing())),
        (Method::DELETE, DELETE, Answer::Refused(StatusCode::NOT_FOUND)),
    ];
    let world = World::new(USUAL, pod("u-1"), Some(object("u-1", json!({}))), script);
    for _ in 0..3 {
        look(&world.context).await;
    }
    world.end().await;
}
