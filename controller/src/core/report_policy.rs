//! Which changes of a status cause a write: those that users are notified of immediately, other numbers every few minutes.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use crate::crd::SandboxHealthStatus;

/// Least time between writes of nothing but changed numbers.
pub const REFRESH: Duration = Duration::from_secs(300);

/// When a status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    None,
    /// Immediately, within a rate limit: the pod can cause such changes at any rate.
    RateLimited,
    Immediate,
}

/// The urgency of writing `current` where the object has had `written` since then.
pub fn urgency(
    written: Option<(&SandboxHealthStatus, Instant)>,
    current: &SandboxHealthStatus,
    now: Instant,
) -> Urgency {
    let Some((written, written_at)) = written else {
        let has_content =
            current.sandbox.is_some() || current.processes.is_some() || current.read_failure.is_some();
        return if has_content { Urgency::Immediate } else { Urgency::None };
    };
    if is_sandbox_change(written, current) {
        return Urgency::Immediate;
    }
    let is_refresh_due = now.duration_since(written_at) >= REFRESH;
    if is_refresh_due && written != current && is_number_changed(written, current) {
        return Urgency::Immediate;
    }
    let names_parents = written.zombie_parents.is_empty() && !current.zombie_parents.is_empty();
    if names_parents || pod_state(written) != pod_state(current) {
        Urgency::RateLimited
    } else {
        Urgency::None
    }
}

/// Whether the sandbox was recreated or terminated.
pub fn is_sandbox_change(written: &SandboxHealthStatus, current: &SandboxHealthStatus) -> bool {
    sandbox_state(written) != sandbox_state(current)
}

/// Whether the pod is unhealthy, so that it gets an object even above the limit of objects.
pub fn is_unhealthy(status: &SandboxHealthStatus) -> bool {
    status.restarts > 0 || status.termination.is_some() || status.accumulating_since.is_some()
}

fn sandbox_state(status: &SandboxHealthStatus) -> impl PartialEq {
    let sandbox = status.sandbox.as_ref().map(|sandbox| &sandbox.id);
    (status.restarts, status.restarts_at_least, sandbox, &status.termination)
}

fn pod_state(status: &SandboxHealthStatus) -> impl PartialEq {
    let failure = status.read_failure.as_ref().map(|failure| &failure.reason);
    (status.source, &status.accumulating_since, failure)
}

fn is_number_changed(written: &SandboxHealthStatus, current: &SandboxHealthStatus) -> bool {
    let threads = |status: &SandboxHealthStatus| Some(status.processes.as_ref()?.threads);
    // The thread count of most programs varies all the time.
    let is_far = |(old, new): (i64, i64)| old.abs_diff(new) * 4 > old.unsigned_abs();
    threads(written).zip(threads(current)).is_some_and(is_far) || steady(written) != steady(current)
}

/// The status without the numbers that vary all the time: they cause no write of their own.
fn steady(status: &SandboxHealthStatus) -> SandboxHealthStatus {
    let mut status = status.clone();
    status.zombie_parents.iter_mut().for_each(|parent| parent.oldest_seconds = None);
    if let Some(processes) = &mut status.processes {
        processes.threads = 0;
        processes.observed_at = Time(Timestamp::UNIX_EPOCH);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::Urgency::{Immediate, None, RateLimited};
    use super::*;
    use serde_json::{Value, json};

    const SINCE: &str = "2027-01-15T08:00:00Z";

    /// The status of a healthy pod, with some fields changed.
    fn status(changes: Value) -> SandboxHealthStatus {
        let mut status = json!({
            "restarts": 0,
            "sandbox": {"id": "a", "startedAt": SINCE},
            "processes": {"zombies": 0, "zombiesPeak": 0, "total": 4, "reapedTotal": 0, "observedAt": SINCE},
            "source": "PauseStatusFile",
        });
        for (field, value) in changes.as_object().unwrap() {
            status[field] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    fn zombies(zombies: i64) -> Value {
        json!({"processes": {"zombies": zombies, "zombiesPeak": zombies, "total": 4 + zombies, "reapedTotal": 0, "observedAt": SINCE}})
    }

    fn parents(zombies: i64, age: Option<i64>) -> Value {
        json!({"zombieParents": [{"pid": 7, "command": "sh", "container": "c", "zombies": zombies, "oldestSeconds": age}]})
    }

    /// The urgency of a change, some seconds after the write of another status.
    fn change(from: Value, to: Value, seconds: u64) -> Urgency {
        let written_at = Instant::now();
        urgency(Some((&status(from), written_at)), &status(to), written_at + Duration::from_secs(seconds))
    }

    #[test]
    fn healthy_idle_pod_is_written_once() {
        assert_eq!(urgency(Option::None, &status(json!({})), Instant::now()), Immediate);
        assert_eq!(urgency(Option::None, &SandboxHealthStatus::default(), Instant::now()), None);
        assert_eq!(change(json!({}), json!({}), 100_000), None);
    }

    #[test]
    fn changed_numbers_are_written_every_five_minutes() {
        assert_eq!([299, 300].map(|second| change(json!({}), zombies(2), second)), [None, Immediate]);
        let gone = [299, 300].map(|second| change(parents(9, Some(4)), json!({}), second));
        assert_eq!(gone, [None, Immediate], "a parent that exited is a changed number");
    }

    #[test]
    fn ages_alone_are_not_written() {
        assert_eq!(change(parents(9, Option::None), parents(9, Some(400)), 1000), None);
        assert_eq!(change(parents(9, Option::None), parents(8, Some(400)), 1000), Immediate);
    }

    #[test]
    fn threads_are_written_once_a_quarter_more_or_less() {
        let threads = |number: i64| json!({"processes": {"zombies": 0, "zombiesPeak": 0, "total": 4, "reapedTotal": 0, "observedAt": SINCE, "threads": number}});
        for (after, urgency) in [(100, None), (125, None), (75, None), (126, Immediate), (74, Immediate)] {
            assert_eq!(change(threads(100), threads(after), 1000), urgency, "{after}");
        }
    }

    #[test]
    fn sandbox_change_is_written_immediately() {
        for change_of in [
            json!({"restarts": 1}),
            json!({"restartsAtLeast": true}),
            json!({"sandbox": {"id": "b", "startedAt": SINCE}}),
            json!({"termination": {"sandboxID": "a", "time": SINCE, "message": "pause was killed by SIGKILL"}}),
        ] {
            assert_eq!(change(json!({}), change_of.clone(), 1), Immediate, "{change_of}");
        }
    }

    #[test]
    fn change_that_the_pod_can_cause_is_rate_limited() {
        for change_of in [
            json!({"source": "ProcScan"}),
            json!({"readFailure": {"reason": "ProcHidden", "message": ""}}),
            json!({"accumulatingSince": SINCE}),
            parents(9, Option::None),
        ] {
            assert_eq!(change(json!({}), change_of.clone(), 1), RateLimited, "{change_of}");
        }
        assert_eq!(change(json!({}), zombies(4), 1), None);
    }

    #[test]
    fn restarts_terminations_and_zombies_are_unhealthy() {
        let unhealthy = |changes| is_unhealthy(&status(changes));
        assert!(unhealthy(json!({"restarts": 1})) && unhealthy(json!({"accumulatingSince": SINCE})));
        assert!(unhealthy(json!({"termination": {"sandboxID": "a", "time": SINCE, "message": ""}})));
        assert!(!unhealthy(json!({})) && !unhealthy(zombies(4)));
        assert!(!unhealthy(json!({"readFailure": {"reason": "NotCounted", "message": ""}})));
    }
}
