//! The pods of the node with their sandboxes: ties what /proc shows to what the API says, keeps a record for each pod, and
//! says which requests are due. It reads /proc through what it was handed; it asks the API for nothing itself.

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use jiff::Timestamp;
use rustix::fd::OwnedFd;

use super::ending::Ending;
use super::metrics::{AgentMetrics, PodSeries};
use super::pods::{PodFacts, Stage};
use super::proc::{Pause, Proc, ProcessId};
use super::record::{Record, ZombieThreshold, is_due};
use crate::api::ApiError;
use crate::backoff;
use crate::resource::{RestartReason, SandboxHealth, SandboxHealthStatus};

/// The pods that share their PID namespace, by UID.
#[derive(Debug)]
pub struct Roster {
    proc: Proc,
    threshold: ZombieThreshold,
    pods: HashMap<String, Watched>,
    /// Objects that were there at the start, by the UID of their pod, until the pod is seen.
    at_start: HashMap<String, SandboxHealth>,
    random: RandomState,
}

#[derive(Debug)]
struct Watched {
    facts: PodFacts,
    record: Record,
    pause: Option<Pause>,
    object: Object,
    written: Option<(SandboxHealthStatus, Timestamp)>,
    restarts: HashMap<RestartReason, u64>,
    asking: bool,
    failures: u32,
    retry_at: Option<Timestamp>,
}

/// The pod's SandboxHealth object, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Object {
    /// Nobody asked yet. What it says of earlier restarts must be known before one is counted.
    Unknown,
    /// There was none; the controller will make one.
    Absent,
    Present {
        uid: String,
    },
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
    /// To write the status to the object.
    Write {
        /// UID of the object.
        object_uid: String,
        /// The agent's part of it.
        status: Box<SandboxHealthStatus>,
    },
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// To [`Ask::Fetch`].
    Fetched(Result<Option<Box<SandboxHealth>>, ApiError>),
    /// To [`Ask::Write`], with what was to be written.
    Written(Box<SandboxHealthStatus>, Result<(), ApiError>),
}

impl Roster {
    /// No pods yet; `at_start` are the objects that the node's pods had.
    #[must_use]
    pub fn new(proc: Proc, threshold: ZombieThreshold, at_start: Vec<SandboxHealth>) -> Self {
        let at_start = at_start.into_iter().map(|object| (object.spec.pod_uid.clone(), object)).collect();
        Self { proc, threshold, pods: HashMap::new(), at_start, random: RandomState::new() }
    }

