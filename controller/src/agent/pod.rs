//! One tracked pod of the node: what the API reports about it, the state of its sandbox, its pause process while there is one, and its
//! report.

use std::collections::HashMap;
use std::sync::{Arc, Once};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fd::OwnedFd;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::metrics::{AgentMetrics, PodSeries};
use super::report::{Report, Request};
use crate::core::cause::Evidence;
use crate::core::sandbox::{FoundSandbox, Now, SandboxState, ZombieThreshold};
use crate::crd::{RestartReason, SandboxHealth, SandboxHealthStatus};
use crate::k8s::pod::{NodePod, PidNamespaces, Stage};
use crate::procfs::pause::{PauseProcess, PauseReport, ReadError};
use crate::procfs::scanner::Service;

/// Time for which a restart found at the start is not counted: for Prometheus, what the first scrape has is no increase.
const SHOW_ZERO: Duration = Duration::from_secs(120);
/// How long a report waits for the first counts of a sandbox, or the parents of zombies: it is one write, and an Event is created once.
const SCAN_WAIT: Duration = Duration::from_secs(10);

static POLLING: Once = Once::new();

#[derive(Debug)]
pub struct TrackedPod {
    pub pod: Arc<NodePod>,
    pub sandbox: SandboxState,
    pub report: Report,
    pause: Option<HeldPause>,
    /// Since when its report waits.
    waiting_since: Option<Instant>,
    /// Its pause does not report processes.
    is_counted_by_agent: bool,
    restarts: HashMap<RestartReason, u64>,
    /// Restarts that are not counted yet.
    early_restarts: Vec<RestartReason>,
    first_observed_at: Option<Instant>,
}

#[derive(Debug)]
struct HeldPause {
    process: PauseProcess,
    /// Of a pause that could not count all processes.
    report: Option<PauseReport>,
    /// Dropped with the pause, it ends the wait for its exit. `None` where the kernel has no pidfds.
    wait: Option<oneshot::Sender<()>>,
}

/// A pause process whose exit is to be waited for.
#[derive(Debug)]
pub struct ExitWait {
    pub pod_uid: String,
    pub sandbox: String,
    pub pidfd: OwnedFd,
    /// Of the shim of the container runtime, if pause is its child.
    pub shim: Option<OwnedFd>,
    /// Closed when the pause is no longer tracked.
    pub released: oneshot::Receiver<()>,
}

#[derive(Debug, Clone, Copy)]
pub struct ReadContext<'a> {
    pub now: Now,
    pub boot_id: Option<&'a str>,
    /// Whether the processes of other users are not visible.
    pub is_hidden: bool,
    pub threshold: ZombieThreshold,
    pub services: &'a [Service],
    /// Whether the OOM killer has just killed a process of the node.
    pub oom_killed: bool,
    pub metrics: &'a AgentMetrics,
}

impl TrackedPod {
    pub fn new(pod: Arc<NodePod>, now: Instant) -> Self {
        Self {
            pod,
            sandbox: SandboxState::default(),
            report: Report::new(now),
            pause: None,
            waiting_since: None,
            is_counted_by_agent: false,
            restarts: HashMap::new(),
            early_restarts: Vec::new(),
            first_observed_at: None,
        }
    }

    pub fn set_pod(&mut self, pod: Arc<NodePod>) {
        self.pod = pod;
        if let Some(message) = &self.pod.kubelet_message {
            // The next message may come before the next reading.
            self.sandbox.kubelet_message(message);
        }
        // A container named pause whose id was not in the pod's status yet when it was found.
        let is_container =
            |pause: &mut HeldPause| self.pod.containers.contains_key(&pause.process.identity.container);
        if let Some(pause) = self.pause.take_if(is_container) {
            self.sandbox.not_a_sandbox(&pause.process.identity.container);
        }
    }

