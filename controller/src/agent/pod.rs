//! One tracked pod of the node: what the API reports about it, the state of its sandbox, its pause process while there is one, and its
//! report.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Once};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fd::OwnedFd;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::metrics::{AgentMetrics, PodSeries};
use super::oom::OomKills;
use super::report::{Report, Request};
use crate::core::cause::Evidence;
use crate::core::sandbox::{FoundSandbox, Now, SandboxState, ZombieThreshold};
use crate::crd::{RestartReason, SandboxHealth, SandboxHealthStatus};
use crate::k8s::pod::{NodePod, PidNamespaces, Stage};
use crate::procfs::Proc;
use crate::procfs::pause::{OpenPidfd, PauseProcess, PauseReport, ReadError, Reading};
use crate::procfs::scanner::{InitProcess, Service};

/// Restarts found at the start are counted after this time: for Prometheus, the value of the first scrape is no increase.
const SHOW_ZERO: Duration = Duration::from_secs(120);
/// How long a report waits for the first counts of a sandbox, or the parents of zombies: it is one write, and an Event is created once.
const SCAN_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct TrackedPod {
    pub pod: Arc<NodePod>,
    pub sandbox: SandboxState,
    pub report: Report,
    pause: Option<HeldPause>,
    /// Its runtime class runs it without a pause process. It is not searched for at each reading.
    runs_without_pause: bool,
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
    /// Report of a pause that could not count all processes.
    report: Option<PauseReport>,
    /// Dropped with the pause, it ends the wait for its exit. `None` where there is no pidfd: then readings notice the exit.
    wait: Option<oneshot::Sender<()>>,
    /// It was found while the pause before it was alive.
    is_replacement: bool,
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
    /// What keeps the agent from finding sandboxes of the node.
    pub obstacle: Option<&'a ReadError>,
    pub threshold: ZombieThreshold,
    pub services: &'a [Service],
    pub metrics: &'a AgentMetrics,
}

impl TrackedPod {
    pub fn new(pod: Arc<NodePod>, now: Instant) -> Self {
        Self {
            pod,
            sandbox: SandboxState::default(),
            report: Report::new(now),
            pause: None,
            runs_without_pause: false,
            waiting_since: None,
            is_counted_by_agent: false,
            restarts: HashMap::new(),
            early_restarts: Vec::new(),
            first_observed_at: None,
        }
    }

    pub fn set_pod(&mut self, pod: Arc<NodePod>, now: Now, oom_kills: &mut OomKills) {
        if !Arc::ptr_eq(&self.pod, &pod) {
            // Whether an exit was unexpected follows from the state of the pod until then.
            self.poll_exit(now, oom_kills);
        }
        self.pod = pod;
        if let Some(message) = &self.pod.kubelet_message {
            // The next message may come before the next reading.
            self.sandbox.kubelet_message(message);
        }
        let is_container =
            |pause: &mut HeldPause| self.pod.containers.contains_key(&pause.process.identity.container);
        if let Some(pause) = self.pause.take_if(is_container) {
            self.sandbox.not_a_sandbox(&pause.process.identity.container);
        }
    }

    /// Sets the pod's object. The state continues from the status of the first one; an object that replaces it is written again.
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

    /// The report of its pause where the counts of that are incomplete.
    pub fn pause_report(&self) -> Option<PauseReport> {
        self.pause.as_ref()?.report.clone()
    }

    /// Whether a sandbox is missing. CRI-O starts none for a pod that does not share its PID namespace, nor do VM runtimes.
    pub fn lacks_sandbox(&self) -> bool {
        let needs_one = self.is_pid_shared() || self.sandbox.status().sandbox.is_some();
        needs_one && self.pause.is_none() && self.pod.is_active() && !self.runs_without_pause
    }

    fn is_pid_shared(&self) -> bool {
        self.pod.pid_namespaces == Some(PidNamespaces::Shared)
    }

    /// Whether the agent counts the processes of the pod: until its sandbox ends, also if it terminates slowly.
    pub fn is_counted_by_agent(&self) -> bool {
        let is_without_pause = self.pod.stage == Stage::Running
            && (self.runs_without_pause || !self.is_pid_shared() && self.sandbox.status().sandbox.is_none());
        (self.is_counted_by_agent && self.pause.is_some() && self.pod.stage != Stage::Finished)
            || is_without_pause
    }

