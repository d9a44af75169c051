//! A leader that follows another, which died between an Event and the note of it.

use super::*;
use crate::controller::events::{due, event, summary_event};
use crate::controller::storm::Summary;

/// The next page of the list of Events.
const NEXT: &str = "/apis/events.k8s.io/v1/events?&fieldSelector=reportingController%3Dsandboxhealth.dev%2Fcontroller&limit=500&continue=more";

fn page(path: &'static str, events: &[Value], next: &str) -> Exchange {
    let list = json!({"metadata": {"resourceVersion": "9", "continue": next}, "items": events});
    (Method::GET, path, Answer::Object(list))
}

/// As the leader before made it.
fn of_one() -> Value {
    let object = serde_json::from_value(object("u-1", restarted())).unwrap();
    json!(event(&object, &due(&object, 0)[0], "before", Timestamp::now()))
}

/// The same, of many.
fn of_many() -> Value {
    let web = Restarted {
        uid: "u-1".to_owned(),
        pod: PodKey::new("shop", "web"),
        restarts: 1,
        untold: 1,
        reasons: [("PauseExited", 1)].into(),
    };
    let summary = Summary { node: "n".to_owned(), pods: [(web.pod.clone(), web)].into() };
    json!(summary_event(&summary, None, "before", Timestamp::now()))
}

fn twice_restarted() -> Value {
    let mut status = restarted();
    status["restarts"] = json!(2);
    let first = status["history"][0].clone();
    status["history"] = json!([{"sandboxID": "b", "startedAt": READY_AGAIN, "reason": "PauseExited"}, first]);
    status
}

#[tokio::test]
async fn an_event_that_is_there_is_not_made_again() {
    let script =
        [(Method::POST, EVENTS, Answer::Refused(StatusCode::CONFLICT)), taken(Method::PATCH, STATUS)];
    let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
    outcome.unwrap();
    assert_eq!(bodies[1]["status"]["announcedRestarts"], 1);
}

#[tokio::test]
async fn what_was_told_of_is_noted_and_not_told_again() {
    for events in [of_one(), of_many()] {
        let script = [
            page(OUR_EVENTS, &[json!({"metadata": {}})], "more"),
            page(NEXT, &[events], ""),
            taken(Method::PATCH, STATUS),
        ];
        let world = World::new(TAKES_OVER, pod("u-1"), Some(object("u-1", restarted())), script);
        others_are_told_of(&world, 20, Timestamp::now());
        world.look().await.unwrap();
        assert!(world.context.storms().due(Timestamp::now() + SignedDuration::from_secs(6)).is_empty());
        assert_eq!(world.end().await[2]["status"]["announcedRestarts"], 1);
    }
}

#[tokio::test]
async fn what_happened_after_it_is_told_of() {
    let script =
        [page(OUR_EVENTS, &[of_many()], ""), taken(Method::POST, EVENTS), taken(Method::PATCH, STATUS)];
    let world = World::new(TAKES_OVER, pod("u-1"), Some(object("u-1", twice_restarted())), script);
    world.look().await.unwrap();
    let bodies = world.end().await;
    assert!(bodies[1]["note"].as_str().unwrap().starts_with("Sandbox restart 2:"), "{}", bodies[1]);
    assert_eq!(bodies[2]["status"]["announcedRestarts"], 2);
}

#[tokio::test]
async fn nobody_asks_when_all_rows_say_what_was_told_of() {
    let mut status = restarted();
    status["announcedRestarts"] = json!(1);
    let mut world = World::new(
        TAKES_OVER,
        pod("u-1"),
        Some(object("u-1", judged(status, Sight::Seen))),
        [taken(Method::POST, EVENTS), taken(Method::PATCH, STATUS)],
    );
    world.look().await.unwrap();
    let mut status = twice_restarted();
    status["announcedRestarts"] = json!(1);
    world.brings(object("u-1", status));
    world.look().await.unwrap();
    assert_eq!(world.end().await.len(), 2, "a later restart is nothing that a leader before could know");
}

#[tokio::test]
async fn nothing_is_told_before_it_is_known_and_the_row_is_judged_all_the_same() {
    let script = [
        (Method::GET, OUR_EVENTS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)),
        taken(Method::PATCH, STATUS),
        page(OUR_EVENTS, &[of_many()], ""),
    ];
    let world = World::new(TAKES_OVER, pod("u-1"), Some(object("u-1", restarted())), script);
    let outcome = world.look().await;
    assert!(matches!(outcome, Err(ReconcileError::Recall(_))), "{outcome:?}");
    let outcome = world.look().await;
    assert!(matches!(outcome, Err(ReconcileError::Recall(_))), "nobody asks again at once: {outcome:?}");
    assert_eq!(world.context.storms().told("u-1"), None);
    let later = Timestamp::now() + SignedDuration::from_secs(61);
    world.context.told_before.recall_if_needed("u-1", &world.context, later).await.unwrap();
    assert_eq!(world.context.storms().told("u-1"), Some(1));
    assert_eq!(world.end().await[1]["status"]["announcedRestarts"], 0);
}

#[tokio::test]
async fn events_that_cannot_be_read_for_minutes_are_done_without() {
    let script: [_; 5] = std::array::from_fn(|_| {
        (Method::GET, OUR_EVENTS, Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR))
    });
    let world = World::new(TAKES_OVER, pod("u-1"), Some(object("u-1", restarted())), script);
    let now = Timestamp::now();
    for minutes in 0..5 {
        let then = now + SignedDuration::from_secs(minutes * 61);
        let recalled = world.context.told_before.recall_if_needed("u-1", &world.context, then).await;
        assert_eq!(recalled.is_ok(), minutes == 4, "{recalled:?}");
    }
    world.end().await;
}

#[tokio::test]
async fn without_the_right_to_read_events_they_are_made_all_the_same() {
    let script = [
        (Method::GET, OUR_EVENTS, Answer::Refused(StatusCode::FORBIDDEN)),
        taken(Method::POST, EVENTS),
        taken(Method::PATCH, STATUS),
    ];
    let world = World::new(TAKES_OVER, pod("u-1"), Some(object("u-1", restarted())), script);
    world.look().await.unwrap();
    assert_eq!(world.end().await[2]["status"]["announcedRestarts"], 1);
}
