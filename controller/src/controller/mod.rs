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
pub mod pods;
pub mod population;
pub mod queue;
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

use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{self, UnboundedReceiver};
use jiff::Timestamp;
use kube::Client;
use kube::runtime::reflector;
use tracing::Instrument as _;

use crate::api::{SCHEMA, WRITES};
use crate::scope::{Selector, WatchPods};
use crate::serve::Readiness;
use lease::Claim;
use metrics::ControllerMetrics;
use pods::PodKey;
use reconcile::{Context, reconcile};
use watches::{Lookout, NODES, OBJECTS, PODS, Scope};

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
    let (objects, object_writer) = reflector::store();
    let (again, asked) = mpsc::unbounded();
    let lookout = Arc::new(Lookout::new(options.scope(), again));
    let watch_pods = watches::pods(client.clone(), lookout.clone(), readiness.clone());
    let watch_objects = watches::objects(client.clone(), lookout.clone(), readiness.clone(), object_writer);
    let watch_nodes = watches::nodes(client.clone(), lookout.clone(), readiness.clone());
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
        watch_pods,
        watch_objects,
        watch_nodes,
        tick(context.clone()),
        strays::clear_away(context.clone()),
        look_after_all(asked, context),
    );
}

/// Looks after each pod that is asked for.
async fn look_after_all(asked: UnboundedReceiver<PodKey>, context: Arc<Context>) {
    let on_request = |pod: &PodKey, due| context.metrics.asked_for(pod, due);
    let turn = |pod: PodKey| {
        // What kube's client says in it names no pod.
        let span = tracing::debug_span!("looking after", %pod);
        reconcile(pod, context.clone()).instrument(span)
    };
    queue::serve(asked, on_request, turn).await;
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
