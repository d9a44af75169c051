//! What is known of one pod's sandbox, and what each observation makes of it. This file decides what a restart is and why it
//! was, when zombies accumulate, and what is unknown; it reads no clock, no /proc and no API.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ending::Ending;
use super::pause::{ReadError, Reading};
use super::proc::Boot;
use crate::resource::{
    PARENTS_MAX, PastSandbox, Processes, ReadFailure, RestartReason, SANDBOX_NOT_FOUND, Sandbox,
    SandboxHealthStatus, Source, ZOMBIES_REAPED, ZombieParent,
};
use crate::sandbox_condition::KubeletSaid;
use crate::waited::waited;

/// How long a running pod may be without a sandbox that we find before we say so.
pub const MISSING_GRACE: SignedDuration = SignedDuration::from_secs(30);
/// How long after an unseen replacement the containers' restart counts may still tell that there was more than one.
const COUNTS_LAG: SignedDuration = SignedDuration::from_mins(2);
/// After half a minute (less a margin) pauses are searched for only now and then, and one may have come and gone between a death
/// and the next that was found.
const FOUND_LATE: SignedDuration = SignedDuration::from_secs(25);
/// A pause that was found so recently may have yet to write its status.
const YOUNG: SignedDuration = SignedDuration::from_secs(2);
/// By how much a time of the kubelet's may lag behind the start of the pause process: it has whole seconds, and ours too.
const SAME_START: SignedDuration = SignedDuration::from_secs(2);

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
    /// When the sandbox in `status` was found by this agent.
    found_at: Option<Timestamp>,
    /// What the kubelet said last of why the sandbox is not ready.
    kubelet_said: Option<KubeletSaid>,
    /// It was asked who leaves the zombies that are too many.
    blamed: bool,
    /// A replacement that nobody saw, while it can still turn out to have been more than one.
    unseen: Option<Unseen>,
}

#[derive(Debug, Clone, PartialEq)]
struct Unseen {
    /// Its number among the restarts.
    restart: i64,
    /// The containers' restart count by which one replacement would show as one more.
    before: i64,
    until: Timestamp,
}

