//! What is known of one pod's sandbox, and what each observation makes of it. This file decides what a restart is, when
//! zombies accumulate and what is worth a write; it reads no clock, no /proc and no API.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ending::Ending;
use super::proc::{ReadError, Reading};
use crate::resource::{
    HISTORY_MAX, LastRestart, PastSandbox, Processes, ReadFailure, RestartReason, Sandbox,
    SandboxHealthStatus, Source, ZOMBIES_REAPED,
};

/// Numbers that moved, and nothing else, are written this often at most.
pub const REFRESH: SignedDuration = SignedDuration::from_mins(5);
/// How long a running pod may be without a sandbox that we find before we say so.
pub const MISSING_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// How many zombies are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZombieThreshold(pub u32);

impl ZombieThreshold {
    /// From the threshold on they accumulate, until half of it (rounded down) is left: a number that swings around the
    /// threshold makes one Event, not many.
    fn exceeded(self, before: bool, zombies: u32) -> bool {
        if before { zombies > self.0 / 2 } else { zombies >= self.0.max(1) }
    }
}

/// The end of a pause process, as seen through its pidfd.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Death {
    at: Timestamp,
    ending: Option<Ending>,
}

/// What is known of a pod's sandbox: the part of the status that the agent owns, and what it takes to go on from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    status: SandboxHealthStatus,
    /// Of the sandbox in `status`.
    death: Option<Death>,
    /// When the zombies became too many. Kept apart from the counts: not being able to count is no sign that they went.
    accumulating_since: Option<Time>,
    missing_since: Option<Timestamp>,
    /// When the pause process was first found to have ended, though its pidfd does not say so.
    gone_since: Option<Timestamp>,
}

impl Record {
    /// Goes on from what was written earlier.
    #[must_use]
    pub fn from_written(status: SandboxHealthStatus) -> Self {
        let accumulating = status.condition(ZOMBIES_REAPED).filter(|reaped| reaped.status == "False");
        let accumulating_since = match &status.processes {
            Some(processes) => processes.accumulating_since.clone(),
            None => accumulating.map(|reaped| reaped.last_transition_time.clone()),
        };
        Self { status: status.seen(), accumulating_since, ..Self::default() }
    }

    /// The status as the agent writes it.
    #[must_use]
    pub fn status(&self) -> &SandboxHealthStatus {
        &self.status
    }

    /// The pause process of sandbox `id` ended.
    pub fn pause_ended(&mut self, id: &str, at: Timestamp, ending: Option<Ending>) {
        if self.status.sandbox.as_ref().is_some_and(|sandbox| sandbox.id.as_deref() == Some(id)) {
            self.death = Some(Death { at, ending });
        }
    }

    /// A living sandbox was found for the pod. Another one than before is a restart, and it is returned.
    pub fn sandbox_found(
        &mut self,
        id: &str,
        started_at: Timestamp,
        booted_at: Timestamp,
    ) -> Option<RestartReason> {
        self.missing_since = None;
        if self.status.sandbox.as_ref().is_some_and(|sandbox| sandbox.id.as_deref() == Some(id)) {
            return None;
        }
        let found = Sandbox {
            id: Some(id.to_owned()),
            started_at: Time(started_at),
            boot_id: None,
            pause_version: None,
        };
        let before = self.status.sandbox.replace(found)?;
        let death = self.death.take();
        let (reason, message) = why(&before, death.as_ref(), booted_at);
        self.status.restarts = self.status.restarts.saturating_add(1);
        self.status.last_restart = Some(LastRestart { time: Time(started_at), reason, message });
        let past = PastSandbox {
            sandbox_id: before.id.unwrap_or_default(),
            started_at: before.started_at,
            ended_at: death.map(|death| Time(death.at)),
            reason,
            message: None,
        };
        self.status.history.insert(0, past);
        self.status.history.truncate(HISTORY_MAX);
        self.forget_processes();
        // They went with the namespace.
        self.accumulating_since = None;
        self.gone_since = None;
        self.status.read_failure = None;
        Some(reason)
    }

