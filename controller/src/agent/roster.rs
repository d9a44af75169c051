//! The pods of the node with their sandboxes: ties what /proc shows to what the API says, and says which requests are due. It
//! reads /proc through what it was handed, with the moment; it asks the API for nothing itself.

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use pause_status::stat::Stat;
use rustix::fd::OwnedFd;

use super::census::{Census, Parent};
use super::ending::Ending;
use super::metrics::AgentMetrics;
use super::pause::{Pause, ReadError, Reading};
use super::pods::PodFacts;
use super::proc::{Boot, Proc, ProcessId};
use super::record::ZombieThreshold;
use super::walk::{Moment, Walker};
use super::watched::Watched;
use crate::api::ApiError;
use crate::resource::{PARENTS_MAX, SandboxHealth, SandboxHealthStatus, ZombieParent};
use crate::text::printable;
use crate::waited::waited;
use crate::workqueue_metrics::WorkQueue;

/// Between censuses where a pod's processes are counted by us: as often as pause counts.
const COUNT_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// Where zombies accumulate in a pod whose pause counts them, and only the parents are asked for.
const BLAME_EVERY: SignedDuration = SignedDuration::from_secs(30);
/// Elsewhere, for the zombies outside of pods.
const CENSUS_EVERY: SignedDuration = SignedDuration::from_mins(1);
/// Zombies whose age is kept; a node has a few.
const AGES_MAX: usize = 100_000;

/// The watched pods, by UID.
#[derive(Debug)]
pub struct Roster {
    proc: Proc,
    threshold: ZombieThreshold,
    pods: HashMap<String, Watched>,
    /// Objects that were there at the start, until their pod is seen.
    at_start: HashMap<Named, SandboxHealth>,
    walker: Walker,
    counted_at: Option<Timestamp>,
    /// The last look that could not wait until it was time.
    urgent_at: Option<Timestamp>,
    /// When each zombie was first seen.
    zombie_since: HashMap<ProcessId, Timestamp>,
    random: RandomState,
}

/// A pause process to be told of when it ends.
#[derive(Debug)]
pub struct Held {
    /// The pod that it belongs to.
    pub pod_uid: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Readable when it ends.
    pub pidfd: OwnedFd,
}

/// A request that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// UID of the pod it is for.
    pub pod_uid: String,
    /// Namespace of the pod and of the object.
    pub namespace: String,
    /// Name of the pod and of the object.
    pub name: String,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked of the API.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// The object.
    Fetch,
    /// To make the object, which the controller has not.
    Create(Box<SandboxHealth>),
    /// To write the status to the object.
    Write {
        /// What was seen.
        status: Box<SandboxHealthStatus>,
    },
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// To [`Ask::Fetch`].
    Fetched(Result<Option<Box<SandboxHealth>>, ApiError>),
    /// To [`Ask::Create`].
    Created(Result<Box<SandboxHealth>, ApiError>),
    /// To [`Ask::Write`], with what was to be written.
    Written(Box<SandboxHealthStatus>, Result<(), ApiError>),
}

impl Roster {
    /// No pods yet; `at_start` are the objects that the node's pods had.
    #[must_use]
    pub fn new(proc: Proc, threshold: ZombieThreshold, at_start: Vec<SandboxHealth>) -> Self {
        let at_start = by_name(at_start);
        Self {
            proc,
            threshold,
            pods: HashMap::new(),
            at_start,
            walker: Walker::default(),
            counted_at: None,
            urgent_at: None,
            zombie_since: HashMap::new(),
            random: RandomState::new(),
        }
    }

    /// A pod is there, or changed.
    pub fn pod_applied(&mut self, facts: PodFacts, now: Timestamp) {
        if let Some(watched) = self.pods.get_mut(&facts.uid) {
            watched.pod_applied(facts);
            return;
        }
        let object = self.at_start.remove(&(facts.namespace.clone(), facts.name.clone()));
        let uid = facts.uid.clone();
        let mut watched = Watched::new(facts, now);
        if let Some(object) = object.filter(|object| object.spec.pod_uid == uid) {
            watched.found_object(object, now);
        }
        self.pods.insert(uid, watched);
    }

