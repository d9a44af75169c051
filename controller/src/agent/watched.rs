//! One pod of the node: the facts of it, its record, its pause while there is one, and its SandboxHealth object as far as we
//! know; and from these the request that is due. It asks for nothing itself.

use std::collections::HashMap;
use std::hash::RandomState;

use jiff::{SignedDuration, Timestamp};

use super::due::{Due, REFRESH, due, is_news, is_wrong};
use super::ending::Ending;
use super::metrics::{AgentMetrics, PodSeries};
use super::pause::{Pause, ReadError};
use super::pods::{PodFacts, Stage};
use super::proc::Boot;
use super::record::{Found, Record, ZombieThreshold};
use super::roster::{Answer, Ask, Held};
use crate::api::ApiError;
use crate::authorship::edited_by;
use crate::backoff;
use crate::budget::Budget;
use crate::resource::{RestartReason, SandboxHealth, SandboxHealthStatus};
use crate::sandbox_condition::KubeletSaid;
use crate::scope::PidNamespaces;
use crate::waited::waited;
use crate::workqueue_metrics::{Work, WorkQueue};

/// An object that is not there is asked for this often; then a list must show it, for there may be none on purpose.
const FETCHES: u32 = 6;
/// After so many, we make the object of a pod with something wrong ourselves.
const FETCHES_WRONG: u32 = 2;

/// For so long a counter shows 0 where it would begin with a restart that was found afterwards: Prometheus takes for an increase
/// what comes between two scrapes, and not what is there at the first.
const FROM_ZERO: SignedDuration = SignedDuration::from_mins(2);

/// What a pod can make come and go is written at once so often; and then as often as numbers that move, and together with them.
const SWINGS_AT_ONCE: u32 = 10;

/// A pod that is watched.
#[derive(Debug)]
pub struct Watched {
    /// What the API says of it.
    pub facts: PodFacts,
    /// What we know of its sandbox.
    pub record: Record,
    /// Its pause process, once found.
    pub pause: Option<Pause>,
    /// Sandboxes that were seen before it was known what the object says of earlier ones; oldest first.
    early: Vec<Sighting>,
    /// What the kubelet said last of a sandbox that was not ready. The next word may come before we look.
    kubelet_said: Option<KubeletSaid>,
    object: Object,
    written: Option<(SandboxHealthStatus, Timestamp)>,
    restarts: HashMap<RestartReason, u64>,
    /// Restarts that were found at the first looks, and are not shown yet.
    found_first: HashMap<RestartReason, u64>,
    /// The first look.
    observed_first: Option<Timestamp>,
    /// The pause says nothing of the pod's processes, so that we count them.
    counted_by_us: bool,
    /// Writes of what the pod can make come and go.
    swings: Budget,
    /// Since when a request is due that was not made yet.
    due_since: Option<Timestamp>,
    /// While a request is under way.
    asking: Option<Work>,
    /// When it last asked for something.
    asked_at: Option<Timestamp>,
    failures: u32,
    put_off: Option<PutOff>,
}

/// A request that failed is not made again at once.
#[derive(Debug, Clone, Copy)]
struct PutOff {
    since: Timestamp,
    wait: SignedDuration,
}

impl PutOff {
    fn holds(self, now: Timestamp) -> bool {
        waited(self.since, now) < self.wait
    }
}

/// A sandbox that was seen.
#[derive(Debug)]
struct Sighting {
    id: String,
    started_at: Timestamp,
    found_at: Timestamp,
    ended: Option<(Timestamp, Option<Ending>)>,
}

/// The pod's SandboxHealth object, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Object {
    /// Nobody asked yet. What it says of earlier restarts must be known before one is counted.
    Unknown,
    /// There was none when last asked.
    Absent,
    /// There was one when we wanted to make it, be it another pod's.
    Taken,
    Present {
        uid: String,
        /// Somebody else wrote into it, which is to be written over whether or not there is anything new.
        edited: bool,
    },
}

impl Watched {
    /// A pod that was not known before. Of one whose object is made only when something is wrong, none is looked for before.
    #[must_use]
    pub fn new(facts: PodFacts, now: Timestamp) -> Self {
        let object = match facts.namespaces {
            PidNamespaces::Shared => Object::Unknown,
            PidNamespaces::PerContainer => Object::Absent,
        };
        let kubelet_said = facts.kubelet_said.clone();
        Self {
            facts,
            record: Record::default(),
            pause: None,
            early: Vec::new(),
            kubelet_said,
            object,
            written: None,
            restarts: HashMap::new(),
            found_first: HashMap::new(),
            observed_first: None,
            counted_by_us: false,
            swings: Budget::new(SWINGS_AT_ONCE, REFRESH, now),
            due_since: None,
            asking: None,
            asked_at: None,
            failures: 0,
            put_off: None,
        }
    }

