//! What is worth a write: what people are told of, at once; numbers that moved, now and then; else nothing.

use jiff::{SignedDuration, Timestamp};

use crate::resource::SandboxHealthStatus;
use crate::waited::waited;

/// Numbers that moved, and nothing else, are written this often at most.
pub const REFRESH: SignedDuration = SignedDuration::from_mins(5);

/// Whether a status is worth a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not now.
    Not,
    /// At once, if that was seldom of late: a pod can make it come and go as it likes.
    IfSeldom,
    /// At once.
    AtOnce,
}

/// Whether `current` is worth a write now, where `written` is what the object has, since `written_at`.
#[must_use]
pub fn due(
    written: Option<(&SandboxHealthStatus, Timestamp)>,
    current: &SandboxHealthStatus,
    now: Timestamp,
) -> Due {
    let Some((written, written_at)) = written else {
        // The first report: once there is something to report.
        let something = current.sandbox.is_some() || current.read_failure.is_some();
        return if something { Due::AtOnce } else { Due::Not };
    };
    let refresh = written != current && waited(written_at, now) >= REFRESH;
    if refresh || is_news(written, current) {
        return Due::AtOnce;
    }
    let who = written.zombie_parents.is_empty() && !current.zombie_parents.is_empty();
    if who || passing(written) != passing(current) { Due::IfSeldom } else { Due::Not }
}

/// Whether something happened to the sandbox.
#[must_use]
pub fn is_news(written: &SandboxHealthStatus, current: &SandboxHealthStatus) -> bool {
    lasting(written) != lasting(current)
}

/// What happened to the sandbox, which people are told of at once.
fn lasting(status: &SandboxHealthStatus) -> impl PartialEq {
    let sandbox = status.sandbox.as_ref().map(|sandbox| sandbox.id.clone());
    (status.restarts, status.restarts_at_least, sandbox)
}

/// How the sandbox is, as far as people are told of it at once, too.
fn passing(status: &SandboxHealthStatus) -> impl PartialEq {
    (
        status.source,
        status.processes.as_ref().map(|processes| processes.accumulating_since.clone()),
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
    fn changed(changes: Value, second: i64) -> Due {
        due(Some((&status(json!({})), at(1))), &status(changes), at(second))
    }

    #[test]
    fn a_healthy_idle_pod_is_written_once() {
        assert_eq!(due(None, &status(json!({})), at(1)), Due::AtOnce);
        assert_eq!(changed(json!({}), 100_000), Due::Not);
        let nothing = due(None, &SandboxHealthStatus::default(), at(1));
        assert_eq!(nothing, Due::Not, "there is nothing to report yet");
    }

    #[test]
    fn moving_numbers_are_written_every_five_minutes_at_most() {
        for change in [processes(2, None), json!({"containerRestarts": 4})] {
            assert_eq!([300, 301].map(|second| changed(change.clone(), second)), [Due::Not, Due::AtOnce]);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_waiting() {
        assert_eq!(changed(processes(2, None), -3600), Due::AtOnce);
        assert_eq!(changed(json!({}), -3600), Due::Not);
    }

    #[test]
    fn what_people_are_told_of_is_written_at_once() {
        let parent = json!({"pid": 7, "command": "sh", "container": "c", "zombies": 9, "oldestSeconds": 0});
        for change in [
            json!({"restarts": 1}),
            json!({"restartsAtLeast": true}),
            json!({"sandbox": {"id": "b", "startedAt": "2027-01-15T08:00:00Z"}}),
        ] {
            assert_eq!(changed(change.clone(), 2), Due::AtOnce, "{change}");
        }
        for change in [
            json!({"source": "ProcScan"}),
            json!({"readFailure": {"reason": "ProcHidden", "message": ""}}),
            json!({"zombieParents": [parent]}),
            processes(5, Some("2027-01-15T08:00:00Z")),
        ] {
            assert_eq!(changed(change.clone(), 2), Due::IfSeldom, "{change}");
        }
        assert_eq!(changed(processes(4, None), 2), Due::Not);
    }

    #[test]
    fn that_a_parent_went_is_a_number_that_moved() {
        let parent = json!({"pid": 7, "command": "sh", "container": "c", "zombies": 9, "oldestSeconds": 0});
        let written = status(json!({"zombieParents": [parent]}));
        let gone = |second| due(Some((&written, at(1))), &status(json!({})), at(second));
        assert_eq!([300, 301].map(gone), [Due::Not, Due::AtOnce]);
    }

    #[test]
    fn restarts_and_zombies_are_wrong_and_not_to_be_seen_is_not() {
        let wrong = |changes| is_wrong(&status(changes));
        assert!(wrong(json!({"restarts": 1})) && wrong(processes(5, Some("2027-01-15T08:00:00Z"))));
        assert!(!wrong(json!({})) && !wrong(processes(4, None)));
        assert!(!wrong(json!({"readFailure": {"reason": "NotCounted", "message": ""}})));
    }
}
