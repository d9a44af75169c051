//! The controller: of its replicas the one that holds the Lease watches pods and SandboxHealth objects and looks after each
//! pod that shares its PID namespace. This file wires its parts; what is done for a pod is in `reconcile`.

pub mod conditions;
pub mod events;
pub mod lease;
pub mod metrics;
pub mod objects;
pub mod reconcile;

use std::future::ready;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Config, applier};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};

use crate::api::{CRD_MISSING, brief, is_not_found};
use crate::resource::SandboxHealth;
use crate::scope::{Selector, WatchPods};
use crate::serve::Readiness;
use lease::Claim;
use metrics::ControllerMetrics;
use reconcile::{Context, reconcile, try_again};

/// Pods that are looked after at a time.
const CONCURRENCY: u16 = 4;

/// What the controller is told.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// Name of the Lease; the chart makes it.
    pub lease_name: String,
    /// Name of this replica.
    pub identity: String,
    /// Whose sandboxes are watched.
    pub watch_pods: WatchPods,
    /// How many SandboxHealth objects are made; above it, only for pods with something wrong.
    pub max_objects: u32,
    /// The agents' pods, in the namespace of the Lease.
    pub agent_selector: Selector,
}

/// Runs until `stop`.
pub async fn run(
    options: ControllerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
    stop: impl Future<Output = ()>,
) {
    let ControllerOptions { lease_namespace, lease_name, identity, .. } = options;
    let mut claim = Claim::new(client.clone(), &lease_namespace, lease_name, identity.clone());
    tokio::select! {
        () = take_turns(&mut claim, client, identity, readiness, metrics) => {}
        () = stop => {}
    }
    claim.release().await;
}

/// Works whenever this replica holds the Lease.
async fn take_turns(
    claim: &mut Claim,
    client: Client,
    identity: String,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
) {
    loop {
        claim.acquire(&readiness).await;
        tracing::info!(identity, "this replica works now");
        metrics.set_leader(true);
        tokio::select! {
            () = work(client.clone(), identity.clone(), readiness.clone(), metrics.clone()) => {}
            () = claim.hold() => {}
        }
        metrics.set_leader(false);
        readiness.done(PODS);
        readiness.done(OBJECTS);
        tracing::warn!(identity, "the lease is lost; waiting for it");
    }
}

const PODS: &str = "pods";
const OBJECTS: &str = "SandboxHealth objects";

async fn work(client: Client, instance: String, readiness: Arc<Readiness>, metrics: Arc<ControllerMetrics>) {
    let (pods, pod_writer) = reflector::store();
    let pod_events = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    let pod_stream = told(pod_events, PODS, readiness.clone())
        .try_filter(|event| ready(concerns_us(event)))
        .modify(keep_little)
        .reflect(pod_writer)
        .applied_objects();
    let (objects, object_writer) = reflector::store();
    let api: Api<DeserializeGuard<SandboxHealth>> = Api::all(client.clone());
    let object_events = watcher(api, watcher::Config::default()).default_backoff();
    let object_stream = told(object_events, OBJECTS, readiness).reflect(object_writer).touched_objects();
    // An object has the name of its pod, also when it's an earlier pod's.
    let queue = futures::stream::select(
        pod_stream.map_ok(|pod| ObjectRef::from_obj(&pod)),
        object_stream.map_ok(|object| pod_of(&object)),
    );
    let context = Arc::new(Context::new(client, objects, metrics, instance));
    let config = Config::default().concurrency(CONCURRENCY);
    applier(|pod, context| Box::pin(reconcile(pod, context)), try_again, context, pods, queue, config)
        .for_each(|outcome| {
            if let Err(error) = outcome {
                tracing::debug!(%error, "not looked after");
            }
            ready(())
        })
        .await;
}

fn pod_of(object: &DeserializeGuard<SandboxHealth>) -> ObjectRef<Pod> {
    ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default())
}

/// Passes a watch through, and tells `readiness` whether its objects are known.
fn told<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    part: &'static str,
    readiness: Arc<Readiness>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> {
    readiness.expect(part);
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    events.inspect(move |event| match event {
        Ok(InitDone | Apply(_) | Delete(_)) => readiness.done(part),
        Ok(Init | InitApply(_)) => {}
        // A watch that was once started goes on trying when the CRD is deleted.
        Err(InitialListFailed(error) | WatchStartFailed(error)) if is_not_found(error) => {
            readiness.pending(part, CRD_MISSING);
        }
        Err(InitialListFailed(error)) => {
            readiness.pending(part, format!("cannot be listed: {}", brief(error)))
        }
        Err(_) => {}
    })
}

fn concerns_us(event: &watcher::Event<Pod>) -> bool {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    match event {
        Apply(pod) | InitApply(pod) => {
            pod.spec.as_ref().is_some_and(|spec| spec.share_process_namespace == Some(true))
        }
        Delete(_) | Init | InitDone => true,
    }
}

/// Of each pod a few dozen bytes are kept; a cluster has many.
fn keep_little(pod: &mut Pod) {
    let metadata = std::mem::take(&mut pod.metadata);
    pod.metadata.name = metadata.name;
    pod.metadata.namespace = metadata.namespace;
    pod.metadata.uid = metadata.uid;
    pod.metadata.resource_version = metadata.resource_version;
    pod.metadata.deletion_timestamp = metadata.deletion_timestamp;
    let node_name = pod.spec.take().and_then(|spec| spec.node_name);
    pod.spec = Some(PodSpec { node_name, ..PodSpec::default() });
    let phase = pod.status.take().and_then(|status| status.phase);
    pod.status = Some(PodStatus { phase, ..PodStatus::default() });
}
