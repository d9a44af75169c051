//! Requests that fail: each write succeeds in the end, once, and a failing namespace delays no other.

use super::*;

fn failures() -> Vec<fn() -> Answer> {
    vec![
        || Answer::Refused(StatusCode::TOO_MANY_REQUESTS),
        || Answer::Refused(StatusCode::SERVICE_UNAVAILABLE),
        || Answer::Silence,
        || Answer::Broken,
    ]
}

#[tokio::test(start_paused = true)]
async fn failed_write_is_retried_until_it_succeeds_and_not_once_more() {
    let patch = object("u-1", healthy());
    for object in [None, Some(patch)] {
        let left = Mutex::new(failures());
        let mut world = World::new(move |request| {
            left.lock().unwrap().pop().map_or_else(|| accepting(request), |failure| failure())
        });
        world.watches.apply_pod(pod("web", "u-1"));
        if let Some(object) = object {
            world.watches.apply_object(object);
        }
        world.run(600).await;
        assert_eq!(world.requests().len(), 5, "{:?}", world.requests());
        let metrics = world.context.metrics.render().unwrap();
        assert!(metrics.contains("sandboxhealth_reconcile_errors_total 4\n"), "{metrics}");
    }
}

#[tokio::test]
async fn backoff_grows_up_to_a_minute_and_starts_again_after_a_success() {
    let mut world = World::new(accepting);
    world.watches.apply_pod(pod("web", "u-1"));
    let pod = world.watches.index.pods.state().pop().unwrap();
    let key = kube::runtime::reflector::ObjectRef::<LeanPod>::from_obj(&*pod);
    let waits: Vec<_> = (0..10).map(|_| world.context.backoff(key.clone())).collect();
    assert!(waits[0] <= Duration::from_secs(2) && waits[9] >= Duration::from_secs(60), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(120)), "{waits:?}");
    world.context.succeeded(&key);
    assert!(world.context.backoff(key) <= Duration::from_secs(2));
    let error = failed("create the SandboxHealth object")(crate::k8s::error::ApiError::TimedOut);
    assert_ne!(on_error(pod, &error, world.context.clone()), Requeue::await_change());
}

#[tokio::test(start_paused = true)]
async fn refused_event_delays_no_condition_and_is_not_retried() {
    for code in [StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY] {
        let mut world = World::new(move |request| {
            if brief(request).ends_with("/events") { Answer::Refused(code) } else { accepting(request) }
        });
        world.watches.apply_pod(pod("web", "u-1"));
        world.watches.apply_object(object("u-1", restarted()));
        world.reconcile("web").await.unwrap();
        world.deliver(7200).await;
        assert_eq!(world.requests(), ["PATCH shop/sandboxhealths/web/status", "POST shop/events"]);
        assert_eq!(world.bodies()[0]["status"]["conditions"][0]["reason"], "SandboxRestarted");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_conditions_do_not_hold_back_the_event() {
    let mut world =
        World::new(
            |request| {
                if request.method == Method::PATCH { Answer::Silence } else { accepting(request) }
            },
        );
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-1", restarted()));
    world.reconcile("web").await.unwrap_err();
    world.deliver(1).await;
    assert_eq!(world.requests()[1], "POST shop/events");
}

#[tokio::test]
async fn terminating_namespace_is_left_alone() {
    let mut world = World::new(|_| {
        let cause =
            json!([{"reason": "NamespaceTerminating", "message": "namespace shop is being terminated"}]);
        let status = json!({"status": "Failure", "message": "forbidden", "reason": "Forbidden", "code": 403, "details": {"causes": cause}});
        Answer::RefusedWith(StatusCode::FORBIDDEN, status)
    });
    world.watches.apply_pod(pod("web", "u-1"));
    assert_eq!(world.reconcile("web").await.unwrap(), Requeue::await_change());
}

#[tokio::test(start_paused = true)]
async fn namespace_whose_requests_hang_does_not_delay_others() {
    let mut world =
        World::new(
            |request| {
                if brief(request).contains("slow/") { Answer::Silence } else { accepting(request) }
            },
        );
    let in_namespace = |namespace: &str, name: &str| {
        let mut pod = pod(name, name);
        pod["metadata"]["namespace"] = json!(namespace);
        pod
    };
    world.watches.list_pods((0..200).map(|index| in_namespace("slow", &format!("slow-{index}"))));
    let start = tokio::time::Instant::now();
    let context = world.context.clone();
    let (all, later) = (super::super::reconcile_all(context), async {
        // Each of the slow pods failed or waits.
        tokio::time::sleep(Duration::from_secs(60)).await;
        world.watches.apply_pod(in_namespace("shop", "web"));
        std::future::pending::<()>().await;
    });
    let _ = tokio::time::timeout(Duration::from_secs(80), async { tokio::join!(all, later) }).await;
    let requests = world.requests.lock().unwrap();
    let web = requests.iter().find(|request| brief(request).contains("shop/")).expect("no request for web");
    assert!(web.at - start <= Duration::from_secs(61), "{:?}", web.at - start);
    assert!(requests.len() < 60, "{}", requests.len());
}

#[tokio::test]
async fn outdated_crd_makes_the_controller_unready() {
    let mut world = World::new(|_| {
        let status = json!({"status": "Failure", "message": ".status.x: field not declared in schema", "reason": "", "code": 500});
        Answer::RefusedWith(StatusCode::INTERNAL_SERVER_ERROR, status)
    });
    world.watches.apply_pod(pod("web", "u-1"));
    world.watches.apply_object(object("u-1", healthy()));
    world.reconcile("web").await.unwrap_err();
    assert!(world.context.readiness.reasons().starts_with("CRD: "), "{}", world.context.readiness.reasons());
}
