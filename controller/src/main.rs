//! The command line of `sandbox-health`: what each part is told, and how the process starts and ends.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use futures::future::BoxFuture;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sandbox_health::agent::metrics::AgentMetrics;
use sandbox_health::agent::proc::Proc;
use sandbox_health::agent::record::ZombieThreshold;
use sandbox_health::agent::{self, AgentOptions};
use sandbox_health::check::{self, CheckOptions};
use sandbox_health::controller::metrics::ControllerMetrics;
use sandbox_health::controller::{self, ControllerOptions};
use sandbox_health::scope::{Selector, WatchPods};
use sandbox_health::serve::{self, Metrics, Readiness, serve};
use sandbox_health::{api, crd_yaml};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Makes the life of Kubernetes pod sandboxes visible.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Watches the sandboxes of one node and reports them (a DaemonSet runs it).
    Agent(AgentArguments),
    /// Owns the SandboxHealth objects, their conditions and the Events (a Deployment runs it).
    Controller(ControllerArguments),
    /// Prints the CustomResourceDefinition.
    Crd,
    /// Waits until every agent is ready and this pod has a row (`helm test` runs it).
    Check(CheckArguments),
}

#[derive(Args)]
struct AgentArguments {
    /// Name of the node that the agent runs on.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// The proc(5) to read.
    #[arg(long, default_value = "/proc")]
    proc: String,
    /// Time between readings of all sandboxes, such as 5s or 1m.
    #[arg(long, default_value = "5s", value_parser = duration)]
    read_interval: Duration,
    /// From how many zombies on a pod is unhealthy. It's healthy again when half of them or fewer are left.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    zombie_threshold: u32,
    /// Whose sandboxes are watched.
    #[arg(long, value_enum, default_value_t = WatchPods::SharedPidNamespace)]
    watch_pods: WatchPods,
    #[command(flatten)]
    process: ProcessArguments,
}

#[derive(Args)]
struct ControllerArguments {
    /// Namespace of the Lease by which replicas agree on the one that works.
    #[arg(long, env = "POD_NAMESPACE")]
    lease_namespace: String,
    /// Name of the Lease; it must exist.
    #[arg(long, default_value = "sandbox-health-controller")]
    lease_name: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Whose sandboxes are watched.
    #[arg(long, value_enum, default_value_t = WatchPods::SharedPidNamespace)]
    watch_pods: WatchPods,
    /// How many SandboxHealth objects are made; above it, only for pods with something wrong.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_objects: u32,
    /// Labels of the agents' pods, which are in the namespace of the Lease: key=value,…
    #[arg(long, default_value = "app.kubernetes.io/component=agent")]
    agent_selector: Selector,
    /// Labels of the nodes that are to have an agent: key=value,… Every node, if not given.
    #[arg(long, default_value_t)]
    node_selector: Selector,
    #[command(flatten)]
    process: ProcessArguments,
}

#[derive(Args)]
struct CheckArguments {
    /// Namespace of the DaemonSet and of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of the agents' DaemonSet.
    #[arg(long)]
    daemon_set: String,
    /// Labels of the agents' pods: key=value,…
    #[arg(long)]
    agent_selector: String,
    /// Name of this pod, whose row is read.
    #[arg(long, env = "POD_NAME")]
    row: String,
    /// UID of this pod: a row of an earlier one of its name says nothing.
    #[arg(long, env = "POD_UID")]
    row_of: String,
    /// How long to wait, such as 30s or 2m.
    #[arg(long, default_value = "2m", value_parser = duration)]
    timeout: Duration,
}

#[derive(Args)]
struct ProcessArguments {
    /// Address of /metrics, /healthz and /readyz. [::] is every address, of IPv4, too.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Form of the log, on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log_level: tracing::level_filters::LevelFilter,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    match run(CommandLine::parse().part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox-health: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(part: Part) -> anyhow::Result<()> {
    match part {
        Part::Crd => {
            print!("{}", crd_yaml()?);
            Ok(())
        }
        Part::Check(arguments) => run_check(arguments),
        Part::Agent(arguments) => run_agent(arguments),
        Part::Controller(arguments) => run_controller(arguments),
    }
}

fn run_agent(arguments: AgentArguments) -> anyhow::Result<()> {
    let options = AgentOptions {
        node: arguments.node_name,
        proc: Proc::new(&arguments.proc).with_context(|| format!("using {}", arguments.proc))?,
        read_every: arguments.read_interval,
        threshold: ZombieThreshold(arguments.zombie_threshold),
        watch_pods: arguments.watch_pods,
    };
    let (metrics, readiness) = (Arc::new(AgentMetrics::default()), Arc::new(Readiness::default()));
    run_part(arguments.process, readiness.clone(), metrics.clone(), async move |stop| {
        let client = api::client(readiness.clone()).await?;
        tokio::select! {
            outcome = agent::run(options, client, readiness, metrics) => outcome.context("reading /proc"),
            () = stop => Ok(()),
        }
    })
}

fn run_controller(arguments: ControllerArguments) -> anyhow::Result<()> {
    let ControllerArguments {
        lease_namespace,
        lease_name,
        identity,
        watch_pods,
        max_objects,
        agent_selector,
        node_selector,
        process,
    } = arguments;
    let options = ControllerOptions {
        lease_namespace,
        lease_name,
        identity,
        watch_pods,
        max_objects,
        agent_selector,
        node_selector,
    };
    let (metrics, readiness) = (Arc::new(ControllerMetrics::default()), Arc::new(Readiness::default()));
    run_part(process, readiness.clone(), metrics.clone(), async move |stop| {
        let client = api::client(readiness.clone()).await?;
        controller::run(options, client, readiness, metrics, stop).await;
        Ok(())
    })
}

fn run_check(arguments: CheckArguments) -> anyhow::Result<()> {
    let CheckArguments { namespace, daemon_set, agent_selector, row, row_of, timeout } = arguments;
    let options = CheckOptions { namespace, daemon_set, agent_selector, row, row_of, timeout };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = api::client(Arc::default()).await?;
        println!("{}", check::run(&options, client).await?);
        Ok(())
    })
}

/// Runs a part, which ends when it's told to stop, and what it shows over HTTP. One thread does it all: most of it is
/// waiting.
fn run_part<M: Metrics>(
    arguments: ProcessArguments,
    readiness: Arc<Readiness>,
    metrics: Arc<M>,
    part: impl AsyncFnOnce(BoxFuture<'static, ()>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    start_log(&arguments);
    take_all_descriptors()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listen = arguments.listen;
        let listener = serve::listen(listen).await.with_context(|| format!("listening on {listen}"))?;
        let stop = Box::pin(told_to_stop(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
        tokio::select! {
            outcome = part(stop) => outcome,
            () = serve(listener, readiness, metrics) => Ok(()),
        }
    })
}

/// The agent holds two descriptors of each sandbox, and the usual soft limit (1024) is made for programs that use select(2).
fn take_all_descriptors() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of descriptors")
}

async fn told_to_stop(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn start_log(arguments: &ProcessArguments) {
    let log = tracing_subscriber::fmt().with_max_level(arguments.log_level).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// `5s`, `1m 30s`, …
fn duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be longer than 0 s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_duration_has_a_unit_and_is_positive() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["5", "", "0s", "-5s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
