//! Pods on nodes without an agent, and a cluster whose CRD is too old.

use super::*;
use crate::authorship::fake::{edit, note_as_ours};

#[tokio::test]
async fn a_restart_on_a_node_without_an_agent_is_counted_by_the_pod_s_condition_and_told() {
    let script = [
        taken(Method::PATCH, REPORT),
        taken(Method::PATCH, REPORT),
        taken(Method::POST, EVENTS),
        taken(Method::PATCH, STATUS),
    ];
    let mut world = World::new(NO_AGENT, pod("u-1"), Some(object("u-1", json!({}))), script);
    world.look().await.unwrap();
    let baseline = json!({"restarts": 0, "source": "PodConditions", "sandbox": {"startedAt": READY}});
    let mut before = baseline.clone();
    before["announcedRestarts"] = json!(0);
    world.brings(object("u-1", judged(before, Sight::Blind(Blindness::AgentMissing))));
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
async fn a_row_that_somebody_edited_is_made_right_by_the_controller_where_no_agent_is() {
    let blind = Sight::Blind(Blindness::AgentMissing);
    let mut counted = restarted();
    counted["source"] = json!("PodConditions");
    counted["sandbox"] = json!({"startedAt": READY});
    counted["announcedRestarts"] = json!(1);
    let right = judged(counted, blind);
    let mut row = object("u-1", right.clone());
    note_as_ours(&mut row);
    edit(&mut row, &["restarts"], json!(99));
    let mut world = World::new(NO_AGENT, pod("u-1"), Some(row), [taken(Method::PATCH, REPORT)]);
    world.look().await.unwrap();
    let mut row = object("u-1", right.clone());
    note_as_ours(&mut row);
    world.brings(row);
    world.look().await.unwrap();
    let bodies = world.end().await;
    let (mut sent, mut seen) = (bodies[0].clone(), right);
    assert_eq!(sent["metadata"]["resourceVersion"].take(), "7");
    for controllers in ["announcedRestarts", "conditions"] {
        seen.as_object_mut().unwrap().remove(controllers).unwrap();
    }
    seen["podUID"] = json!("u-1");
    assert_eq!(sent["status"], seen);
}

#[tokio::test]
async fn where_somebody_edited_the_sandbox_a_later_restart_is_counted_all_the_same() {
    let counted = json!({"restarts": 0, "source": "PodConditions", "announcedRestarts": 0, "sandbox": {"startedAt": READY}});
    let mut row = object("u-1", counted.clone());
    note_as_ours(&mut row);
    edit(&mut row, &["sandbox", "startedAt"], json!(READY_AGAIN));
    let script = [taken(Method::PATCH, REPORT), taken(Method::PATCH, REPORT)];
    let mut world = World::new(NO_AGENT, pod("u-1"), Some(row), script);
    world.look().await.unwrap();
    let mut row = object("u-1", counted);
    row["status"]["restartsAtLeast"] = json!(true);
    note_as_ours(&mut row);
    world.brings(row);
    world.brings_pod(pod_ready_again());
    world.look().await.unwrap();
    let bodies = world.end().await;
    assert_eq!(bodies[0]["status"]["sandbox"], json!({"startedAt": READY}));
    assert_eq!(bodies[0]["status"]["restartsAtLeast"], true, "it may have been replaced before that");
    assert_eq!(
        (&bodies[1]["status"]["restarts"], &bodies[1]["status"]["restartsAtLeast"]),
        (&json!(1), &json!(true))
    );
}

#[tokio::test]
async fn an_agent_that_writes_first_is_not_overwritten() {
    let script = [
        (Method::PATCH, REPORT, Answer::Refused(StatusCode::CONFLICT)),
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

#[tokio::test]
async fn the_first_report_of_an_agent_that_is_not_ready_yet_is_not_overwritten() {
    let blind = Sight::Blind(Blindness::AgentMissing);
    let counted = json!({"source": "PodConditions", "announcedRestarts": 0, "sandbox": {"startedAt": READY}});
    let mut world = World::new(NO_AGENT, pod("u-1"), Some(object("u-1", judged(counted, blind))), []);
    world.look().await.unwrap();
    let mut starting = agent();
    starting.status = None;
    world.context.lookout.pods_changed(&Event::Apply(starting));
    let report =
        json!({"source": "ProcScan", "announcedRestarts": 0, "sandbox": {"id": "a", "startedAt": READY}});
    world.brings(object("u-1", judged(report, blind)));
    world.look().await.unwrap();
    world.end().await;
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