    /// The pod's object, if it has one now. The status of the first one is continued from; one that replaces it is written again.
    pub fn set_object(&mut self, object: Option<&SandboxHealth>, now: Instant) {
        let uid = object.and_then(|object| object.metadata.uid.as_deref());
        if uid == self.report.object.as_deref() {
            return;
        }
        let nothing = SandboxHealthStatus::default();
        let status = object.and_then(|object| object.status.clone()).unwrap_or_default().observation();
        let is_first = *self.sandbox.status() == nothing && status != nothing;
        if is_first {
            self.sandbox = SandboxState::resume(status.clone());
        }
        self.report.set_object(uid, is_first.then_some(status), now);
    }

    pub fn pause(&self) -> Option<&PauseProcess> {
        self.pause.as_ref().map(|pause| &pause.process)
    }

    /// What its pause reports beside counts that are not complete.
    pub fn pause_report(&self) -> Option<PauseReport> {
        self.pause.as_ref()?.report.clone()
    }

    /// Whether a sandbox is missing. Without a shared PID namespace a pod may never have one (CRI-O, VM runtimes).
    pub fn lacks_sandbox(&self) -> bool {
        let needs_one = self.is_pid_shared() || self.sandbox.status().sandbox.is_some();
        needs_one && self.pause.is_none() && self.pod.is_active()
    }

    fn is_pid_shared(&self) -> bool {
        self.pod.pid_namespaces == Some(PidNamespaces::Shared)
    }

    /// Whether the agent counts the processes of the pod: until its sandbox ends, also if it terminates slowly.
    pub fn is_counted_by_agent(&self) -> bool {
        self.is_counted_by_agent && self.pause.is_some() && self.pod.stage != Stage::Finished
    }

    /// Whether something is unknown until the next scan: the first counts of a sandbox, or the parents of its zombies.
    pub fn awaits_scan(&self) -> bool {
        self.is_counted_by_agent() && self.is_uncounted() || self.sandbox.lacks_parents()
    }

    fn is_uncounted(&self) -> bool {
        let status = self.sandbox.status();
        let is_there = self.pause.is_some() && self.pod.stage != Stage::Finished;
        is_there && status.processes.is_none() && status.read_failure.is_none()
    }

    /// Holds a pause process of the pod unless it is a container, or the known sandbox lives: a sandbox ends before the next one
    /// starts, so another candidate is a container that is not in the pod's status yet.
    pub fn take_pause(&mut self, process: PauseProcess) -> Option<ExitWait> {
        let is_container = self.pod.containers.contains_key(&process.identity.container);
        if is_container || self.pause.is_some() && !self.sandbox.is_pause_gone() {
            return None;
        }
        let pidfd = match process.pidfd() {
            Ok(pidfd) => Some(pidfd?),
            Err(error) => {
                POLLING.call_once(
                    || tracing::warn!(%error, "no pidfds (Linux 5.3); polling for exits of pause"),
                );
                None
            }
        };
        let sandbox = process.identity.container.clone();
        let (namespace, pod) = (self.pod.namespace(), self.pod.name());
        tracing::info!(namespace, pod, sandbox, pid = process.id.pid, "found sandbox");
        self.is_counted_by_agent = !self.is_pid_shared();
        let shim = process.shim_pidfd();
        let (wait, released) = oneshot::channel();
        self.pause = Some(HeldPause { process, report: None, wait: pidfd.is_some().then_some(wait) });
        Some(ExitWait { pod_uid: self.pod.uid().to_owned(), sandbox, pidfd: pidfd?, shim, released })
    }

    /// The pause of this sandbox exited. Returns whether another sandbox is expected.
    pub fn pause_exited(&mut self, sandbox: &str, time: Timestamp, evidence: Evidence) -> bool {
        let (namespace, pod) = (self.pod.namespace(), self.pod.name());
        tracing::info!(namespace, pod, sandbox, ?evidence, "pause exited");
        let is_unexpected = self.pod.is_active() && self.pod.states.is_running;
        self.sandbox.pause_exited(sandbox, time, evidence, is_unexpected);
        self.release_pause(sandbox);
        self.pause.is_none() && self.pod.is_active()
    }

