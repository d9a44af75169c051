//! What the controller does for one pod: makes sure that it has its object, judges the object's status, announces what
//! happened, and writes the judgement. Each step is repeated safely. What is to be done is decided elsewhere.

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt as _};
use tokio::time::Instant;

use super::conditions::{Judgement, RESTART_MEMORY, judge, over};
use super::events::{Announcement, due, event, noted, told, untold};
use super::fleet::Sight;
use super::metrics::ControllerMetrics;
use super::plan::{Found, Known, Step, counts_by_condition, next};
use super::pods::{KeptPod, PodKey};
use super::population::{Population, Room};
use super::requests;
use super::storm::{Leave, Storms};
use super::told_before::ToldBefore;
use super::watches::Lookout;
use crate::api::{ApiError, write_told};
use crate::backoff;
use crate::report::{self, Row};
use crate::resource::{SandboxHealth, SandboxHealthStatus};
use crate::sandbox_condition::KubeletSaid;
use crate::serve::Readiness;

/// From the end of an earlier pod's object to the next look; the watch is faster as a rule.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Until a pod that got no object for want of room is looked at again.
const ROOM_AGAIN: Duration = Duration::from_secs(300);
/// Pods whose failures are kept. Pods that went leave theirs behind; to forget them all costs a few shorter waits.
const FAILURES_MAX: usize = 10_000;
type Guarded = DeserializeGuard<SandboxHealth>;
/// After how long a pod is to be looked at again, if it does not change before.
pub type Again = Option<Duration>;

/// What a reconciliation works with.
pub struct Context {
    /// The way to the API.
    pub client: Client,
    /// All SandboxHealth objects, as the watch brought them.
    pub objects: Store<Guarded>,
    /// The pods, what is remembered of them, and who sees which node.
    pub lookout: Arc<Lookout>,
    /// Where to count.
    pub metrics: Arc<ControllerMetrics>,
    /// Where to say what is waited for.
    pub readiness: Arc<Readiness>,
    /// Name of this replica, for Events.
    pub instance: String,
    population: Mutex<Population<ObjectRef<Guarded>>>,
    storms: Mutex<Storms>,
    pub(super) told_before: ToldBefore,
    /// What was written last, by UID of the object, until the watch has brought it back.
    underway: Mutex<HashMap<String, Written>>,
    /// Failures in a row, by pod.
    failures: Mutex<HashMap<PodKey, u32>>,
    /// UIDs of objects that could not be read, each told of once.
    not_understood: Mutex<HashSet<String>>,
    random: RandomState,
}

impl Context {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(
        client: Client,
        objects: Store<Guarded>,
        lookout: Arc<Lookout>,
        metrics: Arc<ControllerMetrics>,
        readiness: Arc<Readiness>,
        instance: String,
        max_objects: u32,
    ) -> Self {
        Self {
            client,
            objects,
            lookout,
            metrics,
            readiness,
            instance,
            population: Mutex::new(Population::new(max_objects)),
            storms: Mutex::default(),
            told_before: ToldBefore::default(),
            underway: Mutex::default(),
            failures: Mutex::default(),
            not_understood: Mutex::default(),
            random: RandomState::new(),
        }
    }