    /// What was read of the living sandbox.
    pub fn read(&mut self, outcome: Result<Reading, ReadError>, now: Timestamp, threshold: ZombieThreshold) {
        match outcome {
            Ok(reading) => self.counted(reading, now, threshold),
            Err(error @ ReadError::Gone) => {
                // The pidfd will say so, too, and a new one be found or missed; unless the kernel cannot end the namespace,
                // for a process in it that cannot be killed.
                let since = *self.gone_since.get_or_insert(now);
                if now.duration_since(since) >= MISSING_GRACE {
                    self.failed(error.reason(), &error.to_string());
                }
            }
            Err(error) => self.failed(error.reason(), &error.to_string()),
        }
    }

    /// A pod that should have a sandbox has none that we find. Takes a while to be said, since a restart takes a while.
    pub fn sandbox_missing(&mut self, now: Timestamp) {
        let since = *self.missing_since.get_or_insert(now);
        if now.duration_since(since) >= MISSING_GRACE {
            self.failed("SandboxNotFound", "no pause process of the pod was found on its node");
        }
    }

    /// The pod is going or gone, and its sandbox with it.
    pub fn pod_ending(&mut self) {
        self.missing_since = None;
        self.accumulating_since = None;
        self.status.read_failure = None;
        self.forget_processes();
    }

    fn counted(&mut self, reading: Reading, now: Timestamp, threshold: ZombieThreshold) {
        let before = self.status.processes.take();
        let since = self.accumulating_since.take();
        let accumulating_since =
            threshold.exceeded(since.is_some(), reading.zombies).then(|| since.unwrap_or(Time(now)));
        self.accumulating_since = accumulating_since.clone();
        self.gone_since = None;
        let mut processes = Processes {
            zombies: reading.zombies.into(),
            zombies_peak: reading.peak.into(),
            total: reading.processes.into(),
            reaped_total: Some(i64::try_from(reading.reaped).unwrap_or(i64::MAX)),
            observed_at: Time(now),
            accumulating_since,
        };
        if let Some(before) = before {
            let same = Processes { observed_at: before.observed_at.clone(), ..processes.clone() };
            if same == before {
                processes = before;
            }
        }
        self.status.processes = Some(processes);
        self.status.source = Some(Source::PauseStatusFile);
        self.status.read_failure = None;
        if let Some(sandbox) = &mut self.status.sandbox {
            sandbox.pause_version = Some(reading.version);
        }
    }

    /// What could not be read is unknown; it never becomes 0, nor stays what it was.
    fn failed(&mut self, reason: &str, message: &str) {
        self.forget_processes();
        self.status.read_failure =
            Some(ReadFailure { reason: reason.to_owned(), message: message.to_owned() });
    }

    fn forget_processes(&mut self) {
        self.status.processes = None;
        self.status.source = None;
    }
}

fn why(before: &Sandbox, death: Option<&Death>, booted_at: Timestamp) -> (RestartReason, String) {
    match death {
        Some(Death { ending: Some(ending), .. }) => (RestartReason::PauseExited, format!("pause {ending}")),
        Some(Death { ending: None, .. }) => {
            let message = "pause ended; how is not known (before Linux 6.15, or not told in time)".to_owned();
            (RestartReason::PauseExited, message)
        }
        None if before.started_at.0 < booted_at => {
            (RestartReason::NodeRebooted, "the node was rebooted".to_owned())
        }
        None => (RestartReason::Replaced, "the sandbox was replaced while no agent watched".to_owned()),
    }
}

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
    written != current && now.duration_since(written_at) >= REFRESH
}

