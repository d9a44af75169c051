//! The size of an object in etcd, where each pod has one: as JSON, without `managedFields`.

use jiff::Timestamp;
use sandbox_health::controller::kubelet_events::WARNING_MAX;
use sandbox_health::core::conditions::{AgentState, evaluate};
use sandbox_health::crd::{HISTORY_MAX, PARENTS_MAX, SandboxHealth, SandboxHealthStatus};
use sandbox_health::procfs::pause::ReadError;
use serde_json::{Value, json};

const TIME: &str = "2027-01-15T08:00:00Z";

/// The bytes of an object with this status and the conditions that follow from it.
fn size(namespace: &str, pod: &str, status: &Value) -> anyhow::Result<usize> {
    let mut object = SandboxHealth::of_pod(namespace, pod, &"u".repeat(36), pod);
    let mut status: SandboxHealthStatus = serde_json::from_value(status.clone())?;
    status.conditions =
        evaluate(&status, pod, None, AgentState::Ready, TIME.parse::<Timestamp>()?).conditions;
    status.pod_uid = Some(object.spec.pod_uid.clone());
    object.status = Some(status);
    Ok(serde_json::to_string(&object)?.len())
}

fn sandbox() -> Value {
    json!({"id": "f".repeat(64), "startedAt": TIME, "bootID": "b".repeat(36), "pauseVersion": "0.1.0"})
}

#[test]
fn object_of_a_healthy_pod_is_below_2_kb() {
    let status = json!({
        "restarts": 0, "sandbox": sandbox(), "source": "PauseStatusFile",
        "processes": {"zombies": 0, "zombiesPeak": 2, "total": 12, "threads": 60, "reapedTotal": 12_345, "observedAt": TIME},
    });
    let bytes = size("shop", "frontend-6c8b4f7d9-x2x8p", &status).unwrap();
    assert!(bytes < 2000, "{bytes} bytes");
}

#[test]
fn largest_object_is_below_6_kb() {
    let cause = "pause exited; exit status unavailable (requires Linux 6.15); likely cause: the OOM killer (it killed a process on the node at that moment)";
    // The kubelet's message is cut to 200 bytes.
    let message = format!("{cause}; kubelet: {}", "x".repeat(200));
    let past = json!({
        "sandboxID": "f".repeat(64), "startedAt": TIME, "endedAt": TIME, "reason": "PauseExited",
        "message": cause,
    });
    let parent = json!({
        // A name has 15 bytes, and each may become U+FFFD or be escaped.
        "pid": 4_194_304, "command": "\"".repeat(15), "container": "c".repeat(63), "zombies": 4_194_304, "oldestSeconds": 31_536_000,
    });
    let mut status = json!({
        "restarts": i64::MAX, "restartsAtLeast": true, "accumulatingSince": TIME,
        "lastRestart": {"time": TIME, "reason": "PauseExited", "message": message},
        "history": vec![past; HISTORY_MAX], "sandbox": sandbox(), "source": "PauseStatusFile",
        "zombieParents": vec![parent; PARENTS_MAX],
        "processes": {
            "zombies": 4_194_304, "zombiesPeak": 4_194_304, "total": 4_194_304, "threads": 4_194_304, "reapedTotal": i64::MAX, "observedAt": TIME,
        },
    });
    let usual = size("shop", "frontend-6c8b4f7d9-x2x8p", &status).unwrap();
    let longest = size(&"n".repeat(63), &"p".repeat(253), &status).unwrap();
    assert!(usual < 5000 && longest < 6000, "{usual} bytes, with the longest names {longest}");
    status["processes"].take();
    let error = format!("{}; kubelet: {}", ReadError::NotCreated, "x".repeat(WARNING_MAX));
    status["zombieParents"] = json!([]);
    status["readFailure"] = json!({"reason": ReadError::NotCreated.reason(), "message": error});
    let longest = size(&"n".repeat(63), &"p".repeat(253), &status).unwrap();
    assert!(longest < 6000, "without a sandbox {longest}");
}
