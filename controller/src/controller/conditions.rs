//! What to make of a status: its conditions. Pure functions of the status before and the time; a condition's transition time
//! moves only when its status does, and no message holds a number that moves by itself.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::resource::{HEALTHY, SandboxHealthStatus, ZOMBIES_REAPED};

/// How long a restart counts against a sandbox's health.
pub const RESTART_MEMORY: SignedDuration = SignedDuration::from_mins(10);

/// What the controller makes of a status.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// All conditions, in the order in which they are shown.
    pub conditions: Vec<Condition>,
    /// When time alone will change it.
    pub until: Option<Timestamp>,
}

/// Judges a status as it is now. `finished`: all containers of the pod ended for good.
#[must_use]
pub fn judge(status: &SandboxHealthStatus, finished: bool, now: Timestamp) -> Judgement {
    let reaped = zombies_reaped(status, now);
    let (verdict, until) = health(status, &reaped, finished, now);
    let healthy = verdict.into_condition(HEALTHY, status.condition(HEALTHY), now);
    Judgement { conditions: vec![healthy, reaped], until }
}

struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(status: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { status, reason: reason.to_owned(), message: message.into() }
    }

    fn into_condition(self, type_: &str, before: Option<&Condition>, now: Timestamp) -> Condition {
        let kept = before.filter(|before| before.status == self.status);
        Condition {
            type_: type_.to_owned(),
            status: self.status.to_owned(),
            reason: self.reason,
            message: self.message,
            last_transition_time: kept.map_or(Time(now), |before| before.last_transition_time.clone()),
            observed_generation: None,
        }
    }
}

/// False since the onset; and still so while nobody can count, since nobody saw the zombies go.
fn zombies_reaped(status: &SandboxHealthStatus, now: Timestamp) -> Condition {
    let before = status.condition(ZOMBIES_REAPED);
    let Some(processes) = &status.processes else {
        if let Some(before) = before.filter(|before| before.status == "False") {
            return before.clone();
        }
        return Verdict::new("Unknown", "NotCounted", "the zombies of the pod are not counted at present")
            .into_condition(ZOMBIES_REAPED, before, now);
    };
    let Some(since) = &processes.accumulating_since else {
        return Verdict::new("True", "NoneAccumulate", "no zombies accumulate in the pod").into_condition(
            ZOMBIES_REAPED,
            before,
            now,
        );
    };
    let message = "processes of the pod do not reap their children, and zombies accumulate";
    let verdict = Verdict::new("False", "ZombiesAccumulating", message);
    Condition { last_transition_time: since.clone(), ..verdict.into_condition(ZOMBIES_REAPED, None, now) }
}

fn health(
    status: &SandboxHealthStatus,
    reaped: &Condition,
    finished: bool,
    now: Timestamp,
) -> (Verdict, Option<Timestamp>) {
    if finished {
        let message = "all containers of the pod have ended; its sandbox is not watched any more";
        return (Verdict::new("Unknown", "PodFinished", message), None);
    }
    if let Some(failure) = &status.read_failure {
        return (Verdict::new("Unknown", &failure.reason, failure.message.clone()), None);
    }
    if reaped.status == "False" {
        return (Verdict::new("False", &reaped.reason, reaped.message.clone()), None);
    }
    if let Some(restart) = &status.last_restart {
        // The time is an agent's, which a cluster may have many of: none may bring us down.
        let until = restart.time.0.checked_add(RESTART_MEMORY).unwrap_or(Timestamp::MAX);
        if now < until {
            let message = format!("the sandbox was restarted: {}", restart.message);
            return (Verdict::new("False", "SandboxRestarted", message), Some(until));
        }
    }
    if status.processes.is_none() {
        return (Verdict::new("Unknown", "NoReport", "the agent of the node has not reported yet"), None);
    }
    (Verdict::new("True", "AllWell", "the sandbox is stable and no zombies accumulate"), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{LastRestart, Processes, ReadFailure, RestartReason};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn processes(since: Option<i64>) -> Option<Processes> {
        Some(Processes {
            zombies: 0,
            zombies_peak: 0,
            total: 4,
            reaped_total: Some(0),
            observed_at: Time(at(0)),
            accumulating_since: since.map(|second| Time(at(second))),
        })
    }

    fn healthy(status: &SandboxHealthStatus, now: i64) -> (String, String) {
        let judged = judge(status, false, at(now));
        (judged.conditions[0].status.clone(), judged.conditions[0].reason.clone())
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_sandbox_without_a_report_is_unknown() {
        assert_eq!(healthy(&SandboxHealthStatus::default(), 0), pair("Unknown", "NoReport"));
    }

    #[test]
    fn a_sandbox_that_is_read_and_stable_is_healthy() {
        let status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        assert_eq!(healthy(&status, 0), pair("True", "AllWell"));
        assert_eq!(judge(&status, true, at(0)).conditions[0].reason, "PodFinished");
    }

    #[test]
    fn a_sandbox_that_cannot_be_read_is_unknown_for_the_reader_s_reason() {
        let failure = ReadFailure { reason: "NoStatus".to_owned(), message: "no".to_owned() };
        let status = SandboxHealthStatus { read_failure: Some(failure), ..Default::default() };
        assert_eq!(healthy(&status, 0), pair("Unknown", "NoStatus"));
    }

    #[test]
    fn accumulating_zombies_are_unhealthy_since_their_onset() {
        let status = SandboxHealthStatus { processes: processes(Some(7)), ..Default::default() };
        assert_eq!(healthy(&status, 20), pair("False", "ZombiesAccumulating"));
        assert_eq!(judge(&status, false, at(20)).conditions[1].last_transition_time, Time(at(7)));
    }

    #[test]
    fn zombies_that_nobody_saw_go_are_not_gone() {
        let mut status = SandboxHealthStatus { processes: processes(Some(7)), ..Default::default() };
        status.conditions = judge(&status, false, at(20)).conditions;
        status.processes = None;
        let reaped = &judge(&status, false, at(30)).conditions[1];
        assert_eq!((reaped.status.as_str(), &reaped.last_transition_time), ("False", &Time(at(7))));
    }

    #[test]
    fn a_restart_counts_for_a_while() {
        let last_restart = Some(LastRestart {
            time: Time(at(0)),
            reason: RestartReason::PauseExited,
            message: "x".to_owned(),
        });
        let status = SandboxHealthStatus { processes: processes(None), last_restart, ..Default::default() };
        assert_eq!(healthy(&status, 599), pair("False", "SandboxRestarted"));
        assert_eq!(judge(&status, false, at(1)).until, Some(at(600)));
        assert_eq!(healthy(&status, 600), pair("True", "AllWell"));
        assert_eq!(judge(&status, false, at(600)).until, None);
    }

    #[test]
    fn a_judgement_that_stays_is_the_same_to_the_letter() {
        let mut status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        status.conditions = judge(&status, false, at(10)).conditions;
        assert_eq!(judge(&status, false, at(99_999)).conditions, status.conditions);
    }

    #[test]
    fn a_transition_time_moves_when_the_status_flips() {
        let mut status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        status.conditions = judge(&status, false, at(10)).conditions;
        status.processes = processes(Some(50));
        let healthy = &judge(&status, false, at(60)).conditions[0];
        assert_eq!(healthy.last_transition_time, Time(at(60)));
    }
}
