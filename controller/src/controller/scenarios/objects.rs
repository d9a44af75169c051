//! Which objects are made, made again and left alone.

use super::*;

#[tokio::test]
async fn a_pod_without_an_object_gets_one() {
    let (outcome, _) = looked_after(pod("u-1"), None, [taken(Method::POST, CREATE)]).await;
    outcome.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_gets_none() {
    let mut deleted = pod("u-1");
    deleted["metadata"]["deletionTimestamp"] = json!(READY);
    looked_after(deleted, None, []).await.0.unwrap();
}

#[tokio::test]
async fn nothing_is_done_before_agents_nodes_and_objects_are_known() {
    let (again, _asked) = mpsc::unbounded();
    let agents = "component=agent".parse().unwrap();
    let scope = Scope {
        watch_pods: WatchPods::SharedPidNamespace,
        agents,
        nodes: Selector::default(),
        namespace: "ops".to_owned(),
    };
    let mut world = World::new(USUAL, pod("u-1"), None, []);
    let context = Arc::get_mut(&mut world.context).unwrap();
    context.lookout = Arc::new(Lookout::new(scope, again));
    let turn = reconcile(PodKey::of(&world.pod.metadata), world.context.clone());
    tokio::time::timeout(Duration::from_millis(50), turn).await.unwrap_err();
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn all_pods_that_waited_for_it_are_looked_after_once_all_is_known() {
    let (client, asked) = answering(|_| Answer::Object(object("u-1", json!({}))));
    let mut world = World::new(USUAL, pod("u-1"), None, []);
    let (again, queue) = mpsc::unbounded();
    let lookout = Arc::new(lookout(&USUAL, again));
    let context = Arc::get_mut(&mut world.context).unwrap();
    let (store, mut objects) = reflector::store();
    (context.client, context.lookout, context.objects) = (client, lookout.clone(), store);
    for name in ["a", "b", "c"] {
        let mut pod = pod(&format!("u-{name}"));
        pod["metadata"]["name"] = json!(name);
        lookout.pods_changed(&Event::Apply(serde_json::from_value(pod).unwrap()));
    }
    let context = world.context;
    let list = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(asked.lock().unwrap().is_empty());
        lookout.objects_changed(Event::InitDone, &mut objects);
        std::future::pending::<()>().await;
    };
    let both = async { tokio::join!(look_after_all(queue, context), list) };
    tokio::time::timeout(Duration::from_secs(2), both).await.unwrap_err();
    let mut made: Vec<_> =
        asked.lock().unwrap().iter().map(|asked| asked.body["spec"]["podName"].clone()).collect();
    made.sort_by_key(Value::to_string);
    made.dedup();
    assert_eq!(made, ["a", "b", "c"]);
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
    assert_eq!(outcome.unwrap(), None);
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
    assert_ne!(world.look().await.unwrap(), None, "there may be room later");
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
