//! The controller: of its replicas the one that holds the Lease watches pods and SandboxHealth objects and looks after each
//! pod that shares its PID namespace, or, with `watch.pods: All`, each that has PID namespaces of its own. This file wires its
//! parts; what is done for a pod is in `reconcile`.

pub mod conditions;
pub mod events;
pub mod fleet;
pub mod lease;
pub mod metrics;
pub mod notes;
pub mod plan;
pub mod population;
pub mod reconcile;
pub mod requests;
pub mod restarts_by_condition;
#[cfg(test)]
mod scenarios;
pub mod storm;
pub mod strays;
pub mod summaries;
pub mod told_before;
pub mod waiting;
pub mod watches;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Config, Error, applier};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::{Client, ResourceExt as _};
use tokio::time::Instant;

use crate::api::{SCHEMA, WRITES};
use crate::resource::SandboxHealth;
use crate::scope::{Selector, WatchPods};
use crate::serve::Readiness;
use lease::Claim;
use metrics::ControllerMetrics;
use reconcile::{Context, reconcile, try_again};
use watches::{Lookout, NODES, OBJECTS, PODS, Scope};

/// Pods that are looked after at a time.
const CONCURRENCY: u16 = 4;
/// Between looks at what time alone has changed: who sees which node, and which storm is over.
const TICK: Duration = Duration::from_secs(1);

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
    /// The nodes that are to have an agent.
    pub node_selector: Selector,
}

/// Runs until `stop`.
pub async fn run(
    options: ControllerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
    stop: impl Future<Output = ()>,
) {
    metrics.set_objects_max(options.max_objects);
    let (lease, identity) = (options.lease_name.clone(), options.identity.clone());
    let mut claim = Claim::new(client.clone(), &options.lease_namespace, lease, identity, metrics.clone());
    tokio::select! {
        () = take_turns(&mut claim, options, client, readiness, metrics) => {}
        () = stop => {}
    }
    claim.release().await;
}

/// Works whenever this replica holds the Lease.
async fn take_turns(
    claim: &mut Claim,
    options: ControllerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
) {
    let identity = &options.identity;
    loop {
        claim.acquire(&readiness).await;
        tracing::info!(identity, "this replica works now");
        metrics.set_leader(true);
        tokio::select! {
            () = work(&options, client.clone(), readiness.clone(), metrics.clone()) => {}
            () = claim.hold() => {}
        }
        metrics.set_leader(false);
        metrics.set_objects(0);
        metrics.set_sights([]);
        for part in [PODS, OBJECTS, NODES, SCHEMA, WRITES] {
            readiness.done(part);
        }
        tracing::warn!(identity, "the lease is lost; waiting for it");
    }
}

async fn work(
    options: &ControllerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
) {
    let (pods, pod_writer) = reflector::store();
    let (objects, object_writer) = reflector::store();
    let (again, asked) = mpsc::unbounded();
    let lookout = Arc::new(Lookout::new(options.scope(), pods.clone(), again));
    let pod_stream = watches::pods(client.clone(), lookout.clone(), readiness.clone(), pod_writer);
    let object_stream = watches::objects(client.clone(), lookout.clone(), readiness.clone(), object_writer);
    let nodes = watches::nodes(client.clone(), lookout.clone(), readiness.clone());
    let context = Arc::new(Context::new(
        client,
        objects,
        lookout,
        metrics,
        readiness,
        options.identity.clone(),
        options.max_objects,
    ));
    tokio::join!(
        nodes,
        tick(context.clone()),
        strays::clear_away(context.clone()),
        look_after_all(pods, pod_stream, object_stream, asked, context),
    );
}

/// An object has the name of its pod, also when it's an earlier pod's.
async fn look_after_all<E: std::error::Error + Send + 'static>(
    pods: Store<Pod>,
    pod_stream: impl Stream<Item = Result<Pod, E>> + Send,
    object_stream: impl Stream<Item = Result<DeserializeGuard<SandboxHealth>, E>> + Send,
    asked: UnboundedReceiver<ObjectRef<Pod>>,
    context: Arc<Context>,
) {
    let changed = futures::stream::select(
        pod_stream.map_ok(|pod| ObjectRef::from_obj(&pod)),
        object_stream.map_ok(|object| pod_of(&object)),
    );
    let (queued, done) = (context.clone(), context.clone());
    let queue = futures::stream::select(changed, asked.map(Ok))
        .inspect_ok(move |pod| queued.metrics.asked_for(pod, Instant::now()));
    let config = Config::default().concurrency(CONCURRENCY);
    applier(|pod, context| Box::pin(reconcile(pod, context)), try_again, context, pods, queue, config)
        .for_each(|outcome| {
            if let Err(error) = outcome {
                tracing::debug!(%error, "not looked after");
                if let Error::ObjectNotFound(pod) = error {
                    let pod = ObjectRef::new(&pod.name).within(pod.namespace.as_deref().unwrap_or_default());
                    done.metrics.went(&pod, Instant::now());
                }
            }
            ready(())
        })
        .await;
}

async fn tick(context: Arc<Context>) {
    let mut attempts = summaries::Attempts::default();
    loop {
        tokio::time::sleep(TICK).await;
        context.lookout.settle(Timestamp::now());
        context.lookout.show(&context.metrics);
        context.metrics.set_objects(context.objects.len());
        summaries::tell(&context, &mut attempts, Timestamp::now()).await;
    }
}

impl ControllerOptions {
    fn scope(&self) -> Scope {
        Scope {
            watch_pods: self.watch_pods,
            agents: self.agent_selector.clone(),
            nodes: self.node_selector.clone(),
            namespace: self.lease_namespace.clone(),
        }
    }
}

fn pod_of(object: &DeserializeGuard<SandboxHealth>) -> ObjectRef<Pod> {
    ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default())
}