    /// The API says something else of it than before.
    pub fn pod_applied(&mut self, facts: PodFacts) {
        if facts.kubelet_said.is_some() {
            self.kubelet_said.clone_from(&facts.kubelet_said);
        }
        self.facts = facts;
        // A container that calls itself so, and that the pod's status did not name yet when it was found.
        let container = |pause: &mut Pause| self.facts.containers.contains_key(&pause.identity.container);
        if let Some(pause) = self.pause.take_if(container) {
            self.early.retain(|sighting| sighting.id != pause.identity.container);
            self.record.no_sandbox(&pause.identity.container);
        }
    }

    /// Whether it should have a sandbox, and none is known.
    #[must_use]
    pub fn lacks_a_pause(&self) -> bool {
        self.pause.is_none() && matches!(self.facts.stage, Stage::Pending | Stage::Running)
    }

    /// Whether we have to count its processes ourselves.
    #[must_use]
    pub fn is_counted_by_us(&self) -> bool {
        self.pause.is_some()
            && self.counted_by_us
            && matches!(self.facts.stage, Stage::Pending | Stage::Running)
    }

    /// Whether a count would tell something that we don't know: the first of a sandbox, or who leaves so many zombies.
    #[must_use]
    pub fn awaits_a_census(&self) -> bool {
        let status = self.record.status();
        let uncounted = status.processes.is_none() && status.read_failure.is_none();
        (self.is_counted_by_us() && uncounted) || (self.record.accumulates() && !self.record.is_blamed())
    }

    /// Takes hold of a pause process of the pod, unless it is a container's, or the sandbox is known and lives.
    pub fn take_pause(&mut self, pause: Pause) -> Option<Held> {
        if self.facts.containers.contains_key(&pause.identity.container) {
            return None;
        }
        // A sandbox ends before the next one starts. Whoever comes while it lives is a container that the pod's status does not
        // name yet.
        if self.pause.is_some() && !self.record.is_pause_gone() {
            return None;
        }
        let pidfd = pause.pidfd()?;
        let sandbox = pause.identity.container.clone();
        let PodFacts { namespace, name, .. } = &self.facts;
        tracing::info!(namespace, pod = name, sandbox, pid = pause.id.pid, "found the sandbox");
        self.counted_by_us = self.facts.namespaces == PidNamespaces::PerContainer;
        self.pause = Some(pause);
        Some(Held { pod_uid: self.facts.uid.clone(), sandbox, pidfd })
    }

    /// The pause of this sandbox ended.
    pub fn pause_ended(&mut self, sandbox: &str, at: Timestamp, ending: Option<Ending>) {
        match self.early.last_mut().filter(|sighting| sighting.id == sandbox) {
            Some(sighting) => sighting.ended = Some((at, ending)),
            None => self.record.pause_ended(sandbox, at, ending),
        }
        self.drop_pause(sandbox);
    }

    /// The pause of this sandbox is not there any more.
    pub fn drop_pause(&mut self, sandbox: &str) {
        self.pause.take_if(|pause| pause.identity.container == sandbox);
    }

    /// Looks at the sandbox, reads its status, and makes of both what is to be made.
    pub fn observe(
        &mut self,
        now: Timestamp,
        boot: &Boot,
        hidden: bool,
        threshold: ZombieThreshold,
        metrics: &AgentMetrics,
    ) {
        self.show_found_first(now);
        if self.object == Object::Unknown {
            self.sighted(now);
            return;
        }
        if let Some(said) = &self.kubelet_said {
            self.record.kubelet_said(said);
        }
        for Sighting { id, started_at, found_at, ended } in std::mem::take(&mut self.early) {
            self.sandbox_found(Found { id: &id, started_at, boot }, found_at);
            if let Some((at, ending)) = ended {
                self.record.pause_ended(&id, at, ending);
            }
        }
        match (self.pause.is_some(), self.facts.stage) {
            (_, Stage::Finished | Stage::Deleted) => self.record.pod_ending(),
            (true, _) => self.observe_sandbox(now, boot, threshold, metrics),
            (false, Stage::Running) => {
                if hidden {
                    metrics.read_failed(&ReadError::Hidden);
                }
                self.record.sandbox_missing(hidden, now);
            }
            (false, Stage::Pending) => {}
        }
    }

    fn shows_all(&self, now: Timestamp) -> bool {
        self.observed_first.is_some_and(|first| waited(first, now) >= FROM_ZERO)
    }

    fn show_found_first(&mut self, now: Timestamp) {
        self.observed_first.get_or_insert(now);
        if self.shows_all(now) {
            for (reason, count) in std::mem::take(&mut self.found_first) {
                *self.restarts.entry(reason).or_default() += count;
            }
        }
    }