    /// A pod is gone.
    pub fn pod_deleted(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// These are all the pods there are.
    pub fn keep_pods(&mut self, uids: &HashSet<String>) {
        self.pods.retain(|uid, _| uids.contains(uid));
        self.at_start.clear();
    }

    /// These are all the objects there were at `asked_at`.
    pub fn objects_listed(&mut self, objects: Vec<SandboxHealth>, asked_at: Timestamp, now: Timestamp) {
        let mut objects = by_name(objects);
        for (uid, watched) in &mut self.pods {
            let object = objects.remove(&(watched.facts.namespace.clone(), watched.facts.name.clone()));
            watched.listed(object.filter(|object| object.spec.pod_uid == *uid), asked_at, now);
        }
    }

    /// Whether a pod that should have a sandbox has none that we know.
    #[must_use]
    pub fn lacks_a_pause(&self) -> bool {
        self.pods.values().any(Watched::lacks_a_pause)
    }

    /// Whether this pod is one of those.
    #[must_use]
    pub fn lacks_its_pause(&self, pod_uid: &str) -> bool {
        self.pods.get(pod_uid).is_some_and(Watched::lacks_a_pause)
    }

    /// Looks for sandboxes among the processes that are new.
    pub fn find(&mut self) -> std::io::Result<Vec<Held>> {
        let (boot, ticks, held) = (self.proc.boot()?, self.proc.uptime_ticks()?, self.held());
        let found = self.walker.find_new(&self.proc, Moment { boot: &boot, ticks, held: &held })?;
        Ok(self.take(found))
    }

    /// The next look is due at once.
    pub fn look_soon(&mut self) {
        self.counted_at = None;
    }

    /// Looks through all processes if it is time: for sandboxes, for zombies, and for their parents.
    pub fn look(&mut self, now: Timestamp, metrics: &AgentMetrics) -> std::io::Result<Vec<Held>> {
        if self.is_look_urgent(now) {
            self.urgent_at = Some(now);
        } else if !self.is_look_due(now) {
            return Ok(Vec::new());
        }
        self.counted_at = Some(now);
        let (boot, ticks, held) = (self.proc.boot()?, self.proc.uptime_ticks()?, self.held());
        let (found, processes) = self.walker.look(&self.proc, Moment { boot: &boot, ticks, held: &held })?;
        let held = self.take(found);
        let zombies = processes.iter().filter(|process| process.unreaped_by.is_some());
        let known = std::mem::take(&mut self.zombie_since);
        let since = |id| (id, known.get(&id).copied().unwrap_or(now));
        self.zombie_since = zombies.take(AGES_MAX).map(|process| since(process.id)).collect();
        let census = Census::of(&processes);
        metrics.set_node_zombies(self.proc.shows_others().then_some(census.outside));
        self.counted(&census, now, metrics);
        Ok(held)
    }

    /// Whether a look is asked for by what cannot wait. Without a second's rest one pod could keep us looking.
    fn is_look_urgent(&self, now: Timestamp) -> bool {
        let rested = self.urgent_at.is_none_or(|at| waited(at, now) >= SignedDuration::from_secs(1));
        rested && self.pods.values().any(Watched::awaits_a_census)
    }

    fn is_look_due(&self, now: Timestamp) -> bool {
        let Some(before) = self.counted_at else { return true };
        let every = if self.pods.values().any(Watched::is_counted_by_us) {
            COUNT_EVERY
        } else if self.pods.values().any(|watched| watched.record.accumulates()) {
            BLAME_EVERY
        } else {
            CENSUS_EVERY
        };
        waited(before, now) >= every
    }

    fn counted(&mut self, census: &Census, now: Timestamp, metrics: &AgentMetrics) {
        // A pause of our own user is seen all the same, and would pass for all that there is of its pod.
        let hidden = !self.proc.shows_others();
        for watched in self.pods.values_mut() {
            if hidden && watched.is_counted_by_us() {
                metrics.read_failed(&ReadError::Hidden);
                watched.record.read(Err(ReadError::Hidden), now, self.threshold);
                continue;
            }
            let Some(pod) = census.of_pod(&watched.facts.cgroup_id) else { continue };
            if watched.is_counted_by_us() {
                let reading = Reading { zombies: pod.zombies, processes: pod.processes, told: None };
                watched.record.read(Ok(reading), now, self.threshold);
            }
            if watched.record.accumulates() {
                let named = |parent| named(&self.proc, &self.zombie_since, &watched.facts, parent, now);
                watched.record.blame(pod.parents.iter().filter_map(named).take(PARENTS_MAX).collect());
            }
        }
    }

    fn held(&self) -> HashSet<ProcessId> {
        self.pods.values().filter_map(|watched| Some(watched.pause.as_ref()?.id)).collect()
    }

    /// Of a pod's candidates the oldest is the sandbox: it starts before any container does.
    fn take(&mut self, mut found: Vec<Pause>) -> Vec<Held> {
        found.sort_by_key(|pause| pause.id.start_ticks);
        let by_cgroup: HashMap<String, String> =
            self.pods.iter().map(|(uid, watched)| (watched.facts.cgroup_id.clone(), uid.clone())).collect();
        let mut held = Vec::new();
        for pause in found {
            let watched = by_cgroup.get(&pause.identity.pod).and_then(|uid| self.pods.get_mut(uid));
            held.extend(watched.and_then(|watched| watched.take_pause(pause)));
        }
        held
    }

    /// Reads every known sandbox and makes of it what is to be made.
    pub fn observe(&mut self, now: Timestamp, metrics: &AgentMetrics) -> std::io::Result<()> {
        let boot: Boot = self.proc.boot()?;
        let hidden = self.lacks_a_pause() && !self.proc.shows_others();
        for watched in self.pods.values_mut() {
            watched.observe(now, &boot, hidden, self.threshold, metrics);
        }
        metrics.set_pods(self.pods.values().map(Watched::series).collect());
        Ok(())
    }

    /// Whether the pod with this UID is one of the node's.
    #[must_use]
    pub fn knows(&self, pod_uid: &str) -> bool {
        self.pods.contains_key(pod_uid)
    }

    /// A pause process that was held ended.
    pub fn pause_ended(&mut self, pod_uid: &str, sandbox: &str, now: Timestamp, ending: Option<Ending>) {
        if let Some(watched) = self.pods.get_mut(pod_uid) {
            watched.pause_ended(sandbox, now, ending);
        }
    }

    /// It cannot be told when a pause process ends, so it's as if it had not been found.
    pub fn lost_sight(&mut self, pod_uid: &str, sandbox: &str) {
        if let Some(watched) = self.pods.get_mut(pod_uid) {
            watched.drop_pause(sandbox);
        }
    }

    /// The requests that are due, as far as they are allowed; each is under way from here until it is answered. Who asked last
    /// comes last: however much some pods have to tell, the others get their turn.
    pub fn requests_due(
        &mut self,
        now: Timestamp,
        queue: &WorkQueue,
        mut allowed: impl FnMut() -> bool,
    ) -> Vec<Request> {
        let mut asking: Vec<_> = self
            .pods
            .iter_mut()
            .filter_map(|(uid, watched)| Some((watched.due(now, queue)?, uid, watched)))
            .collect();
        asking.sort_by_key(|(_, _, watched)| watched.asked_at());
        let waiting = asking.len();
        let mut due = Vec::new();
        for (ask, uid, watched) in asking {
            if !allowed() {
                break;
            }
            watched.asked(now, queue);
            let PodFacts { namespace, name, .. } = &watched.facts;
            due.push(Request { pod_uid: uid.clone(), namespace: namespace.clone(), name: name.clone(), ask });
        }
        queue.set_depth(waiting.saturating_sub(due.len()));
        due
    }

    /// A request was answered.
    pub fn answered(&mut self, pod_uid: &str, answer: Answer, now: Timestamp) {
        if let Some(watched) = self.pods.get_mut(pod_uid) {
            watched.answered(answer, now, &self.random);
        }
    }
}

/// Namespace and name.
type Named = (String, String);

fn by_name(objects: Vec<SandboxHealth>) -> HashMap<Named, SandboxHealth> {
    let named = |object: &SandboxHealth| (object.namespace().unwrap_or_default(), object.name_any());
    objects.into_iter().map(|object| (named(&object), object)).collect()
}

/// A parent of zombies as people know it; `None` when it is gone meanwhile.
fn named(
    proc: &Proc,
    zombie_since: &HashMap<ProcessId, Timestamp>,
    facts: &PodFacts,
    parent: &Parent,
    now: Timestamp,
) -> Option<ZombieParent> {
    let process = proc.process(parent.id.pid).ok()?;
    let line = process.read("stat", 1024).ok()?;
    let stat = Stat::parse(&line).filter(|stat| stat.start_ticks == parent.id.start_ticks)?;
    let since = parent.zombies.iter().filter_map(|zombie| zombie_since.get(zombie)).min();
    Some(ZombieParent {
        pid: process.pids().last().copied()?,
        command: printable(stat.comm),
        container: facts.containers.get(&parent.container).cloned().unwrap_or_default(),
        zombies: i64::try_from(parent.zombies.len()).unwrap_or(i64::MAX),
        oldest_seconds: since.map_or(0, |since| now.duration_since(*since).as_secs().max(0)),
    })
}

#[cfg(test)]
mod tests;
