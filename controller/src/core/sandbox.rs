//! The state of one pod's sandbox and how observations change it: restarts and terminations with their causes, accumulation of zombies,
//! and what is unknown.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use super::cause::{Evidence, Exit, unobserved};
use crate::crd::{
    PARENTS_MAX, PastSandbox, Processes, ReadFailure, RestartReason, Sandbox, SandboxHealthStatus,
    Termination, ZombieParent,
};
use crate::k8s::pod::{ContainerStates, KubeletMessage};
use crate::procfs::pause::{ReadError, Reading};
use crate::procfs::scanner::Service;

/// Time that a pod may be without a sandbox before it is unknown. A start and a restart take a few seconds.
pub const MISSING_GRACE: Duration = Duration::from_secs(30);
/// Time after a sandbox was found in which its pause may not have written its status yet.
pub const STARTING: Duration = Duration::from_secs(2);
/// Time of a container's exit relative to that of pause which caused it: the kernel ends the containers first, a busy node notices the
/// exit of pause late, and the kubelet cuts times to seconds.
const SAME_EXIT: RangeInclusive<SignedDuration> =
    SignedDuration::from_secs(-5)..=SignedDuration::from_secs(2);

/// A point in time: for durations by the monotonic clock, and for API fields by the wall clock, which may be set back and forward.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub time: Timestamp,
}

impl Now {
    pub fn read() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// Zombie count at which zombies accumulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZombieThreshold(pub u32);

impl ZombieThreshold {
    /// Hysteresis: zombies accumulate until half of the threshold is left. A count around the threshold causes one Event.
    fn is_exceeded(self, was_exceeded: bool, zombies: u32) -> bool {
        if was_exceeded { zombies > self.0 / 2 } else { zombies >= self.0.max(1) }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct FoundSandbox<'a> {
    pub id: &'a str,
    pub started_at: Timestamp,
    pub boot_id: Option<&'a str>,
    /// Whether the pause of the previous sandbox was alive when this one was found.
    pub is_replacement: bool,
    pub services: &'a [Service],
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PauseExit {
    time: Timestamp,
    evidence: Evidence,
    /// Whether containers were running then, and the pod was not ending.
    is_unexpected: bool,
}

impl PauseExit {
    fn cause(&self, sandbox: &Sandbox, services: &[Service]) -> String {
        let &Self { time, evidence, .. } = self;
        let is_own_pause = sandbox.pause_version.is_some();
        Exit { evidence, time, started_at: sandbox.started_at.0, services, is_own_pause }.cause()
    }
}

/// The state of one pod's sandbox: the agent's part of the status, and what it remembers between observations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxState {
    status: SandboxHealthStatus,
    /// Exit of the sandbox in `status`.
    exit: Option<PauseExit>,
    /// Since when there is no sandbox, and whether the kubelet has created one.
    missing_since: Option<(Instant, bool)>,
    /// When pause was first found to have exited although its pidfd did not report it.
    gone_since: Option<(Instant, Timestamp)>,
    /// When the sandbox in `status` was found by this agent.
    found_at: Option<Instant>,
    kubelet_message: Option<KubeletMessage>,
    /// A scan searched for the parents of the accumulating zombies. There may be none in the pod.
    are_parents_known: bool,
}

impl SandboxState {
    /// Continues from what an agent wrote earlier.
    pub fn resume(status: SandboxHealthStatus) -> Self {
        Self { status: status.observation(), ..Self::default() }
    }

    pub fn status(&self) -> &SandboxHealthStatus {
        &self.status
    }

    /// The pause of sandbox `id` exited. `is_unexpected`: containers were running, and the pod was not ending.
    pub fn pause_exited(&mut self, id: &str, time: Timestamp, evidence: Evidence, is_unexpected: bool) {
        if self.status.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == id) {
            self.exit = Some(PauseExit { time, evidence, is_unexpected });
        }
    }

    /// The kubelet reports why the sandbox is not ready.
    pub fn kubelet_message(&mut self, message: &KubeletMessage) {
        self.kubelet_message = Some(message.clone());
    }