    /// Keeps in mind what must not be counted yet.
    fn sighted(&mut self, now: Timestamp) {
        let Some(pause) = &self.pause else { return };
        let id = &pause.identity.container;
        if self.early.last().is_none_or(|last| last.id != *id) {
            let (id, started_at) = (id.clone(), pause.started_at);
            self.early.push(Sighting { id, started_at, found_at: now, ended: None });
        }
    }

    fn sandbox_found(&mut self, found: Found<'_>, now: Timestamp) {
        if let Some(reason) = self.record.sandbox_found(found, now) {
            let is_seen = reason == RestartReason::PauseExited || self.shows_all(now);
            let counts = if is_seen { &mut self.restarts } else { &mut self.found_first };
            *counts.entry(reason).or_default() += 1;
            let PodFacts { namespace, name, .. } = &self.facts;
            tracing::info!(namespace, pod = name, sandbox = found.id, ?reason, "the sandbox was restarted");
        }
    }

    fn observe_sandbox(
        &mut self,
        now: Timestamp,
        boot: &Boot,
        threshold: ZombieThreshold,
        metrics: &AgentMetrics,
    ) {
        let Some(pause) = &self.pause else { return };
        let (id, started_at) = (pause.identity.container.clone(), pause.started_at);
        self.sandbox_found(Found { id: &id, started_at, boot }, now);
        let Some(pause) = &self.pause else { return };
        if let Some(count) = self.facts.container_restarts {
            self.record.containers_restarted(count, now);
        }
        if self.facts.namespaces == PidNamespaces::PerContainer {
            return;
        }
        let outcome = pause.read();
        self.counted_by_us = outcome.as_ref().is_err_and(|error| error.says_nothing());
        if self.counted_by_us {
            return;
        }
        if let Err(error) = &outcome {
            metrics.read_failed(error);
        }
        self.record.read(outcome, now, threshold);
    }

    /// The request that is due, which waits from now on if it did not before.
    pub fn due(&mut self, now: Timestamp, queue: &WorkQueue) -> Option<Ask> {
        let ask = self.ask(now);
        if ask.is_some() && self.due_since.is_none() {
            queue.added();
            if self.failures > 0 {
                queue.retried();
            }
        }
        self.due_since = ask.as_ref().map(|_| self.due_since.unwrap_or(now));
        ask
    }

    /// Nothing else of a pod that goes is of interest to anybody: its row goes with it, and what it was told of stays.
    fn has_unwritten_restart(&self) -> bool {
        let written = self.written.as_ref().map_or(0, |(status, _)| status.restarts);
        matches!(self.object, Object::Present { .. }) && self.record.status().restarts > written
    }

    fn ask(&self, now: Timestamp) -> Option<Ask> {
        if self.asking.is_some()
            || (self.facts.stage == Stage::Deleted && !self.has_unwritten_restart())
            || self.put_off.is_some_and(|put_off| put_off.holds(now))
        {
            return None;
        }
        let wrong = is_wrong(self.record.status());
        match &self.object {
            Object::Present { edited, .. } => {
                let status = self.record.status();
                let written = self.written.as_ref().map(|(status, at)| (status, *at));
                let is_due = match due(written, status, now) {
                    Due::Not => *edited,
                    Due::IfSeldom => *edited || self.swings.is_left(now),
                    Due::AtOnce => true,
                };
                is_due.then(|| Ask::Write { status: Box::new(status.clone()) })
            }
            Object::Unknown => Some(Ask::Fetch),
            Object::Absent if wrong && self.failures >= FETCHES_WRONG => {
                Some(Ask::Create(Box::new(self.facts.object())))
            }
            Object::Absent | Object::Taken if wrong => Some(Ask::Fetch),
            _ if self.facts.namespaces == PidNamespaces::PerContainer => None,
            Object::Absent | Object::Taken => (self.failures < FETCHES).then_some(Ask::Fetch),
        }
    }

    /// When it last asked for something.
    #[must_use]
    pub fn asked_at(&self) -> Option<Timestamp> {
        self.asked_at
    }

    /// A request is under way.
    pub fn asked(&mut self, now: Timestamp, queue: &WorkQueue) {
        self.asked_at = Some(now);
        let waited = self.due_since.take().map(|since| now.duration_since(since));
        self.asking = Some(queue.started(waited.and_then(|waited| waited.try_into().ok())));
    }

