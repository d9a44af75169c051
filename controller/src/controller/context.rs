//! What reconciles share during a term: the client, the caches, the emitter of Events, and what is remembered between reconciles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use kube::Client;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use super::ControllerOptions;
use super::emitter::{Emitter, Queued};
use super::index::{Index, locked};
use super::kubelet_events::KubeletEvents;
use super::metrics::ControllerMetrics;
use crate::crd::SandboxHealth;
use crate::health::Readiness;
use crate::k8s::error::ApiError;
use crate::k8s::pod::LeanPod;
use crate::k8s::watch::GuardedObject;

/// How long a watch may lag behind a write. Where etcd is restored, later versions are lower than earlier ones.
pub const OUTDATED_MAX: Duration = Duration::from_secs(10);
/// Reconciles at a time in a namespace in which requests time out.
const SLOW_NAMESPACE_MAX: usize = 2;

pub struct Context {
    pub options: ControllerOptions,
    pub client: Client,
    pub index: Arc<Index>,
    pub emitter: Emitter,
    pub kubelet_events: KubeletEvents,
    pub metrics: Arc<ControllerMetrics>,
    pub readiness: Arc<Readiness>,
    room: AtomicI64,
    is_full: AtomicBool,
    /// Whether the last request in a namespace timed out. Each reconcile has a reference.
    namespaces: Mutex<HashMap<String, Arc<AtomicBool>>>,
    /// Backoff of pods whose last reconcile failed.
    failures: Mutex<HashMap<ObjectRef<LeanPod>, ExponentialBackoff>>,
    /// Versions of objects that writes of conditions returned, and when, by pod.
    written: Mutex<HashMap<ObjectRef<LeanPod>, (u64, Instant)>>,
}

impl Context {
    /// The context of a new term, and the Events that its emitter is to deliver.
    pub fn new(
        options: ControllerOptions,
        client: Client,
        index: Arc<Index>,
        readiness: Arc<Readiness>,
        metrics: Arc<ControllerMetrics>,
    ) -> (Self, Queued) {
        let (emitter, queued) = Emitter::new(client.clone(), metrics.clone());
        let context = Self {
            options,
            client,
            index,
            emitter,
            kubelet_events: KubeletEvents::new(Instant::now()),
            metrics,
            readiness,
            room: AtomicI64::default(),
            is_full: AtomicBool::default(),
            namespaces: Mutex::default(),
            failures: Mutex::default(),
            written: Mutex::default(),
        };
        (context, queued)
    }

    /// Counts the objects. Those of finished pods do not count: they disappear with their pods.
    pub fn update_room(&self) {
        let is_counted = |object: &GuardedObject| self.index.pod(object).is_none_or(|pod| !pod.is_finished);
        let count = self.index.objects.state().iter().filter(|object| is_counted(object)).count();
        self.metrics.set_objects(count);
        let room = i64::from(self.options.max_objects) - i64::try_from(count).unwrap_or(i64::MAX);
        self.room.store(room, Ordering::Relaxed);
        if room > 0 {
            self.is_full.store(false, Ordering::Relaxed);
        }
    }

    /// Whether another object may be created; it is counted then.
    pub fn take_room(&self) -> bool {
        let has_room = self.room.fetch_sub(1, Ordering::Relaxed) > 0;
        if !has_room && !self.is_full.swap(true, Ordering::Relaxed) {
            let max = self.options.max_objects;
            tracing::warn!(max, "SandboxHealth limit reached; creating objects for unhealthy pods only");
        }
        has_room
    }

    /// Starts a reconcile in a namespace, unless others wait for requests that time out there: they would fill all slots.
    pub fn enter(&self, namespace: &str) -> Option<Arc<AtomicBool>> {
        let mut namespaces = locked(&self.namespaces);
        let is_slow = namespaces.entry(namespace.to_owned()).or_default();
        let is_full = is_slow.load(Ordering::Relaxed) && Arc::strong_count(is_slow) > SLOW_NAMESPACE_MAX;
        (!is_full).then(|| is_slow.clone())
    }

    pub fn record_speed<T>(&self, namespace: &str, result: &Result<T, ApiError>) {
        if let Some(is_slow) = locked(&self.namespaces).get(namespace) {
            is_slow.store(matches!(result, Err(ApiError::TimedOut)), Ordering::Relaxed);
        }
    }

    pub fn backoff(&self, pod: ObjectRef<LeanPod>) -> Duration {
        const MAX: Duration = Duration::from_secs(60);
        let builder = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(MAX)
            .without_max_times()
            .with_jitter();
        locked(&self.failures).entry(pod).or_insert_with(|| builder.build()).next().unwrap_or(MAX)
    }

    pub fn succeeded(&self, pod: &ObjectRef<LeanPod>) {
        locked(&self.failures).remove(pod);
    }

    /// Whether the cached object is older than the last write of its conditions, which would be repeated.
    pub fn is_outdated(&self, pod: &ObjectRef<LeanPod>, object: &SandboxHealth) -> bool {
        let is_older = |(written, at): &(u64, Instant)| {
            at.elapsed() < OUTDATED_MAX && version(object).is_some_and(|version| version < *written)
        };
        locked(&self.written).get(pod).is_some_and(is_older)
    }

    /// Remembers the version that a write of conditions returned.
    pub fn set_written(&self, pod: ObjectRef<LeanPod>, object: &SandboxHealth) {
        if let Some(version) = version(object) {
            locked(&self.written).insert(pod, (version, Instant::now()));
        }
    }

    /// Drops the state of deleted pods, and of namespaces without reconciles and timeouts.
    pub fn prune(&self) {
        let exists = |pod: &ObjectRef<LeanPod>| self.index.pods.get(pod).is_some();
        locked(&self.failures).retain(|pod, _| exists(pod));
        locked(&self.written).retain(|pod, _| exists(pod));
        self.kubelet_events.retain(exists);
        let is_kept =
            |is_slow: &Arc<AtomicBool>| Arc::strong_count(is_slow) > 1 || is_slow.load(Ordering::Relaxed);
        locked(&self.namespaces).retain(|_, is_slow| is_kept(is_slow));
        self.emitter.prune();
    }
}

/// Resource versions are numbers that can be compared (KEP-5504).
fn version(object: &SandboxHealth) -> Option<u64> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}
