//! The controller. The replica that is the leader creates the SandboxHealth objects of observed pods, writes their conditions and
//! emits Events. This file wires its parts; `reconcile` handles one pod, and `core` has the decisions.

pub mod agent_events;
pub mod agents;
pub mod context;
pub mod emitter;
pub mod gc;
pub mod index;
pub mod kubelet_events;
pub mod leader;
#[cfg(test)]
mod message_tests;
pub mod metrics;
pub mod pause_rollout;
pub mod reconcile;
#[cfg(test)]
mod scenarios;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::runtime::applier;
use kube::runtime::controller::Config;
use tokio::time::Instant;

use crate::health::Readiness;
use crate::k8s::error::reset_writes;
use crate::k8s::pod::WatchOptions;
use context::Context;
use emitter::Queued;
use index::Index;
use leader::Elector;
use metrics::ControllerMetrics;

/// Pods that are reconciled at a time.
const CONCURRENCY: u16 = 16;
/// Between updates of the agents' states.
const AGENTS_INTERVAL: Duration = Duration::from_secs(1);
/// Between counts of the objects.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Options of the controller.
#[derive(Debug, Clone, clap::Args)]
pub struct ControllerOptions {
    /// Namespace of the leader election Lease, and of the agents.
    #[arg(long, env = "POD_NAMESPACE")]
    pub lease_namespace: String,
    /// Name of the leader election Lease, which is created if absent.
    #[arg(long, default_value = "sandbox-health-controller")]
    pub lease_name: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    #[command(flatten)]
    pub watch: WatchOptions,
    /// Maximum number of SandboxHealth objects; beyond it only unhealthy pods get one. Objects of finished pods do not count.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_objects: u32,
    /// Name of the agents' DaemonSet in the namespace of the Lease.
    #[arg(long, default_value = "sandbox-health-agent")]
    pub agent_daemonset: String,
    /// Base name of the pause installers' Leases, without the number suffix. The controller proves switches of nodes and reports failures.
    #[arg(long, value_name = "NAME", requires = "pause_canary")]
    pub pause_installer_lease: Option<String>,
    /// Name of the DaemonSet whose canary pods prove the switches, in the namespace of the Lease.
    #[arg(long, value_name = "NAME", requires = "pause_installer_lease")]
    pub pause_canary: Option<String>,
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
    let ControllerOptions { lease_namespace, lease_name, identity, .. } = options.clone();
    let mut elector = Elector::new(client.clone(), &lease_namespace, lease_name, identity);
    tokio::select! {
        () = lead(&mut elector, &options, client, readiness, metrics) => {}
        () = stop => {}
    }
    elector.release().await;
}

/// The caches fill during the first term and stay filled, so that a later term starts at once.
async fn lead(
    elector: &mut Elector,
    options: &ControllerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<ControllerMetrics>,
) {
    let (index, writers) = Index::new(options);
    elector.acquire(&readiness).await;
    let watches = index.watch(client.clone(), writers, readiness.clone());
    let terms = async {
        loop {
            tracing::info!(identity = options.identity, "became leader");
            metrics.set_leader(true);
            let (context, events) = Context::new(
                options.clone(),
                client.clone(),
                index.clone(),
                readiness.clone(),
                metrics.clone(),
            );
            tokio::select! {
                () = work(Arc::new(context), events) => {}
                () = elector.hold() => {}
            }
            metrics.set_leader(false);
            reset_writes(&readiness);
            tracing::warn!(identity = options.identity, "lost leadership");
            elector.acquire(&readiness).await;
        }
    };
    tokio::join!(watches, terms);
}

/// The work of a leader, forever.
async fn work(context: Arc<Context>, events: Queued) {
    context.index.wait_until_synced().await;
    let update_agents = || {
        context.index.update_agents(Instant::now());
        context.index.export_agents(&context.metrics);
    };
    update_agents();
    // Before the first conditions: those of an earlier leader have the message.
    agent_events::update(&context).await;
    context.update_room();
    tokio::join!(
        reconcile_all(context.clone()),
        context.emitter.run(events),
        every(AGENTS_INTERVAL, update_agents),
        every(COUNT_INTERVAL, || context.update_room()),
        agent_events::run(&context),
        gc::run(&context),
        pause_rollout::run(&context),
    );
}

async fn every(interval: Duration, act: impl Fn()) {
    loop {
        tokio::time::sleep(interval).await;
        act();
    }
}

async fn reconcile_all(context: Arc<Context>) {
    let queue = context.index.queue().map(Ok::<_, Infallible>);
    let pods = context.index.pods.clone();
    let config = Config::default().concurrency(CONCURRENCY);
    let reconcile = |pod, context| Box::pin(reconcile::reconcile(pod, context));
    let reconciles = applier(reconcile, reconcile::on_error, context, pods, queue, config);
    // Failures are logged where they are retried. A queued pod that is gone by now is no failure.
    reconciles.for_each(async |_| {}).await;
}
