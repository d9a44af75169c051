//! Objects without an observed pod.

use super::super::gc::{Checks, search};
use super::*;

/// Searches every 30 s for this time.
async fn searched(world: &World, seconds: u64) -> Vec<String> {
    let mut checks = Checks::default();
    for _ in 0..=seconds / 30 {
        search(&world.context, &mut checks).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    world.requests()
}

fn without_owner() -> Value {
    let mut object = object("u-1", healthy());
    object["metadata"]["ownerReferences"] = json!([]);
    object
}

fn gone(request: &Received) -> Answer {
    if request.method == Method::GET { Answer::Refused(StatusCode::NOT_FOUND) } else { accepting(request) }
}

const BOTH: [&str; 2] = ["GET shop/pods/web", "DELETE shop/sandboxhealths/web"];

#[tokio::test(start_paused = true)]
async fn orphan_of_a_deleted_pod_is_deleted() {
    let mut foreign = without_owner();
    foreign["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u-9"}]);
    for orphan in [without_owner(), foreign] {
        let mut world = World::new(gone);
        world.watches.apply_object(orphan);
        assert_eq!(searched(&world, 60).await, BOTH);
        assert_eq!(world.bodies()[1]["preconditions"], json!({"uid": "o-u-1"}));
    }
}

#[tokio::test(start_paused = true)]
async fn object_that_its_deleted_pod_owns_is_left_to_the_garbage_collector() {
    let mut world = World::new(gone);
    world.watches.apply_object(object("u-1", healthy()));
    let requests = searched(&world, 24 * 3600).await;
    assert!(requests.iter().all(|request| request == "GET shop/pods/web"), "{requests:?}");
    assert!(requests.len() < 35, "about one an hour: {}", requests.len());
}

#[tokio::test(start_paused = true)]
async fn object_of_a_pod_that_is_not_observed_is_deleted() {
    let mut world = World::new(|request| {
        let mut own = pod("web", "u-1");
        own["spec"] = json!({"nodeName": "n", "containers": []});
        if request.method == Method::GET { Answer::Object(own) } else { accepting(request) }
    });
    world.watches.apply_object(object("u-1", healthy()));
    assert_eq!(searched(&world, 60).await, BOTH);
}

#[tokio::test(start_paused = true)]
async fn empty_cache_of_pods_deletes_nothing() {
    // The API server has the pod, and the cache does not.
    let mut world = World::new(|request| {
        let mut live = pod("web", "u-1");
        live["spec"]["containers"] = json!([]);
        if request.method == Method::GET { Answer::Object(live) } else { accepting(request) }
    });
    world.watches.apply_object(without_owner());
    let requests = searched(&world, 600).await;
    assert!(requests.iter().all(|request| request == "GET shop/pods/web"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn object_of_a_cached_pod_costs_no_request() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-1", healthy()));
    world.watches.object(Event::Init);
    assert!(searched(&world, 600).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn deleted_namespace_with_thousands_of_objects_costs_few_requests() {
    let mut world = World::new(gone);
    for index in 0..2000 {
        let mut object = object("u-1", healthy());
        object["metadata"]["name"] = json!(format!("web-{index}"));
        object["metadata"]["uid"] = json!(format!("o-{index}"));
        world.watches.apply_object(object);
    }
    let requests = searched(&world, 120).await;
    assert!(requests.len() <= 100, "{}", requests.len());
}