    /// The request was answered.
    pub fn answered(&mut self, answer: Answer, now: Timestamp, random: &RandomState) {
        self.asking = None;
        match answer {
            Answer::Fetched(Ok(Some(object))) => {
                self.succeeded();
                self.found_object(*object, now);
            }
            Answer::Fetched(Ok(None)) => {
                self.object = Object::Absent;
                self.failed(now, random);
            }
            Answer::Created(Ok(object)) => {
                self.succeeded();
                self.found_object(*object, now);
            }
            Answer::Written(status, Ok(())) => {
                self.succeeded();
                if let Object::Present { edited, .. } = &mut self.object {
                    *edited = false;
                }
                match &self.written {
                    // What comes and goes with a restart is not the pod's doing.
                    Some((before, _)) if is_news(before, &status) => self.swings.give_back(now),
                    Some(_) => self.swings.spend(now),
                    None => {}
                }
                self.written = Some((*status, now));
            }
            Answer::Created(Err(error @ ApiError::Conflict(_))) => {
                self.object = Object::Taken;
                self.log_failure(&error);
                self.failed(now, random);
            }
            Answer::Written(_, Err(error @ (ApiError::NotFound(_) | ApiError::Conflict(_)))) => {
                // Another object of the name, or none: what was written is gone, what we know is not.
                self.lose_object();
                self.log_failure(&error);
                self.failed(now, random);
            }
            Answer::Written(_, Err(error)) => {
                if error.may_have_been_done() {
                    // What was true before may have been written over, and be true again.
                    self.written = None;
                }
                self.log_failure(&error);
                self.failed(now, random);
            }
            Answer::Fetched(Err(error)) | Answer::Created(Err(error)) => {
                self.log_failure(&error);
                self.failed(now, random);
            }
        }
    }

    /// What the list of all objects, asked for at `asked_at`, has of this pod. Who has another object than we wrote to, or
    /// none, or one that somebody changed, gets all that we know again: an idle pod has nothing to write by which we would
    /// find out.
    pub fn listed(&mut self, object: Option<SandboxHealth>, asked_at: Timestamp, now: Timestamp) {
        // What is being asked for, or was written meanwhile, will tell by itself.
        if self.asking.is_some() || self.written.as_ref().is_some_and(|(_, at)| *at >= asked_at) {
            return;
        }
        let ours = |object: &SandboxHealth| matches!(&self.object, Object::Present { uid, .. } if object.metadata.uid.as_ref() == Some(uid));
        match object {
            Some(object) if ours(&object) => {
                let by = edited_by(&object);
                let has = object.status.unwrap_or_default().seen();
                let changed = self.written.as_ref().is_some_and(|(written, _)| *written != has);
                if by.is_some() || changed {
                    let PodFacts { namespace, name, .. } = &self.facts;
                    tracing::warn!(
                        namespace,
                        pod = name,
                        by,
                        "somebody changed the status; writing it again"
                    );
                    let uid = object.metadata.uid.unwrap_or_default();
                    self.object = Object::Present { uid, edited: true };
                    self.written = None;
                }
            }
            Some(object) if self.object != Object::Unknown => {
                self.succeeded();
                self.found_object(object, now);
            }
            None if matches!(self.object, Object::Present { .. }) => {
                self.lose_object();
                self.succeeded();
            }
            _ => {}
        }
    }

    /// What the object says is where we go on from, unless we have been counting without it.
    pub fn found_object(&mut self, object: SandboxHealth, now: Timestamp) {
        let by = edited_by(&object);
        if by.is_some() {
            let PodFacts { namespace, name, .. } = &self.facts;
            tracing::warn!(namespace, pod = name, by, "somebody changed the status; going on from the rest");
        }
        let status = object.status.unwrap_or_default();
        let seen = status.clone().seen();
        let reported = seen != SandboxHealthStatus::default();
        if reported && self.record == Record::default() {
            self.record = Record::from_written(status);
        }
        self.written = (reported && by.is_none()).then_some((seen, now));
        self.object = Object::Present { uid: object.metadata.uid.unwrap_or_default(), edited: by.is_some() };
    }

    fn lose_object(&mut self) {
        self.object = Object::Absent;
        self.written = None;
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.put_off = None;
    }

    /// Puts off the next request.
    fn failed(&mut self, now: Timestamp, random: &RandomState) {
        let wait = backoff::wait(self.failures, &self.facts.uid, random);
        self.failures = self.failures.saturating_add(1);
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        self.put_off = Some(PutOff { since: now, wait });
    }

    fn log_failure(&self, error: &ApiError) {
        let PodFacts { namespace, name, .. } = &self.facts;
        tracing::warn!(namespace, pod = name, %error, "the report did not get through; trying again");
    }

    /// What Prometheus is shown.
    #[must_use]
    pub fn series(&self) -> PodSeries {
        PodSeries {
            namespace: self.facts.namespace.clone(),
            pod: self.facts.name.clone(),
            status: self.record.status().clone(),
            restarts: self.restarts.clone(),
        }
    }
}