    /// The pause of this sandbox is not held any more, and may be found again.
    pub fn release_pause(&mut self, sandbox: &str) {
        self.pause.take_if(|pause| pause.process.identity.container == sandbox);
    }

    pub fn observe(&mut self, context: ReadContext<'_>) {
        let ReadContext { now, is_hidden, metrics, .. } = context;
        self.first_observed_at.get_or_insert(now.instant);
        if self.counts_early_restarts(now.instant) {
            for reason in std::mem::take(&mut self.early_restarts) {
                *self.restarts.entry(reason).or_default() += 1;
            }
        }
        self.poll_exit(now.time, context.oom_killed);
        match self.pod.stage {
            Stage::Finished => self.sandbox.pod_finished(&self.pod.states, context.services),
            _ if self.pause.is_some() => self.observe_sandbox(context),
            Stage::Terminating => self.sandbox.pod_ended(),
            Stage::Running if self.lacks_sandbox() => {
                if is_hidden {
                    metrics.read_failed(&ReadError::Hidden);
                }
                self.sandbox.sandbox_missing(is_hidden, now);
            }
            Stage::Running | Stage::Pending => {}
        }
    }

    fn counts_early_restarts(&self, now: Instant) -> bool {
        self.first_observed_at.is_some_and(|first| now.duration_since(first) >= SHOW_ZERO)
    }

    /// Without pidfds, before Linux 5.3, the exit of pause is noticed at the next reading.
    fn poll_exit(&mut self, time: Timestamp, oom_killed: bool) {
        let polled = self.pause.as_ref().filter(|pause| pause.wait.is_none() && pause.process.has_exited());
        if let Some(sandbox) = polled.map(|pause| pause.process.identity.container.clone()) {
            self.pause_exited(&sandbox, time, Evidence { oom_killed, ..Evidence::default() });
        }
    }

    fn observe_sandbox(&mut self, context: ReadContext<'_>) {
        let ReadContext { now, boot_id, threshold, services, metrics, .. } = context;
        let Some(HeldPause { process, .. }) = &self.pause else { return };
        let (id, started_at) = (process.identity.container.as_str(), process.started_at);
        let found = FoundSandbox { id, started_at, boot_id, services };
        if let Some(reason) = self.sandbox.sandbox_found(found, now) {
            let (namespace, pod) = (self.pod.namespace(), self.pod.name());
            tracing::info!(namespace, pod, sandbox = found.id, ?reason, "sandbox restarted");
            if reason == RestartReason::PauseExited || self.counts_early_restarts(now.instant) {
                *self.restarts.entry(reason).or_default() += 1;
            } else {
                self.early_restarts.push(reason);
            }
        }
        if !self.is_pid_shared() {
            return;
        }
        let result = process.read();
        let report = match &result {
            Err(ReadError::NotCounted(report)) => Some(report.clone()),
            _ => None,
        };
        let needs_count = result.as_ref().is_err_and(ReadError::needs_count);
        if needs_count && process.is_new && self.sandbox.is_starting(now.instant) {
            return;
        }
        self.is_counted_by_agent = needs_count;
        if let Some(pause) = &mut self.pause {
            pause.report = report;
        }
        if needs_count {
            return;
        }
        if let Err(error) = &result {
            metrics.read_failed(error);
        }
        self.sandbox.read(result, now, threshold);
    }

    pub fn request_due(&mut self, now: Instant) -> Option<Request> {
        let is_waiting = self.is_uncounted() || self.sandbox.lacks_parents();
        self.waiting_since = is_waiting.then(|| self.waiting_since.unwrap_or(now));
        if self.waiting_since.is_some_and(|since| now.duration_since(since) < SCAN_WAIT) {
            return None;
        }
        let is_ending = self.pod.stage == Stage::Terminating && self.pause.is_none();
        self.report.due(self.sandbox.status(), self.pod.pid_namespaces, is_ending, now)
    }

    pub fn series(&self) -> PodSeries {
        let (pod, sandbox, restarts) = (self.pod.clone(), self.sandbox.clone(), self.restarts.clone());
        PodSeries { pod, sandbox, restarts }
    }
}