    /// A live sandbox was found. Another one than before is a restart, whose reason is returned.
    pub fn sandbox_found(&mut self, found: FoundSandbox<'_>, now: Now) -> Option<RestartReason> {
        self.missing_since = None;
        if self.status.sandbox.as_ref().is_some_and(|known| known.id == found.id) {
            return None;
        }
        let sandbox = Sandbox {
            id: found.id.to_owned(),
            started_at: Time(found.started_at),
            boot_id: found.boot_id.map(str::to_owned),
            pause_version: None,
        };
        let before = self.status.sandbox.replace(sandbox);
        self.found_at = Some(now.instant);
        self.forget_processes();
        self.status.read_failure = None;
        let gone = self.gone_since.take();
        before.map(|before| self.restarted(before, found, gone.map(|(_, time)| time)))
    }

    fn restarted(
        &mut self,
        before: Sandbox,
        found: FoundSandbox<'_>,
        gone: Option<Timestamp>,
    ) -> RestartReason {
        // The zombies ended with the PID namespace.
        self.status.accumulating_since = None;
        self.status.termination = None;
        let gone = gone.map(|time| PauseExit { time, evidence: Evidence::default(), is_unexpected: false });
        let exit = self.exit.take().or(gone);
        let is_rebooted = before.boot_id.as_deref().zip(found.boot_id).is_some_and(|(old, new)| old != new);
        let reason = match exit {
            Some(_) => RestartReason::PauseExited,
            None if is_rebooted => RestartReason::NodeRebooted,
            None => RestartReason::Replaced,
        };
        if exit.is_none() && !found.is_replacement {
            // Sandboxes in between may have come and gone.
            self.status.restarts_at_least = Some(true);
        }
        let observed = exit.as_ref().map(|exit| exit.cause(&before, found.services));
        let cause = match &observed {
            Some(cause) => cause,
            None if found.is_replacement => "the sandbox was replaced while its pause was running",
            None => unobserved(reason),
        };
        // Before the first sandbox of a pod the kubelet reports that there is none.
        let kubelet_message = self.kubelet_message.take().filter(|message| {
            message.at > before.started_at.0
                && exit.as_ref().is_none_or(|exit| exit.evidence.is_unexplained())
        });
        let message = KubeletMessage::added_to(cause, kubelet_message.as_ref());
        let past = PastSandbox {
            sandbox_id: before.id,
            started_at: before.started_at,
            ended_at: exit.map(|exit| whole_seconds(exit.time)),
            reason,
            message: observed,
        };
        self.status.restarted(Time(found.started_at), message, past);
        reason
    }

    pub fn read(&mut self, result: Result<Reading, ReadError>, now: Now, threshold: ZombieThreshold) {
        match result {
            Ok(reading) => self.counted(reading, now, threshold),
            Err(_) if self.is_starting(now.instant) => {}
            Err(error @ ReadError::Gone) => {
                // The pidfd reports the exit too, unless a process of the namespace cannot be killed.
                let (since, _) = *self.gone_since.get_or_insert((now.instant, now.time));
                if now.instant.duration_since(since) >= MISSING_GRACE {
                    self.failed(error.reason(), &error.to_string());
                }
            }
            Err(error) => self.failed(error.reason(), &error.to_string()),
        }
    }

    /// Whether pause may not have written its status yet.
    pub fn is_starting(&self, now: Instant) -> bool {
        self.found_at.is_some_and(|found| now.duration_since(found) < STARTING)
    }

    /// The pod has no sandbox, for this reason. Returns whether that is so for long enough to be a failure.
    pub fn sandbox_missing(&mut self, error: &ReadError, now: Now) -> bool {
        let is_created = *error != ReadError::NotCreated;
        let since = self.missing_since.filter(|since| since.1 == is_created);
        let (since, _) = *self.missing_since.insert(since.unwrap_or((now.instant, is_created)));
        let is_failure = now.instant.duration_since(since) >= MISSING_GRACE;
        if is_failure {
            self.failed(error.reason(), &error.to_string());
        }
        is_failure
    }

    /// Whether pause was found to have exited although its pidfd does not report it.
    pub fn is_pause_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    pub fn is_accumulating(&self) -> bool {
        self.status.processes.is_some() && self.status.accumulating_since.is_some()
    }

    /// Whether a scan is needed to learn the parents of accumulating zombies.
    pub fn lacks_parents(&self) -> bool {
        self.is_accumulating() && !self.are_parents_known
    }

