//! What is judged and told, and how often.

use super::*;
use crate::authorship::fake::{edit, note_as_ours};

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

/// A row with a restart that was told of, as agent and controller wrote it.
fn written_by_us() -> Value {
    let mut told = restarted();
    told["announcedRestarts"] = json!(1);
    let mut row = object("u-1", judged(told, Sight::Seen));
    note_as_ours(&mut row);
    row
}

#[tokio::test]
async fn what_somebody_wrote_into_a_row_is_neither_told_nor_judged_until_the_agent_made_it_right() {
    let zombies = json!({"zombies": 99, "zombiesPeak": 99, "total": 99, "observedAt": READY, "accumulatingSince": READY});
    for (path, lie) in [
        (&["restarts"][..], json!(0)),
        (&["restarts"], json!(99)),
        (&["sandbox", "id"], json!("z")),
        (&["processes"], zombies),
        (&["source"], json!("PodConditions")),
    ] {
        let mut row = written_by_us();
        edit(&mut row, path, lie);
        looked_after(pod("u-1"), Some(row), []).await.0.unwrap();
    }
}

#[tokio::test]
async fn what_somebody_wrote_of_the_controllers_is_written_again_and_not_told() {
    let mut announced = written_by_us();
    edit(&mut announced, &["announcedRestarts"], json!(0));
    let mut row = written_by_us();
    let mut conditions = row["status"]["conditions"].clone();
    for condition in conditions.as_array_mut().unwrap() {
        condition["status"] = json!("False");
    }
    edit(&mut row, &["conditions"], conditions);
    for row in [announced, row] {
        let (outcome, bodies) = looked_after(pod("u-1"), Some(row), [taken(Method::PATCH, STATUS)]).await;
        outcome.unwrap();
        let status = &bodies[0]["status"];
        assert_eq!(status["announcedRestarts"], 1);
        assert_eq!(status["conditions"][0]["reason"], written_by_us()["status"]["conditions"][0]["reason"]);
    }
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

const FINISHED: &str = "all containers of the pod have ended; its sandbox is not watched any more";

#[tokio::test]
async fn a_pod_that_goes_costs_nothing_and_one_that_does_not_is_said_to_be_unknown_once() {
    let deleted = |seconds| {
        let mut pod = pod("u-1");
        let asked = Timestamp::now() - SignedDuration::from_secs(seconds);
        pod["metadata"]["deletionTimestamp"] = json!((asked + SignedDuration::from_secs(30)).to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        pod
    };
    let healthy = judged(
        json!({"restarts": 0, "announcedRestarts": 0, "sandbox": {"id": "a", "startedAt": READY}}),
        Sight::Seen,
    );
    let row = object("u-1", healthy.clone());
    looked_after(deleted(50), Some(row.clone()), []).await.0.unwrap();
    let (outcome, bodies) = looked_after(deleted(70), Some(row), [taken(Method::PATCH, STATUS)]).await;
    outcome.unwrap();
    let conditions = bodies[0]["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|has| has["status"] == "Unknown" && has["reason"] == "PodTerminating"));
    let mut told = healthy.clone();
    told["conditions"] = bodies[0]["status"]["conditions"].clone();
    let mut ended = deleted(90);
    looked_after(ended.clone(), Some(object("u-1", told.clone())), []).await.0.unwrap();
    ended["status"]["phase"] = json!("Succeeded");
    looked_after(ended.clone(), Some(object("u-1", told.clone())), []).await.0.unwrap();
    // One that was finished before stays so.
    for condition in told["conditions"].as_array_mut().unwrap() {
        (condition["reason"], condition["message"]) = (json!("PodFinished"), json!(FINISHED));
    }
    looked_after(ended, Some(object("u-1", told)), []).await.0.unwrap();
}

#[tokio::test]
async fn a_restart_that_nobody_told_of_is_told_of_while_its_pod_goes_and_nothing_else_is_written() {
    let mut going = pod("u-1");
    going["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
    let unavailable = (Method::POST, EVENTS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    let script = [unavailable, taken(Method::POST, EVENTS)];
    let mut status = restarted();
    status["processes"] =
        json!({"zombies": 7, "zombiesPeak": 7, "total": 9, "observedAt": READY, "accumulatingSince": READY});
    let world = World::new(USUAL, going, Some(object("u-1", status)), script);
    world.look().await.unwrap_err();
    for _ in 0..2 {
        assert!(world.look().await.unwrap().is_some(), "it is looked at once more, if it stays");
    }
    assert_eq!(world.end().await[1]["reason"], "SandboxRestarted");
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

/// A status with restarts so many seconds ago, and an earlier sandbox for each.
fn restarted_ago(restarts: i64, seconds: &[i64]) -> Value {
    let ago = |seconds: &i64| (Timestamp::now() - SignedDuration::from_secs(*seconds)).to_string();
    let began = seconds[1..].iter().map(ago).chain([READY.to_owned()]);
    let past = |(number, began)| json!({"sandboxID": format!("past-{number}"), "startedAt": began, "reason": "PauseExited"});
    let mut status = restarted();
    status["restarts"] = json!(restarts);
    status["announcedRestarts"] = Value::Null;
    status["history"] = began.enumerate().map(past).collect();
    status["lastRestart"]["time"] = json!(ago(&seconds[0]));
    status
}

#[tokio::test]
async fn a_row_that_is_made_again_tells_of_no_restart_whose_event_has_expired() {
    let script = [taken(Method::PATCH, STATUS), taken(Method::PATCH, STATUS)];
    let mut world = World::new(USUAL, pod("u-1"), Some(object("u-1", json!({}))), script);
    world.look().await.unwrap();
    world.brings(object("u-1", restarted_ago(9, &[4000, 5000, 6000, 7000, 8000])));
    world.look().await.unwrap();
    let bodies = world.end().await;
    assert_eq!(bodies[0]["status"]["announcedRestarts"], Value::Null, "nobody knows yet");
    assert_eq!(bodies[1]["status"]["announcedRestarts"], 9);
}

#[tokio::test]
async fn a_restart_after_somebody_edited_their_number_is_told_of() {
    let script = [
        (Method::POST, EVENTS, Answer::Refused(StatusCode::CONFLICT)),
        taken(Method::POST, EVENTS),
        taken(Method::PATCH, STATUS),
    ];
    let mut status = restarted_ago(2, &[5, 60]);
    status["announcedRestarts"] = json!(99);
    let world = World::new(USUAL, pod("u-1"), Some(object("u-1", status)), script);
    world.context.storms().told_singly("u-1", 99, Timestamp::now());
    world.look().await.unwrap();
    let bodies = world.end().await;
    assert!(bodies[1]["note"].as_str().unwrap().starts_with("Sandbox restart 2:"), "{}", bodies[1]);
    assert_eq!(bodies[2]["status"]["announcedRestarts"], 2);
}

#[tokio::test]
async fn what_was_written_is_not_written_again_before_the_watch_has_brought_it() {
    let script = [taken(Method::POST, EVENTS), taken(Method::PATCH, STATUS), taken(Method::PATCH, STATUS)];
    let mut world = World::new(USUAL, pod("u-1"), Some(object("u-1", restarted())), script);
    for _ in 0..3 {
        world.look().await.unwrap();
    }
    // Somebody took it away meanwhile: that is another version, and written anew.
    let mut object = object("u-1", restarted());
    object["metadata"]["resourceVersion"] = json!("8");
    world.brings(object);
    world.look().await.unwrap();
    assert_eq!(world.end().await.len(), 3);
}

#[tokio::test]
async fn what_was_told_of_is_not_summed_up_though_it_could_not_be_noted() {
    let script = [
        taken(Method::POST, EVENTS),
        (Method::PATCH, STATUS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)),
        taken(Method::PATCH, STATUS),
    ];
    let world = World::new(USUAL, pod("u-1"), Some(object("u-1", restarted())), script);
    others_are_told_of(&world, 19, Timestamp::now());
    assert!(matches!(world.look().await, Err(ReconcileError::Apply(_))));
    world.look().await.unwrap();
    assert!(world.context.storms().due(Timestamp::now() + SignedDuration::from_secs(6)).is_empty());
    assert_eq!(world.end().await[2]["status"]["announcedRestarts"], 1);
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
    others_are_told_of(&world, 20, now);
    world.look().await.unwrap();
    let mut attempts = Attempts::default();
    tell(&world.context, &mut attempts, now).await;
    tell(&world.context, &mut attempts, Timestamp::now() + SignedDuration::from_secs(6)).await;
    assert_eq!(world.again.try_recv().unwrap(), PodKey::new("shop", "web"));
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
        pod: PodKey::new("shop", "web"),
        restarts: 1,
        untold: 1,
        reasons: [].into(),
    };
    for pod in 0..21 {
        world.context.storms().ask(
            "n",
            Restarted { uid: format!("u-{pod}"), pod: PodKey::new("shop", &pod.to_string()), ..many.clone() },
            now,
        );
    }
    let mut attempts = Attempts::default();
    for second in [6, 6, 7] {
        tell(&world.context, &mut attempts, now + SignedDuration::from_secs(second)).await;
    }
    let bodies = world.end().await;
    assert_eq!(bodies[0]["metadata"]["name"], bodies[1]["metadata"]["name"]);
}
