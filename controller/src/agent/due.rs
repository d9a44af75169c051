//! What is worth a write: what people are told of, at once; numbers that moved, now and then; else nothing.

use jiff::{SignedDuration, Timestamp};

use crate::resource::SandboxHealthStatus;
use crate::waited::waited;

/// Numbers that moved, and nothing else, are written this often at most.
pub const REFRESH: SignedDuration = SignedDuration::from_mins(5);

/// Whether `current` is worth a write now, where `written` is what the object has, since `written_at`.
#[must_use]
pub fn is_due(
    written: Option<(&SandboxHealthStatus, Timestamp)>,
    current: &SandboxHealthStatus,
    now: Timestamp,
) -> bool {
    let Some((written, written_at)) = written else {
        // The first report: once there is something to report.
        return current.sandbox.is_some() || current.read_failure.is_some();
    };
    if urgent(written) != urgent(current) {
        return true;
    }
    written != current && waited(written_at, now) >= REFRESH
}

/// The part of a status that people are told of at once.
fn urgent(status: &SandboxHealthStatus) -> impl PartialEq {
    (
        (status.restarts, status.restarts_at_least),
        status.sandbox.as_ref().map(|sandbox| sandbox.id.clone()),
        status.source,
        status.processes.as_ref().map(|processes| processes.accumulating_since.clone()),
        status.zombie_parents.is_empty(),
        status.read_failure.as_ref().map(|failure| failure.reason.clone()),
    )
}

/// Whether something is wrong with the pod, so that it needs an object even where few are made.
#[must_use]
pub fn is_wrong(status: &SandboxHealthStatus) -> bool {
    status.restarts > 0
        || status.processes.as_ref().is_some_and(|processes| processes.accumulating_since.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// A healthy pod's status, with some fields otherwise.
    fn status(changes: Value) -> SandboxHealthStatus {
        let mut status = json!({
            "restarts": 0,
            "sandbox": {"id": "a", "startedAt": "2027-01-15T08:00:00Z"},
            "processes": {"zombies": 0, "zombiesPeak": 0, "total": 4, "reapedTotal": 0, "observedAt": "2027-01-15T08:00:00Z"},
            "source": "PauseStatusFile",
        });
        for (field, value) in changes.as_object().unwrap() {
            status[field] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    fn processes(zombies: i64, since: Option<&str>) -> Value {
        json!({"processes": {"zombies": zombies, "zombiesPeak": zombies, "total": 4 + zombies, "reapedTotal": 0,
               "observedAt": "2027-01-15T08:00:00Z", "accumulatingSince": since}})
    }

    /// Whether a change from the healthy status, which was written at second 1, is written at this second.
    fn due(changes: Value, second: i64) -> bool {
        is_due(Some((&status(json!({})), at(1))), &status(changes), at(second))
    }

    #[test]
    fn a_healthy_idle_pod_is_written_once() {
        assert!(is_due(None, &status(json!({})), at(1)));
        assert!(!due(json!({}), 100_000));
        assert!(!is_due(None, &SandboxHealthStatus::default(), at(1)), "there is nothing to report yet");
    }

    #[test]
    fn moving_numbers_are_written_every_five_minutes_at_most() {
        assert!(!due(processes(2, None), 300));
        assert!(due(processes(2, None), 301));
        assert!(due(json!({"containerRestarts": 4}), 301) && !due(json!({"containerRestarts": 4}), 300));
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_waiting() {
        assert!(due(processes(2, None), -3600));
        assert!(!due(json!({}), -3600));
    }

    #[test]
    fn what_people_are_told_of_is_written_at_once() {
        let parent = json!({"pid": 7, "command": "sh", "container": "c", "zombies": 9, "oldestSeconds": 0});
        for change in [
            json!({"restarts": 1}),
            json!({"restartsAtLeast": true}),
            json!({"sandbox": {"id": "b", "startedAt": "2027-01-15T08:00:00Z"}}),
            json!({"source": "ProcScan"}),
            json!({"readFailure": {"reason": "ProcHidden", "message": ""}}),
            json!({"zombieParents": [parent]}),
            processes(5, Some("2027-01-15T08:00:00Z")),
        ] {
            assert!(due(change.clone(), 2), "{change}");
        }
        assert!(!due(processes(4, None), 2));
    }

    #[test]
    fn restarts_and_zombies_are_wrong_and_not_to_be_seen_is_not() {
        let wrong = |changes| is_wrong(&status(changes));
        assert!(wrong(json!({"restarts": 1})) && wrong(processes(5, Some("2027-01-15T08:00:00Z"))));
        assert!(!wrong(json!({})) && !wrong(processes(4, None)));
        assert!(!wrong(json!({"readFailure": {"reason": "NotCounted", "message": ""}})));
    }
}
