//! Writes that fail: what matters is written in the end, once, and what matters no more is not.

use super::*;

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
        (NO_AGENT, Some(object("u-1", counted)), Method::PATCH, REPORT),
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
    let waits: Vec<_> = (0..8).map(|_| world.context.wait_after_failure(&world.kept())).collect();
    assert!(waits[0] <= Duration::from_secs(1) && waits[7] > Duration::from_secs(30), "{waits:?}");
}

/// Everything but the watches' connections, for two minutes. The pod is deleted after `deleted_after` if that is sooner.
async fn run(deleted_after: Duration, script: impl IntoIterator<Item = Exchange>) -> Arc<ControllerMetrics> {
    let mut world = World::new(USUAL, pod("u-1"), None, script);
    world.brings_pod(pod("u-1"));
    let World { context, pod, again, served, .. } = world;
    let (metrics, lookout) = (context.metrics.clone(), context.lookout.clone());
    let work = look_after_all(again, context);
    let delete = async move {
        tokio::time::sleep(deleted_after).await;
        lookout.pods_changed(&Event::Delete(pod));
        std::future::pending::<()>().await;
    };
    let both = async { tokio::join!(work, delete) };
    tokio::time::timeout(Duration::from_secs(120), both).await.unwrap_err();
    served.await.unwrap();
    metrics
}

fn shows(metrics: &ControllerMetrics, lines: &[&str]) {
    let text = metrics.render().unwrap();
    for line in lines {
        assert!(text.lines().any(|shown| shown == *line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_matters_is_made_until_it_gets_through_and_not_once_more() {
    let failures = Scenario::ALL.into_iter().filter(|scenario| !matches!(scenario, Scenario::Conflict));
    let failures = failures.map(|scenario| (Method::POST, CREATE, scenario.answer()));
    let tries = failures.clone().count() + 1;
    let metrics = run(Duration::from_secs(200), failures.chain([taken(Method::POST, CREATE)])).await;
    let line = |name: &str, count: usize| format!("workqueue_{name}{{name=\"pods\"}} {count}");
    let lines = [
        line("adds_total", tries),
        line("retries_total", tries - 1),
        line("queue_duration_seconds_count", tries),
        line("work_duration_seconds_count", tries),
        line("depth", 0),
    ];
    shows(&metrics, &lines.each_ref().map(String::as_str));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_available_is_asked_ever_more_seldom() {
    let (client, asked) = answering(|_| Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    let mut world = World::new(USUAL, pod("u-1"), None, []);
    Arc::get_mut(&mut world.context).unwrap().client = client;
    world.brings_pod(pod("u-1"));
    let World { context, again, .. } = world;
    tokio::time::timeout(Duration::from_secs(300), look_after_all(again, context)).await.unwrap_err();
    let moments: Vec<_> = asked.lock().unwrap().iter().map(|asked| asked.at).collect();
    let gaps: Vec<_> = moments.windows(2).map(|two| two[1] - two[0]).collect();
    for (failures, gap) in (0..).zip(&gaps) {
        let most = Duration::from_secs(1 << failures.min(6)).min(Duration::from_secs(60));
        // The scheduler's clock ticks in milliseconds.
        assert!(*gap > most / 2 && *gap <= most + Duration::from_millis(2), "{gaps:?}");
    }
    assert!(gaps.len() > 8, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_for_a_pod_that_is_gone_is_not_made_again() {
    let unavailable = (Method::POST, CREATE, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    let metrics = run(Duration::from_millis(100), [unavailable]).await;
    let lines = [
        // At first, for another try, and since it is gone.
        "workqueue_adds_total{name=\"pods\"} 3",
        "workqueue_work_duration_seconds_count{name=\"pods\"} 1",
        "workqueue_depth{name=\"pods\"} 0",
    ];
    shows(&metrics, &lines);
}