/// A living sandbox as it was found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Id that the runtime gave it.
    pub id: &'a str,
    /// When its pause process started.
    pub started_at: Timestamp,
    /// The boot that it was started in.
    pub boot: &'a Boot,
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
        let mut status = status.seen();
        if status.sandbox.is_none() && (status.restarts > 0 || status.processes.is_some()) {
            // Somebody took it away. One that was replaced meanwhile is not found out.
            status.restarts_at_least = Some(true);
        }
        Self { status, accumulating_since, ..Self::default() }
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

    /// Why the sandbox is not ready, in the kubelet's words.
    pub fn kubelet_said(&mut self, said: &KubeletSaid) {
        self.kubelet_said = Some(said.clone());
    }

    /// The least restart count of the pod's containers, as the kubelet says while the known sandbox lives. Every sandbox
    /// restart is one of each container, also before the kubelet has said so.
    pub fn containers_restarted(&mut self, count: i64, now: Timestamp) {
        match &self.unseen {
            Some(unseen) if now >= unseen.until => self.unseen = None,
            Some(unseen) if count > unseen.before.saturating_add(1) => {
                let restart = unseen.restart;
                self.unseen = None;
                self.may_be_more(restart);
            }
            Some(_) => return,
            None => {}
        }
        let known = self.status.container_restarts.unwrap_or_default();
        self.status.container_restarts = Some(count.max(known));
    }

    /// A living sandbox was found for the pod. Another one than before is a restart, and its reason is returned.
    pub fn sandbox_found(&mut self, found: Found<'_>, now: Timestamp) -> Option<RestartReason> {
        self.missing_since = None;
        let known = self.status.sandbox.as_ref();
        if known.is_some_and(|known| known.id.as_deref() == Some(found.id)) {
            return None;
        }
        let sandbox = Sandbox {
            id: Some(found.id.to_owned()),
            started_at: Time(found.started_at),
            boot_id: Some(found.boot.id.clone()),
            pause_version: None,
        };
        let before = self.status.sandbox.replace(sandbox);
        self.found_at = Some(now);
        self.forget_processes();
        // Its status said so, if not its pidfd.
        let seen_gone = self.gone_since.take().map(|at| Death { at, ending: None });
        self.death = self.death.take().or(seen_gone);
        self.status.read_failure = None;
        let before = before.filter(|before| !is_same(before, found.started_at))?;
        Some(self.restarted(before, found, now))
    }

    fn restarted(&mut self, before: Sandbox, found: Found<'_>, now: Timestamp) -> RestartReason {
        // They went with the namespace.
        self.accumulating_since = None;
        let death = self.death.take();
        // Before it has ever made one, the kubelet says that there is none.
        let kubelet_said = self.kubelet_said.take().filter(|said| said.at > before.started_at.0);
        let (reason, ending) = why(&before, death.as_ref(), found.boot);
        let cause = ending.as_deref().unwrap_or_else(|| unexplained(reason));
        let message = KubeletSaid::added_to(cause, kubelet_said.as_ref());
        let counted = self.status.container_restarts.unwrap_or_default();
        let missed = death.as_ref().is_none_or(|death| waited(death.at, now) >= FOUND_LATE);
        match &mut self.unseen {
            Some(unseen) => {
                unseen.before = unseen.before.saturating_add(1);
                if missed {
                    unseen.restart = self.status.restarts.saturating_add(1);
                }
            }
            None if missed => {
                let until = now.checked_add(COUNTS_LAG).unwrap_or(Timestamp::MAX);
                let restart = self.status.restarts.saturating_add(1);
                self.unseen = Some(Unseen { restart, before: counted, until });
            }
            None => {}
        }
        self.status.container_restarts = Some(counted.saturating_add(1));
        let past = PastSandbox {
            sandbox_id: before.id.unwrap_or_default(),
            started_at: before.started_at,
            ended_at: death.map(|death| whole_seconds(death.at)),
            reason,
            message: ending,
        };
        self.status.restarted(Time(found.started_at), message, past);
        reason
    }

    /// Instead of this restart there may have been more than one.
    fn may_be_more(&mut self, restart: i64) {
        self.status.restarts_at_least = Some(true);
        if let Some(last) = self.status.last_restart.as_mut().filter(|_| self.status.restarts == restart) {
            last.message.push_str("; at least once, for the containers were restarted more often");
        }
    }

    /// What was read of the living sandbox.
    pub fn read(&mut self, outcome: Result<Reading, ReadError>, now: Timestamp, threshold: ZombieThreshold) {
        match outcome {
            Ok(reading) => self.counted(reading, now, threshold),
            Err(_) if self.found_at.is_some_and(|found| waited(found, now) < YOUNG) => {}
            Err(error @ ReadError::Gone) => {
                // The pidfd will say so, too, and a new one be found or missed; unless the kernel cannot end the namespace,
                // for a process in it that cannot be killed.
                let since = *self.gone_since.get_or_insert(now);
                if waited(since, now) >= MISSING_GRACE {
                    self.failed(error.reason(), &error.to_string());
                }
            }
            Err(error) => self.failed(error.reason(), &error.to_string()),
        }
    }

    /// A pod that should have a sandbox has none that we find. Takes a while to be said, since a restart takes a while.
    /// `hidden`: the agent sees no other's processes.
    pub fn sandbox_missing(&mut self, hidden: bool, now: Timestamp) {
        let since = *self.missing_since.get_or_insert(now);
        if waited(since, now) < MISSING_GRACE {
            return;
        }
        if hidden {
            self.failed(ReadError::Hidden.reason(), &ReadError::Hidden.to_string());
        } else {
            self.failed(SANDBOX_NOT_FOUND, "no pause process of the pod was found on its node");
        }
    }

    /// Whether the pause process was found to have ended, though its pidfd does not say so.
    #[must_use]
    pub fn is_pause_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    /// Whether too many zombies are there, by the last count.
    #[must_use]
    pub fn accumulates(&self) -> bool {
        self.status.processes.as_ref().is_some_and(|processes| processes.accumulating_since.is_some())
    }

    /// Whether it was asked who leaves so many zombies. Nobody of the pod may do: a runtime's shim leaves some, too.
    #[must_use]
    pub fn is_blamed(&self) -> bool {
        self.blamed
    }

    /// Who leaves the zombies. A list that differs in nothing but ages is the same.
    pub fn blame(&mut self, mut parents: Vec<ZombieParent>) {
        parents.truncate(PARENTS_MAX);
        let ageless = |parents: &[ZombieParent]| -> Vec<_> {
            parents.iter().map(|parent| ZombieParent { oldest_seconds: 0, ..parent.clone() }).collect()
        };
        self.blamed = self.accumulates();
        if self.accumulates() && ageless(&parents) != ageless(&self.status.zombie_parents) {
            self.status.zombie_parents = parents;
        }
    }

    /// What was taken for a sandbox is a container of the pod.
    pub fn no_sandbox(&mut self, id: &str) {
        if self.status.sandbox.take_if(|sandbox| sandbox.id.as_deref() == Some(id)).is_some() {
            self.forget_processes();
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
            threshold.exceeded(since.is_some(), reading.zombies).then(|| since.unwrap_or(whole_seconds(now)));
        self.accumulating_since = accumulating_since.clone();
        self.gone_since = None;
        if accumulating_since.is_none() {
            self.status.zombie_parents.clear();
            self.blamed = false;
        }
        let peak_so_far = before.as_ref().map_or(0, |before| before.zombies_peak);
        let told = reading.told.as_ref();
        let mut processes = Processes {
            zombies: reading.zombies.into(),
            zombies_peak: told.map_or(peak_so_far.max(reading.zombies.into()), |told| told.peak.into()),
            total: reading.processes.into(),
            reaped_total: told.map(|told| i64::try_from(told.reaped).unwrap_or(i64::MAX)),
            observed_at: whole_seconds(now),
            accumulating_since,
        };
        if let Some(before) = before {
            let same = Processes { observed_at: before.observed_at.clone(), ..processes.clone() };
            if same == before {
                processes = before;
            }
        }
        self.status.processes = Some(processes);
        self.status.source = Some(if told.is_some() { Source::PauseStatusFile } else { Source::ProcScan });
        self.status.read_failure = None;
        if let Some(sandbox) = &mut self.status.sandbox {
            sandbox.pause_version = reading.told.map(|told| told.version);
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
        self.status.zombie_parents.clear();
        self.blamed = false;
    }
}

/// As the API keeps a time. With more than it keeps, what we wrote would not be what we find there.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// Whether a sandbox that the kubelet was seen to find ready, when no agent was there, is the one that was found now.
fn is_same(before: &Sandbox, started_at: Timestamp) -> bool {
    before.id.is_none() && started_at.duration_since(before.started_at.0) <= SAME_START
}

/// Why a sandbox went, and how its pause ended where that was told.
fn why(before: &Sandbox, death: Option<&Death>, boot: &Boot) -> (RestartReason, Option<String>) {
    if let Some(death) = death {
        return (RestartReason::PauseExited, death.ending.as_ref().map(|ending| format!("pause {ending}")));
    }
    let rebooted = match &before.boot_id {
        Some(id) => *id != boot.id,
        // Before it was kept.
        None => before.started_at.0 < boot.at,
    };
    (if rebooted { RestartReason::NodeRebooted } else { RestartReason::Replaced }, None)
}

/// What is said where nobody told how pause ended.
const fn unexplained(reason: RestartReason) -> &'static str {
    match reason {
        RestartReason::PauseExited => {
            "pause ended; how is not known (before Linux 6.15, or not told in time)"
        }
        RestartReason::NodeRebooted | RestartReason::Replaced => reason.in_words(),
    }
}

#[cfg(test)]
mod tests;