    /// A scan found the parents of the zombies. It and pause count at different times: no parent has more zombies than the pod.
    pub fn set_zombie_parents(&mut self, mut parents: Vec<ZombieParent>) {
        if !self.is_accumulating() {
            return;
        }
        parents.truncate(PARENTS_MAX);
        let counted: i64 = parents.iter().map(|parent| parent.zombies).sum();
        if let Some(processes) = &mut self.status.processes {
            processes.zombies = processes.zombies.max(counted);
            processes.zombies_peak = processes.zombies_peak.max(counted);
        }
        self.status.zombie_parents = parents;
        self.are_parents_known = true;
    }

    /// The process that was taken for the sandbox belongs to a container.
    pub fn not_a_sandbox(&mut self, id: &str) {
        if self.status.sandbox.take_if(|sandbox| sandbox.id == id).is_some() {
            self.forget_processes();
        }
    }

    /// The pod has ended or is ending, and its sandbox with it.
    pub fn pod_ended(&mut self) {
        self.missing_since = None;
        self.status.accumulating_since = None;
        self.status.read_failure = None;
        self.forget_processes();
    }

    /// The pod is in a terminal phase: the kubelet does not replace the sandbox. If its exit is what killed the containers, that is a
    /// termination; if they exited first, it is the normal end.
    pub fn pod_finished(&mut self, containers: &ContainerStates, services: &[Service]) {
        self.pod_ended();
        // With a deadline the phase comes before the final states of the containers.
        if containers.is_running {
            return;
        }
        let Some(exit) = self.exit.take().filter(|exit| exit.is_unexpected) else { return };
        let is_same = |at: &Timestamp| SAME_EXIT.contains(&at.duration_since(exit.time));
        if let Some(sandbox) = &self.status.sandbox
            && containers.killed_at.iter().any(is_same)
        {
            self.status.termination = Some(Termination {
                sandbox_id: sandbox.id.clone(),
                time: whole_seconds(exit.time),
                message: exit.cause(sandbox, services),
            });
        }
    }

    fn counted(&mut self, reading: Reading, now: Now, threshold: ZombieThreshold) {
        let before = self.status.processes.take();
        let since = self.status.accumulating_since.take();
        self.status.accumulating_since = threshold
            .is_exceeded(since.is_some(), reading.zombies)
            .then(|| since.unwrap_or_else(|| whole_seconds(now.time)));
        self.gone_since = None;
        if self.status.accumulating_since.is_none() {
            self.forget_parents();
        }
        self.limit_parents(reading.zombies.into());
        let peak_so_far = before.as_ref().map_or(0, |before| before.zombies_peak);
        let peak = reading.pause.as_ref().map_or(peak_so_far, |pause| pause.peak_zombies.into());
        let mut processes = Processes {
            zombies: reading.zombies.into(),
            zombies_peak: peak.max(reading.zombies.into()),
            total: reading.processes.into(),
            threads: reading.threads.into(),
            reaped_total: reading.pause.as_ref().map(|pause| i64::try_from(pause.reaped).unwrap_or(i64::MAX)),
            observed_at: whole_seconds(now.time),
        };
        if let Some(before) = before {
            let same = Processes { observed_at: before.observed_at.clone(), ..processes.clone() };
            if same == before {
                processes = before;
            }
        }
        self.status.processes = Some(processes);
        self.status.source = Some(reading.source);
        self.status.read_failure = None;
        if let Some(sandbox) = &mut self.status.sandbox {
            sandbox.pause_version = reading.pause.map(|pause| pause.version);
        }
    }

    /// Reduces the counts of the parents to a total that was read later.
    fn limit_parents(&mut self, mut zombies: i64) {
        for parent in &mut self.status.zombie_parents {
            parent.zombies = parent.zombies.min(zombies);
            zombies -= parent.zombies;
        }
        self.status.zombie_parents.retain(|parent| parent.zombies > 0);
    }

    /// What cannot be read is unknown: neither 0 nor its last value.
    fn failed(&mut self, reason: &str, message: &str) {
        self.forget_processes();
        self.status.read_failure =
            Some(ReadFailure { reason: reason.to_owned(), message: message.to_owned() });
    }

    fn forget_processes(&mut self) {
        self.status.processes = None;
        self.status.source = None;
        self.forget_parents();
    }

    fn forget_parents(&mut self) {
        self.status.zombie_parents.clear();
        self.are_parents_known = false;
    }
}

/// The time in whole seconds, as the API stores it: a status with fractions would differ from the stored one.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

#[cfg(test)]
mod tests;