    /// The agent counted the processes of the pod.
    pub fn counted(&mut self, reading: Reading, now: Now, threshold: ZombieThreshold) {
        self.sandbox.read(Ok(reading), now, threshold);
        // Zombies that the node sees are reported. If it sees none, there may still be some inside the VM.
        if self.runs_without_pause && !self.sandbox.is_accumulating() {
            self.sandbox.sandbox_missing(&ReadError::NoPause, now);
        }
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

    /// Holds the pause of the pod's sandbox, if it is among these processes. The kubelet uses the youngest sandbox of a pod.
    pub fn find_sandbox(
        &mut self,
        inits: &[InitProcess],
        proc: &Proc,
        open_pidfd: OpenPidfd,
        now: Now,
        oom_kills: &mut OomKills,
    ) -> Option<ExitWait> {
        let init = sandbox_of(inits, &self.pod.containers, self.is_pid_shared())?;
        let is_replacement = match &self.pause {
            Some(held) if init.id.start_ticks <= held.process.id.start_ticks => return None,
            Some(held) if !held.process.has_exited() => true,
            // Its pidfd reports the exit in a moment.
            Some(held) if held.wait.is_some() && !self.sandbox.is_pause_gone() => return None,
            Some(_) | None => false,
        };
        self.poll_exit(now, oom_kills);
        let process = init.hold(proc)?;
        let pidfd = match process.pidfd(open_pidfd) {
            Ok(pidfd) => Some(pidfd?),
            Err(error) => {
                log_polling(&error);
                None
            }
        };
        let sandbox = process.identity.container.clone();
        let (namespace, pod) = (self.pod.namespace(), self.pod.name());
        tracing::info!(namespace, pod, sandbox, pid = process.id.pid, "found sandbox");
        self.is_counted_by_agent = !self.is_pid_shared();
        self.runs_without_pause = false;
        let shim = process.shim_pidfd();
        let (wait, released) = oneshot::channel();
        let wait = pidfd.is_some().then_some(wait);
        self.pause = Some(HeldPause { process, report: None, wait, is_replacement });
        Some(ExitWait { pod_uid: self.pod.uid().to_owned(), sandbox, pidfd: pidfd?, shim, released })
    }

    /// The pause of this sandbox exited. Returns whether another sandbox is expected.
    pub fn pause_exited(&mut self, sandbox: &str, time: Timestamp, evidence: Evidence) -> bool {
        let (namespace, pod) = (self.pod.namespace(), self.pod.name());
        tracing::info!(namespace, pod, sandbox, ?evidence, "pause exited");
        let is_unexpected = self.pod.is_active() && self.pod.states.is_running;
        self.sandbox.pause_exited(sandbox, time, evidence, is_unexpected);
        self.pause.take_if(|pause| pause.process.identity.container == sandbox);
        self.pause.is_none() && self.pod.is_active()
    }

    /// Readings notice the exit of this sandbox's pause from now on, because its pidfd cannot be waited for.
    pub fn poll(&mut self, sandbox: &str, error: &dyn Display) {
        log_polling(error);
        let held = self.pause.as_mut().filter(|pause| pause.process.identity.container == sandbox);
        if let Some(held) = held {
            held.wait = None;
        }
    }

    pub fn observe(&mut self, context: ReadContext<'_>, oom_kills: &mut OomKills) {
        let now = context.now;
        self.first_observed_at.get_or_insert(now.instant);
        if self.counts_early_restarts(now.instant) {
            for reason in std::mem::take(&mut self.early_restarts) {
                *self.restarts.entry(reason).or_default() += 1;
            }
        }
        self.poll_exit(now, oom_kills);
        match self.pod.stage {
            Stage::Finished => self.sandbox.pod_finished(&self.pod.states, context.services),
            _ if self.pause.is_some() => self.observe_sandbox(context),
            Stage::Terminating => self.sandbox.pod_ended(),
            Stage::Running | Stage::Pending if self.lacks_sandbox() => self.observe_missing(context),
            Stage::Running | Stage::Pending => {}
        }
    }

    fn observe_missing(&mut self, ReadContext { now, obstacle, metrics, .. }: ReadContext<'_>) {
        let error = match obstacle {
            _ if !self.pod.has_sandbox => &ReadError::NotCreated,
            Some(obstacle) => obstacle,
            None if self.pod.has_runtime_class => &ReadError::NoPause,
            None => &ReadError::NotFound,
        };
        if self.sandbox.sandbox_missing(error, now) {
            metrics.read_failed(error);
            self.runs_without_pause = *error == ReadError::NoPause;
        }
    }

    fn counts_early_restarts(&self, now: Instant) -> bool {
        self.first_observed_at.is_some_and(|first| now.duration_since(first) >= SHOW_ZERO)
    }

    /// Without pidfds, the exit of pause is noticed by readings and changes of the pod.
    fn poll_exit(&mut self, now: Now, oom_kills: &mut OomKills) {
        let polled = self.pause.as_ref().filter(|pause| pause.wait.is_none() && pause.process.has_exited());
        if let Some(sandbox) = polled.map(|pause| pause.process.identity.container.clone()) {
            let oom_killed = oom_kills.are_recent(now.instant);
            self.pause_exited(&sandbox, now.time, Evidence { oom_killed, ..Evidence::default() });
        }
    }

    fn observe_sandbox(&mut self, context: ReadContext<'_>) {
        let ReadContext { now, boot_id, threshold, services, metrics, .. } = context;
        let Some(HeldPause { process, is_replacement, .. }) = &self.pause else { return };
        let (id, started_at) = (process.identity.container.as_str(), process.started_at);
        let found = FoundSandbox { id, started_at, boot_id, is_replacement: *is_replacement, services };
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

/// The youngest sandbox among the processes that are PID 1 of a PID namespace of the pod. A process that is not in the pod's status may
/// be a container that has just started, unless all containers share the namespace of the sandbox. If it is older than a container in
/// the status, it is no container: the status would list both.
fn sandbox_of<'a>(
    inits: &'a [InitProcess],
    containers: &HashMap<String, String>,
    is_pid_shared: bool,
) -> Option<&'a InitProcess> {
    let is_container = |init: &&InitProcess| containers.contains_key(&init.identity.container);
    let start = |init: &InitProcess| init.id.start_ticks;
    let newest_container = inits.iter().filter(is_container).map(start).max();
    let is_older = |init: &&InitProcess| newest_container.is_some_and(|newest| start(init) < newest);
    let sandboxes = inits.iter().filter(|init| !is_container(init) && (is_pid_shared || is_older(init)));
    sandboxes.max_by_key(|init| start(init))
}

fn log_polling(error: &dyn Display) {
    static POLLING: Once = Once::new();
    POLLING.call_once(|| {
        tracing::warn!(%error, "pidfds are unavailable (pidfd_open requires Linux 5.3); polling for exits of pause");
    });
}