    /// A pod is there, or changed.
    pub fn pod_applied(&mut self, facts: PodFacts, now: Timestamp) {
        if let Some(watched) = self.pods.get_mut(&facts.uid) {
            watched.facts = facts;
            return;
        }
        let uid = facts.uid.clone();
        let mut watched = Watched::new(facts);
        if let Some(object) = self.at_start.remove(&uid) {
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

    /// These are all the objects there are. Who has another than we wrote to, or none, gets all that we know again: a user
    /// may have deleted it, and an idle pod has nothing to write by which we would find out.
    pub fn keep_objects(&mut self, objects: &[SandboxHealth]) {
        let uids: HashSet<_> = objects.iter().filter_map(|object| object.metadata.uid.as_deref()).collect();
        for watched in self.pods.values_mut() {
            // What is being asked for will tell by itself.
            let gone = matches!(&watched.object, Object::Present { uid } if !uids.contains(uid.as_str()));
            if gone && !watched.asking {
                watched.object = Object::Absent;
                watched.written = None;
            }
        }
    }

    /// Whether a pod that should have a sandbox has none that we know.
    #[must_use]
    pub fn lacks_a_pause(&self) -> bool {
        let expected = |watched: &Watched| matches!(watched.facts.stage, Stage::Pending | Stage::Running);
        self.pods.values().any(|watched| watched.pause.is_none() && expected(watched))
    }

    /// Looks through /proc for sandboxes that are not known yet.
    pub fn find(&mut self) -> std::io::Result<Vec<Held>> {
        let known: HashSet<ProcessId> =
            self.pods.values().filter_map(|watched| Some(watched.pause.as_ref()?.id)).collect();
        let found = self.proc.find_pauses(&known)?;
        let by_cgroup: HashMap<String, String> =
            self.pods.iter().map(|(uid, watched)| (watched.facts.cgroup_id.clone(), uid.clone())).collect();
        let mut held = Vec::new();
        for pause in found {
            let Some(uid) = by_cgroup.get(&pause.identity.pod) else {
                continue;
            };
            let Some(watched) = self.pods.get_mut(uid) else {
                continue;
            };
            held.extend(watched.take_pause(pause));
        }
        Ok(held)
    }

    /// Reads every known sandbox and makes of it what is to be made.
    pub fn observe(&mut self, now: Timestamp, metrics: &AgentMetrics) -> std::io::Result<()> {
        let booted_at = self.proc.booted_at()?;
        for watched in self.pods.values_mut() {
            watched.observe(now, booted_at, self.threshold, metrics);
        }
        metrics.set_pods(self.pods.values().map(Watched::series).collect());
        Ok(())
    }

    /// A pause process that was held ended.
    pub fn pause_ended(&mut self, pod_uid: &str, sandbox: &str, now: Timestamp, ending: Option<Ending>) {
        let Some(watched) = self.pods.get_mut(pod_uid) else {
            return;
        };
        watched.record.pause_ended(sandbox, now, ending);
        watched.pause.take_if(|pause| pause.identity.container == sandbox);
    }

    /// It cannot be told when a pause process ends, so it's as if it had not been found.
    pub fn lost_sight(&mut self, pod_uid: &str, sandbox: &str) {
        if let Some(watched) = self.pods.get_mut(pod_uid) {
            watched.pause.take_if(|pause| pause.identity.container == sandbox);
        }
    }

    /// The requests that are due, as far as they are allowed; each is under way from here until it is answered.
    pub fn requests_due(&mut self, now: Timestamp, mut allowed: impl FnMut() -> bool) -> Vec<Request> {
        let mut due = Vec::new();
        for (uid, watched) in &mut self.pods {
            let Some(ask) = watched.ask(now) else { continue };
            if !allowed() {
                break;
            }
            watched.asking = true;
            let PodFacts { namespace, name, .. } = &watched.facts;
            due.push(Request { pod_uid: uid.clone(), namespace: namespace.clone(), name: name.clone(), ask });
        }
        due
    }

    /// A request was answered.
    pub fn answered(&mut self, pod_uid: &str, answer: Answer, now: Timestamp) {
        if let Some(watched) = self.pods.get_mut(pod_uid) {
            watched.asking = false;
            watched.answered(answer, now, &self.random);
        }
    }
}

impl Watched {
    fn new(facts: PodFacts) -> Self {
        Self {
            facts,
            record: Record::default(),
            pause: None,
            object: Object::Unknown,
            written: None,
            restarts: HashMap::new(),
            asking: false,
            failures: 0,
            retry_at: None,
        }
    }

    /// Takes hold of a pause process of the pod, unless it is none or an older one than is known.
    fn take_pause(&mut self, pause: Pause) -> Option<Held> {
        if self.facts.container_ids.contains(&pause.identity.container) {
            return None;
        }
        if self.pause.as_ref().is_some_and(|held| held.id.start_ticks > pause.id.start_ticks) {
            return None;
        }
        let pidfd = pause.pidfd()?;
        let sandbox = pause.identity.container.clone();
        tracing::info!(
            namespace = self.facts.namespace,
            pod = self.facts.name,
            sandbox,
            pid = pause.id.pid,
            "found the sandbox"
        );
        self.pause = Some(pause);
        Some(Held { pod_uid: self.facts.uid.clone(), sandbox, pidfd })
    }

    fn observe(
        &mut self,
        now: Timestamp,
        booted_at: Timestamp,
        threshold: ZombieThreshold,
        metrics: &AgentMetrics,
    ) {
        if self.object == Object::Unknown {
            return;
        }
        match (&self.pause, self.facts.stage) {
            (_, Stage::Finished | Stage::Deleted) => self.record.pod_ending(),
            (Some(pause), _) => {
                let id = &pause.identity.container;
                if let Some(reason) = self.record.sandbox_found(id, pause.started_at, booted_at) {
                    *self.restarts.entry(reason).or_default() += 1;
                    let PodFacts { namespace, name, .. } = &self.facts;
                    tracing::info!(namespace, pod = name, sandbox = id, ?reason, "the sandbox was restarted");
                }
                let outcome = pause.read();
                if let Err(error) = &outcome {
                    metrics.read_failed(error);
                }
                self.record.read(outcome, now, threshold);
            }
            (None, Stage::Running) => self.record.sandbox_missing(now),
            (None, Stage::Pending) => {}
        }
    }

    fn ask(&self, now: Timestamp) -> Option<Ask> {
        if self.asking || self.facts.stage == Stage::Deleted || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        match &self.object {
            Object::Unknown | Object::Absent => Some(Ask::Fetch),
            Object::Present { uid } => {
                let written = self.written.as_ref().map(|(status, at)| (status, *at));
                is_due(written, self.record.status(), now).then(|| Ask::Write {
                    object_uid: uid.clone(),
                    status: Box::new(self.record.status().clone()),
                })
            }
        }
    }

    fn answered(&mut self, answer: Answer, now: Timestamp, random: &RandomState) {
        match answer {
            Answer::Fetched(Ok(Some(object))) => {
                self.succeeded();
                self.found_object(*object, now);
            }
            Answer::Fetched(Ok(None)) => {
                self.object = Object::Absent;
                self.failed(now, random);
            }
            Answer::Written(status, Ok(())) => {
                self.succeeded();
                self.written = Some((*status, now));
            }
            Answer::Written(_, Err(error @ (ApiError::NotFound(_) | ApiError::Conflict(_)))) => {
                // Another object of the name, or none: what was written is gone, what we know is not.
                self.object = Object::Absent;
                self.written = None;
                self.log_failure(&error);
                self.failed(now, random);
            }
            Answer::Fetched(Err(error)) | Answer::Written(_, Err(error)) => {
                self.log_failure(&error);
                self.failed(now, random);
            }
        }
    }

    /// What the object says is where we go on from, unless we have been counting without it.
    fn found_object(&mut self, object: SandboxHealth, now: Timestamp) {
        let status = object.status.unwrap_or_default();
        let seen = status.clone().seen();
        let reported = seen != SandboxHealthStatus::default();
        if reported && self.object == Object::Unknown {
            self.record = Record::from_written(status);
        }
        self.written = reported.then_some((seen, now));
        self.object = Object::Present { uid: object.metadata.uid.unwrap_or_default() };
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    /// Puts off the next request.
    fn failed(&mut self, now: Timestamp, random: &RandomState) {
        let wait = backoff::wait(self.failures, &self.facts.uid, random);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.checked_add(wait).ok();
    }

    fn log_failure(&self, error: &ApiError) {
        let PodFacts { namespace, name, .. } = &self.facts;
        tracing::warn!(namespace, pod = name, %error, "the report did not get through; trying again");
    }

    fn series(&self) -> PodSeries {
        PodSeries {
            namespace: self.facts.namespace.clone(),
            pod: self.facts.name.clone(),
            status: self.record.status().clone(),
            restarts: self.restarts.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "u-1";

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    fn facts(stage: Stage) -> PodFacts {
        PodFacts {
            uid: UID.to_owned(),
            cgroup_id: UID.to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            stage,
            container_ids: HashSet::new(),
        }
    }

    fn object(uid: &str, status: serde_json::Value) -> SandboxHealth {
        serde_json::from_value(json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": uid},
            "spec": {"podName": "web", "podUID": UID, "nodeName": "n"},
            "status": status,
        }))
        .unwrap()
    }

    fn written() -> serde_json::Value {
        json!({"restarts": 3, "sandbox": {"id": "a", "startedAt": "2026-11-24T08:00:00Z"}})
    }

    fn roster(at_start: Vec<SandboxHealth>) -> Roster {
        let mut roster = Roster::new(Proc::new("/nonexistent").unwrap(), ZombieThreshold(5), at_start);
        roster.pod_applied(facts(Stage::Running), at(0));
        roster
    }

    fn asked(roster: &mut Roster, ms: i64) -> Vec<Ask> {
        roster.requests_due(at(ms), || true).into_iter().map(|request| request.ask).collect()
    }

    fn failure() -> ApiError {
        ApiError::TimedOut
    }

    fn not_found() -> ApiError {
        let status = kube::core::Status::failure("no", "NotFound").with_code(404);
        kube::Error::Api(Box::new(status)).into()
    }

    /// Finds a sandbox for the one pod.
    fn find(roster: &mut Roster, id: &str) -> Option<RestartReason> {
        let watched = roster.pods.get_mut(UID).unwrap();
        watched.record.sandbox_found(id, at(0), at(-100_000))
    }

    fn fetched(object: Option<SandboxHealth>) -> Answer {
        Answer::Fetched(Ok(object.map(Box::new)))
    }

    #[test]
    fn a_pod_whose_object_was_there_at_the_start_goes_on_from_it() {
        let mut roster = roster(vec![object("o-1", written())]);
        assert_eq!(asked(&mut roster, 0), []);
        assert!(find(&mut roster, "b").is_some(), "another sandbox than was written is a restart");
        let [Ask::Write { object_uid, status }] = &asked(&mut roster, 1)[..] else { panic!("no write") };
        assert_eq!((object_uid.as_str(), status.restarts), ("o-1", 4));
    }

    #[test]
    fn nothing_is_counted_before_the_object_is_known() {
        let mut roster = roster(vec![]);
        assert_eq!(asked(&mut roster, 0), [Ask::Fetch]);
        assert_eq!(asked(&mut roster, 1), [], "one request at a time");
        roster.answered(UID, fetched(Some(object("o-1", written()))), at(2));
        assert_eq!(roster.pods[UID].record.status().restarts, 3);
    }

    #[test]
    fn an_object_that_is_not_there_yet_is_asked_for_less_and_less() {
        let mut roster = roster(vec![]);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..9 {
            let since = now;
            while asked(&mut roster, now).is_empty() {
                now += 100;
            }
            waits.push(now - since);
            roster.answered(UID, fetched(None), at(now));
        }
        // The first is at once; then 1 s, 2 s, … 60 s, each less up to a half.
        let longest = [0, 1, 2, 4, 8, 16, 32, 60, 60].map(|seconds| seconds * 1000);
        for (wait, longest) in waits.iter().zip(longest) {
            assert!((longest / 2..=longest + 100).contains(wait), "{waits:?}");
        }
    }

    #[test]
    fn a_failed_write_is_made_again_and_a_success_ends_the_backoff() {
        let mut roster = roster(vec![object("o-1", json!({}))]);
        find(&mut roster, "a");
        let [Ask::Write { status, .. }] = &asked(&mut roster, 0)[..] else { panic!("no write") };
        roster.answered(UID, Answer::Written(status.clone(), Err(failure())), at(0));
        assert_eq!(asked(&mut roster, 400), []);
        let [Ask::Write { status, .. }] = &asked(&mut roster, 1000)[..] else { panic!("no second write") };
        roster.answered(UID, Answer::Written(status.clone(), Ok(())), at(1000));
        assert_eq!(asked(&mut roster, 500_000), [], "what is written need not be written again");
        assert_eq!(roster.pods[UID].failures, 0);
    }

    #[test]
    fn an_object_that_somebody_deleted_gets_all_that_is_known_again() {
        let mut roster = roster(vec![object("o-1", written())]);
        find(&mut roster, "b");
        let [Ask::Write { status, .. }] = &asked(&mut roster, 0)[..] else { panic!("no write") };
        roster.answered(UID, Answer::Written(status.clone(), Err(not_found())), at(0));
        assert_eq!(asked(&mut roster, 1000), [Ask::Fetch]);
        roster.answered(UID, fetched(Some(object("o-2", json!({})))), at(1000));
        let [Ask::Write { object_uid, status }] = &asked(&mut roster, 1001)[..] else { panic!("no write") };
        assert_eq!((object_uid.as_str(), status.restarts), ("o-2", 4));
    }

    #[test]
    fn an_idle_pod_whose_object_was_made_anew_is_reported_again() {
        let mut roster = roster(vec![object("o-1", written())]);
        assert_eq!(asked(&mut roster, 0), []);
        roster.keep_objects(&[object("o-1", written())]);
        assert_eq!(asked(&mut roster, 1), [], "it is there");
        roster.keep_objects(&[object("o-2", json!({}))]);
        assert_eq!(asked(&mut roster, 2), [Ask::Fetch]);
        roster.answered(UID, fetched(Some(object("o-2", json!({})))), at(3));
        let [Ask::Write { object_uid, status }] = &asked(&mut roster, 4)[..] else { panic!("no write") };
        assert_eq!((object_uid.as_str(), status.restarts), ("o-2", 3));
    }

    #[test]
    fn a_deleted_pod_asks_for_nothing_and_a_gone_one_is_forgotten() {
        let mut roster = roster(vec![]);
        roster.pod_applied(facts(Stage::Deleted), at(0));
        assert_eq!(asked(&mut roster, 0), []);
        roster.keep_pods(&HashSet::new());
        assert!(roster.pods.is_empty());
    }

    #[test]
    fn what_the_budget_does_not_allow_waits() {
        let mut roster = roster(vec![]);
        assert_eq!(roster.requests_due(at(0), || false), []);
        assert_eq!(asked(&mut roster, 0), [Ask::Fetch]);
    }
}