    /// The nodes' storms.
    pub fn storms(&self) -> MutexGuard<'_, Storms> {
        locked(&self.storms)
    }

    /// How long to wait after the failure that follows `failures` others.
    #[must_use]
    pub fn backoff(&self, failures: u32, name: &str) -> Duration {
        backoff::wait(failures, name, &self.random)
    }

    pub(super) fn wait_after_failure(&self, pod: &KeptPod) -> Duration {
        let mut failures = locked(&self.failures);
        if failures.len() >= FAILURES_MAX {
            failures.clear();
        }
        let before = failures.entry(pod.key.clone()).or_default();
        let wait = self.backoff(*before, &pod.uid);
        *before = before.saturating_add(1);
        wait
    }

    fn object_of(&self, pod: &PodKey) -> Option<Arc<Guarded>> {
        self.objects.get(&ObjectRef::new(pod.name()).within(pod.namespace()))
    }

    fn found<'a>(&self, object: Option<&'a Guarded>) -> Found<'a> {
        match object.map(|object| &object.0) {
            None => Found::Nothing,
            Some(Ok(object)) => Found::Object(object),
            Some(Err(invalid)) => {
                let (object, uid) = (PodKey::of(&invalid.metadata), invalid.metadata.uid.clone());
                let mut told = locked(&self.not_understood);
                if told.len() < FAILURES_MAX && told.insert(uid.unwrap_or_default()) {
                    self.metrics.met_not_understood();
                    tracing::warn!(%object, error = %invalid.error, "an object cannot be read and is left alone");
                }
                Found::NotUnderstood
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A judgement that was written, and the version of the object that it was of.
#[derive(Debug, PartialEq)]
struct Written {
    version: Option<String>,
    conditions: Vec<Condition>,
    noted: Option<i64>,
}

impl Written {
    /// When a condition turned is not compared: the same judgement a moment later has a later time.
    fn new(object: &SandboxHealth, conditions: &[Condition], noted: Option<i64>) -> Self {
        let timeless = |condition: &Condition| Condition {
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            ..condition.clone()
        };
        Self {
            version: object.metadata.resource_version.clone(),
            conditions: conditions.iter().map(timeless).collect(),
            noted,
        }
    }
}

/// What was being done when it failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Creating the pod's object.
    #[error("creating the SandboxHealth object: {0}")]
    Create(#[source] ApiError),
    /// Deleting what is not the pod's object but of its name.
    #[error("deleting the SandboxHealth object of an earlier pod of the name: {0}")]
    Delete(#[source] ApiError),
    /// Writing what is known of a sandbox that no agent sees.
    #[error("writing what is known of a sandbox that no agent sees: {0}")]
    Count(#[source] ApiError),
    /// Reading the Events.
    #[error("reading which Events a leader before this one made: {0}")]
    Recall(#[source] Arc<ApiError>),
    /// Creating an Event.
    #[error("creating an Event: {0}")]
    Event(#[source] ApiError),
    /// Writing the conditions.
    #[error("writing the conditions: {0}")]
    Apply(#[source] ApiError),
}

/// Looks after one pod, as it is when all is known. What fails is tried again after a while.
pub async fn reconcile(pod: PodKey, context: Arc<Context>) -> Again {
    // What a list lacks must not be taken for gone.
    context.lookout.wait_until_known().await;
    let Some(pod) = context.lookout.pod(&pod) else {
        context.metrics.went(&pod, Instant::now());
        return None;
    };
    let work = context.metrics.started(&pod.key, Instant::now());
    let outcome = look_after(&pod, &context).await;
    drop(work);
    context.metrics.reconciled(outcome.is_ok());
    match outcome {
        Ok(again) => {
            locked(&context.failures).remove(&pod.key);
            again
        }
        Err(error) => {
            let wait = context.wait_after_failure(&pod);
            let (namespace, name) = (pod.key.namespace(), pod.key.name());
            tracing::warn!(namespace, pod = name, %error, ?wait, "trying again");
            context.metrics.retried();
            Some(wait)
        }
    }
}

pub(super) async fn look_after(pod: &KeptPod, context: &Context) -> Result<Again, ReconcileError> {
    let now = Timestamp::now();
    let object = context.object_of(&pod.key);
    let sight = context.lookout.sight(&pod.node);
    let (baseline, said) = remembered(pod, object.is_none() && counts_by_condition(pod, sight), context);
    let known =
        Known { pod, found: context.found(object.as_deref()), sight, baseline, said: said.as_ref(), now };
    match next(&known) {
        Step::Leave => Ok(None),
        Step::Wait(until) => Ok(Some(wait(until, now))),
        Step::Tell(object, until) => {
            // By the condition it is known which Events of zombies were made, and it is not written here.
            let mut object = object.clone();
            if let Some(status) = &mut object.status {
                status.processes = None;
            }
            announce(&object, context, now).await?;
            Ok(Some(wait(until, now)))
        }
        Step::Create(wanted) => create_if_room(&wanted, context).await,
        Step::CreateAnyway(wanted) => create(&wanted, context).await,
        Step::MakeRoom(object) => make_room(object, pod, context).await,
        Step::Count(object, status) => write_counted(object, &status, context).await,
        Step::Judge(object) => judge_and_announce(pod, object, sight, context).await,
    }
}

/// What is remembered of a pod; `anew`: from now on, too, if it isn't yet.
fn remembered(pod: &KeptPod, anew: bool, context: &Context) -> (Option<Timestamp>, Option<KubeletSaid>) {
    context.lookout.remembered(|memory| {
        let baseline = match &pod.sandbox {
            Some(transition) if anew => memory.baseline(&pod.uid, transition),
            _ => memory.known_baseline(&pod.uid),
        };
        (baseline, memory.said(&pod.uid))
    })
}

async fn create_if_room(wanted: &SandboxHealth, context: &Context) -> Result<Again, ReconcileError> {
    let (known, now) = (context.objects.len(), Timestamp::now());
    let is_known = |key: &ObjectRef<Guarded>| context.objects.get(key).is_some();
    // The lock is not held while anything is awaited.
    let room = locked(&context.population).room(known, is_known, now);
    match room {
        Room::Left => create(wanted, context).await,
        Room::None { first } => {
            if first {
                tracing::warn!(
                    objects = known,
                    "as many SandboxHealth objects as may be: from now on only pods with something wrong get one"
                );
            }
            Ok(Some(ROOM_AGAIN))
        }
    }
}

async fn create(wanted: &SandboxHealth, context: &Context) -> Result<Again, ReconcileError> {
    let key = ObjectRef::new(&wanted.name_any()).within(&wanted.namespace().unwrap_or_default());
    locked(&context.population).making(key.clone(), Timestamp::now());
    let created = requests::create(&context.client, wanted).await;
    context.metrics.requested("create", &created);
    if created.is_err() {
        locked(&context.population).not_made(&key);
    }
    match created {
        // The pod is about to go, and no object is made for it however often we ask.
        Err(ApiError::NamespaceEnding(error)) => {
            tracing::debug!(object = %key, error = crate::api::brief(&error), "no object is made");
            Ok(None)
        }
        created => created.map(|()| None).map_err(ReconcileError::Create),
    }
}

async fn make_room(
    object: &SandboxHealth,
    pod: &KeptPod,
    context: &Context,
) -> Result<Again, ReconcileError> {
    // Somebody's finalizer keeps it. The watch tells when it's gone.
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Some(ROOM_AGAIN));
    }
    let deleted = requests::delete_stale(&context.client, object, &pod.uid).await;
    context.metrics.requested("delete", &deleted);
    deleted.map_err(ReconcileError::Delete)?;
    Ok(Some(LOOK_AGAIN))
}

/// The watch brings the object back, and it's judged then.
async fn write_counted(
    object: &SandboxHealth,
    status: &SandboxHealthStatus,
    context: &Context,
) -> Result<Again, ReconcileError> {
    let row = Row {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        pod_uid: object.spec.pod_uid.clone(),
        // An agent that comes back knows better.
        version: object.metadata.resource_version.clone(),
    };
    let written = report::write(context.client.clone(), row, status.clone()).await;
    context.metrics.requested("count", &written);
    write_told(&context.readiness, &written);
    written.map_err(ReconcileError::Count)?;
    Ok(None)
}

async fn judge_and_announce(
    pod: &KeptPod,
    object: &SandboxHealth,
    sight: Sight,
    context: &Context,
) -> Result<Again, ReconcileError> {
    let now = Timestamp::now();
    let status = object.status.clone().unwrap_or_default();
    let mut judgement = judge(&status, over(pod, &status), sight, now);
    let announced = announce(object, context, now).await;
    if announced.is_err() {
        // The summary does not wait for it: it is what people look at.
        judgement = judgement.with_zombies_as_before(&status);
    }
    let Judgement { conditions, until } = judgement;
    let noted = noted(&status, announced.as_ref().ok().copied());
    if conditions != status.conditions || noted != status.announced_restarts {
        note(object, &conditions, noted, context).await?;
    } else {
        locked(&context.underway).remove(&object.uid().unwrap_or_default());
    }
    announced?;
    Ok(until.map(|until| wait(until, now)))
}

/// Writes the judgement, unless that was done a moment ago and only the watch is behind: a pod that starts changes many times
/// within that moment.
async fn note(
    object: &SandboxHealth,
    conditions: &[Condition],
    noted: Option<i64>,
    context: &Context,
) -> Result<(), ReconcileError> {
    let written = Written::new(object, conditions, noted);
    let uid = object.uid().unwrap_or_default();
    if locked(&context.underway).get(&uid) == Some(&written) {
        return Ok(());
    }
    let applied = requests::apply_judgement(&context.client, object, conditions, noted).await;
    context.metrics.requested("apply", &applied);
    write_told(&context.readiness, &applied);
    applied.map_err(ReconcileError::Apply)?;
    let mut underway = locked(&context.underway);
    // Those of pods that went before the watch brought it back are left over.
    if underway.len() >= FAILURES_MAX {
        underway.clear();
    }
    underway.insert(uid, written);
    Ok(())
}

/// The time comes from an agent: it may be any, and no wait is longer than a restart counts.
fn wait(until: Timestamp, now: Timestamp) -> Duration {
    until.duration_since(now).clamp(SignedDuration::from_secs(1), RESTART_MEMORY).unsigned_abs()
}

/// Makes the Events that are due; up to which restart they were told of then.
async fn announce(object: &SandboxHealth, context: &Context, now: Timestamp) -> Result<i64, ReconcileError> {
    let nothing = SandboxHealthStatus::default();
    let status = object.status.as_ref().unwrap_or(&nothing);
    context.told_before.recall_if_needed(&object.spec.pod_uid, context, now).await?;
    let remembered = context.storms().told(&object.spec.pod_uid);
    let told = told(status, status.announced_restarts.into_iter().chain(remembered), now);
    let node = &object.spec.node_name;
    let restarted = untold(object, told);
    let leave = restarted.map(|restarted| context.storms().ask(node, restarted, now));
    let (from, after) = match leave {
        Some(Leave::Waits) => (status.restarts, told),
        Some(Leave::Granted) | None => (told, status.restarts),
    };
    let made = make(due(object, from), object, context, now).await;
    if leave == Some(Leave::Granted) && made.is_ok() {
        // To write it down may fail, and the watch may be late to bring it back.
        context.storms().told_singly(&object.spec.pod_uid, after, now);
    }
    made.map(|()| after)
}

async fn make(
    announcements: Vec<Announcement>,
    object: &SandboxHealth,
    context: &Context,
    now: Timestamp,
) -> Result<(), ReconcileError> {
    for announcement in announcements {
        let event = event(object, &announcement, &context.instance, now);
        let created = requests::create_event(&context.client, &event).await;
        context.metrics.requested("event", &created);
        match created {
            // Nobody can be told in it any more.
            Err(ApiError::NamespaceEnding(_)) => {}
            created => created.map_err(ReconcileError::Event)?,
        }
        context.metrics.announced(announcement.reason);
    }
    Ok(())
}