/// The part of a status that people are told of at once.
fn urgent(status: &SandboxHealthStatus) -> impl PartialEq {
    (
        status.restarts,
        status.sandbox.as_ref().map(|sandbox| sandbox.id.clone()),
        status.source,
        status.processes.as_ref().map(|processes| processes.accumulating_since.clone()),
        status.read_failure.as_ref().map(|failure| failure.reason.clone()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use pause_status::Refusal;

    const THRESHOLD: ZombieThreshold = ZombieThreshold(5);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    const fn booted() -> Timestamp {
        Timestamp::constant(1_799_000_000, 0)
    }

    fn reading(zombies: u32) -> Result<Reading, ReadError> {
        Ok(Reading { zombies, peak: zombies, processes: 4 + zombies, reaped: 9, version: "0.1.0".to_owned() })
    }

    fn watched() -> Record {
        let mut record = Record::default();
        assert_eq!(record.sandbox_found("a", at(0), booted()), None);
        record.read(reading(0), at(1), THRESHOLD);
        record
    }

    fn last_restart(record: &Record) -> (RestartReason, &str) {
        let last = record.status.last_restart.as_ref().unwrap();
        (last.reason, &last.message)
    }

    #[test]
    fn the_first_sandbox_is_no_restart() {
        let record = watched();
        assert_eq!((record.status.restarts, record.status.history.len()), (0, 0));
    }

    #[test]
    fn another_sandbox_is_one_restart_with_its_cause() {
        let mut record = watched();
        record.pause_ended("a", at(50), Some(Ending::Signaled(9)));
        assert_eq!(record.sandbox_found("b", at(52), booted()), Some(RestartReason::PauseExited));
        assert_eq!(record.sandbox_found("b", at(52), booted()), None);
        assert_eq!(record.status.restarts, 1);
        assert_eq!(last_restart(&record), (RestartReason::PauseExited, "pause was killed by SIGKILL"));
        let past = &record.status.history[0];
        assert_eq!((past.sandbox_id.as_str(), past.ended_at.clone()), ("a", Some(Time(at(50)))));
        assert!(record.status.processes.is_none(), "the old sandbox's numbers are gone with it");
    }

    #[test]
    fn a_death_that_nobody_saw_is_a_replacement() {
        let mut record = Record::from_written(watched().status);
        assert_eq!(record.sandbox_found("b", at(90), booted()), Some(RestartReason::Replaced));
        assert_eq!(record.status.history[0].ended_at, None);
    }

    #[test]
    fn a_sandbox_older_than_the_boot_went_with_the_reboot() {
        let mut record = Record::from_written(watched().status);
        assert_eq!(record.sandbox_found("b", at(90), at(30)), Some(RestartReason::NodeRebooted));
    }

    #[test]
    fn the_death_of_another_sandbox_is_no_cause() {
        let mut record = watched();
        record.pause_ended("z", at(50), Some(Ending::Signaled(9)));
        assert_eq!(record.sandbox_found("b", at(52), booted()), Some(RestartReason::Replaced));
    }

    #[test]
    fn counts_go_on_after_the_agent_was_restarted() {
        let mut record = watched();
        record.sandbox_found("b", at(52), booted());
        let mut record = Record::from_written(record.status);
        assert_eq!(record.sandbox_found("b", at(52), booted()), None);
        record.sandbox_found("c", at(99), booted());
        assert_eq!((record.status.restarts, record.status.history.len()), (2, 2));
    }

    #[test]
    fn the_history_keeps_the_newest_five() {
        let mut record = watched();
        for id in ["b", "c", "d", "e", "f", "g", "h"] {
            record.sandbox_found(id, at(60), booted());
        }
        let ids: Vec<_> = record.status.history.iter().map(|past| past.sandbox_id.as_str()).collect();
        assert_eq!(ids, ["g", "f", "e", "d", "c"]);
        assert_eq!(record.status.restarts, 7);
    }

    #[test]
    fn zombies_accumulate_from_the_threshold_on_until_half_of_it() {
        let mut record = watched();
        let mut since = |zombies, second| {
            record.read(reading(zombies), at(second), THRESHOLD);
            record.status.processes.as_ref().unwrap().accumulating_since.clone()
        };
        assert_eq!(since(4, 10), None);
        assert_eq!(since(5, 20), Some(Time(at(20))));
        assert_eq!(since(9, 30), Some(Time(at(20))));
        assert_eq!(since(3, 40), Some(Time(at(20))));
        assert_eq!(since(2, 50), None);
        assert_eq!(since(4, 60), None);
        assert_eq!(since(5, 70), Some(Time(at(70))));
    }

    #[test]
    fn a_threshold_of_one_clears_when_none_is_left() {
        let threshold = ZombieThreshold(1);
        assert!(!threshold.exceeded(false, 0) && threshold.exceeded(false, 1));
        assert!(threshold.exceeded(true, 1) && !threshold.exceeded(true, 0));
        assert!(!ZombieThreshold(0).exceeded(false, 0), "no zombies are never too many");
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_not_zero() {
        let mut record = watched();
        record.read(Err(ReadError::Refused(Refusal::WrongSum)), at(5), THRESHOLD);
        assert_eq!(record.status.processes, None);
        assert_eq!(record.status.source, None);
        assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "StatusSumWrong");
        record.read(reading(0), at(10), THRESHOLD);
        assert!(record.status.processes.is_some() && record.status.read_failure.is_none());
    }

    #[test]
    fn zombies_that_cannot_be_counted_for_a_while_are_the_same_zombies() {
        let mut record = watched();
        record.read(reading(7), at(10), THRESHOLD);
        let before = record.clone();
        for error in [ReadError::NotCounted, ReadError::Refused(Refusal::WrongSum)] {
            record.read(Err(error), at(20), THRESHOLD);
        }
        // Another agent may go on from here: the onset is then the controller's condition.
        let mut status = record.status.clone();
        status.conditions = vec![Condition {
            type_: ZOMBIES_REAPED.to_owned(),
            status: "False".to_owned(),
            last_transition_time: Time(at(10)),
            reason: String::new(),
            message: String::new(),
            observed_generation: None,
        }];
        for mut record in [record, Record::from_written(status)] {
            record.read(reading(3), at(30), THRESHOLD);
            let since =
                |record: &Record| record.status.processes.as_ref().unwrap().accumulating_since.clone();
            assert_eq!(
                since(&record),
                since(&before),
                "3 is more than half of 5, and the onset is the old one"
            );
            record.read(reading(2), at(40), THRESHOLD);
            assert_eq!(since(&record), None);
        }
    }

    #[test]
    fn a_pause_that_is_gone_but_does_not_end_is_unknown_after_a_grace() {
        let mut record = watched();
        record.read(Err(ReadError::Gone), at(100), THRESHOLD);
        record.read(Err(ReadError::Gone), at(129), THRESHOLD);
        assert_eq!(record.status.read_failure, None);
        record.read(Err(ReadError::Gone), at(130), THRESHOLD);
        assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "PauseGone");
        assert_eq!(record.status.processes, None);
    }

    #[test]
    fn a_missing_sandbox_is_said_after_a_grace() {
        let mut record = watched();
        record.sandbox_missing(at(100));
        record.sandbox_missing(at(129));
        assert_eq!(record.status.read_failure, None);
        record.sandbox_missing(at(130));
        assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "SandboxNotFound");
        record.sandbox_found("b", at(131), booted());
        assert_eq!(record.status.read_failure, None);
    }

    #[test]
    fn a_healthy_idle_pod_is_written_once() {
        let record = watched();
        let status = record.status.clone();
        assert!(is_due(None, &status, at(1)));
        assert!(!is_due(Some((&status, at(1))), &status, at(100_000)));
        assert!(!is_due(None, &SandboxHealthStatus::default(), at(1)), "there is nothing to report yet");
    }

    #[test]
    fn moving_numbers_are_written_every_five_minutes_at_most() {
        let mut record = watched();
        let written = record.status.clone();
        record.read(reading(2), at(30), THRESHOLD);
        assert!(!is_due(Some((&written, at(1))), &record.status, at(300)));
        assert!(is_due(Some((&written, at(1))), &record.status, at(301)));
    }

    #[test]
    fn what_people_are_told_of_is_written_at_once() {
        let start = watched();
        let due = |change: &dyn Fn(&mut Record)| {
            let mut record = start.clone();
            change(&mut record);
            is_due(Some((&start.status, at(1))), &record.status, at(2))
        };
        assert!(due(&|record| {
            record.sandbox_found("b", at(2), booted());
        }));
        assert!(due(&|record| record.read(reading(5), at(2), THRESHOLD)));
        assert!(due(&|record| record.read(Err(ReadError::NotCounted), at(2), THRESHOLD)));
        assert!(!due(&|record| record.read(reading(1), at(2), THRESHOLD)));
    }

    #[test]
    fn numbers_that_did_not_move_keep_the_time_they_were_first_read() {
        let mut record = watched();
        let before = record.status.clone();
        record.read(reading(0), at(500), THRESHOLD);
        assert_eq!(record.status, before);
    }
}
