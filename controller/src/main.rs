//! The command line of `sandbox-health`: options, log, runtime, and the end on a signal.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use futures::future::BoxFuture;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sandbox_health::agent::{self, AgentOptions, metrics::AgentMetrics};
use sandbox_health::controller::metrics::ControllerMetrics;
use sandbox_health::controller::{self, ControllerOptions};
use sandbox_health::crd_yaml;
use sandbox_health::health::{Readiness, listen, serve};
use sandbox_health::helm_test::{self, HelmTestOptions};
use sandbox_health::installer::uninstall::{self, UninstallOptions};
use sandbox_health::installer::{self, InstallerOptions, NoMetrics};
use sandbox_health::k8s::client::{ApiRequests, client};
use sandbox_health::pause_config::{self, PauseConfigOptions};
use sandbox_health::procfs::Proc;
use sandbox_health::telemetry::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Monitors Kubernetes pod sandboxes for restarts and zombie processes.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    component: Component,
}

#[derive(Subcommand)]
enum Component {
    /// Observes the sandboxes of one node and reports them (run by a DaemonSet).
    Agent(Arguments<AgentOptions>),
    /// Manages SandboxHealth objects, their conditions, and Events (run by a Deployment).
    Controller(Arguments<ControllerOptions>),
    /// Prints the CustomResourceDefinition.
    Crd,
    /// Prints how the nodes of a platform get a pause image: the setting, where it goes, and what to run.
    PauseConfig(PauseConfigOptions),
    /// Waits until all agents are ready and this pod's SandboxHealth is reported (run by `helm test`).
    HelmTest(HelmTestOptions),
    /// Switches the pause image of one node, and back (run by a DaemonSet).
    InstallPause(Arguments<InstallerOptions>),
    /// Deletes the installer's DaemonSet and waits until its nodes are restored (run before `helm uninstall`).
    UninstallPause(UninstallOptions),
}

#[derive(Args)]
struct Arguments<T: Args> {
    #[command(flatten)]
    options: T,
    #[command(flatten)]
    process: ProcessArguments,
}

#[derive(Args)]
struct ProcessArguments {
    /// Address of /metrics, /healthz and /readyz. [::] means all IPv4 and IPv6 addresses.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Format of the log, which is written to stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// One thread is enough: it mostly waits.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(CommandLine::parse().component).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox-health: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(component: Component) -> anyhow::Result<()> {
    match component {
        Component::Agent(Arguments { options, process }) => run_agent(options, process).await?,
        Component::Controller(Arguments { options, process }) => run_controller(options, process).await?,
        Component::Crd => print!("{}", crd_yaml()?),
        Component::PauseConfig(PauseConfigOptions { platform, image }) => {
            print!("{}", pause_config::snippet(platform, &image)?);
        }
        Component::HelmTest(options) => {
            let client = client(Arc::default(), ApiRequests::default()).await?;
            println!("{}", helm_test::run(&options, &client).await?);
        }
        Component::InstallPause(Arguments { options, process }) => run_installer(options, process).await?,
        Component::UninstallPause(options) => {
            let client = client(Arc::default(), ApiRequests::default()).await?;
            println!("{}", uninstall::run(&options, &client).await?);
        }
    }
    Ok(())
}

async fn run_agent(options: AgentOptions, process: ProcessArguments) -> anyhow::Result<()> {
    let (metrics, readiness) = (Arc::new(AgentMetrics::default()), Arc::new(Readiness::default()));
    let proc = Proc::new(&options.proc).with_context(|| format!("opening {}", options.proc))?;
    run_component(process, readiness.clone(), metrics.clone(), async move |stop| {
        let client = client(readiness.clone(), metrics.requests()).await?;
        tokio::select! {
            () = agent::run(options, proc, client, readiness, metrics) => {}
            () = stop => {}
        }
        Ok(())
    })
    .await
}

async fn run_controller(options: ControllerOptions, process: ProcessArguments) -> anyhow::Result<()> {
    let (metrics, readiness) = (Arc::new(ControllerMetrics::default()), Arc::new(Readiness::default()));
    run_component(process, readiness.clone(), metrics.clone(), async move |stop| {
        let client = client(readiness.clone(), metrics.requests()).await?;
        controller::run(options, client, readiness, metrics, stop).await;
        Ok(())
    })
    .await
}

async fn run_installer(options: InstallerOptions, process: ProcessArguments) -> anyhow::Result<()> {
    let readiness = Arc::new(Readiness::default());
    run_component(process, readiness.clone(), Arc::new(NoMetrics), async move |stop| {
        let client = client(readiness.clone(), ApiRequests::default()).await?;
        installer::run(options, client, readiness, stop).await
    })
    .await
}

/// Runs a component until a signal, and its HTTP endpoints.
async fn run_component(
    arguments: ProcessArguments,
    readiness: Arc<Readiness>,
    metrics: Arc<dyn Metrics>,
    component: impl AsyncFnOnce(BoxFuture<'static, ()>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    init_log(&arguments);
    // The agent holds two descriptors for each sandbox, and the usual soft limit (1024) is for programs that use select(2).
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    let address = arguments.listen;
    let listener = listen(address).await.with_context(|| format!("listening on {address}"))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        result = component(Box::pin(stop)) => result,
        () = serve(listener, readiness, metrics) => Ok(()),
    }
}

fn init_log(arguments: &ProcessArguments) {
    let level = arguments.log_level;
    // kube's watcher warns about every single 403; the client logs the first.
    let targets = Targets::new()
        .with_default(level)
        .with_target("kube_runtime::watcher", level.min(LevelFilter::ERROR));
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(false).finish().with(targets).init(),
        LogFormat::Json => log.json().finish().with(targets).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn options_of_the_pause_rollout_need_each_other() {
        let controller = ["sandbox-health", "controller", "--lease-namespace=n", "--identity=i"];
        let lease = "--pause-installer-lease=l";
        let canary = "--pause-canary=c";
        for (options, is_valid) in
            [(&[][..], true), (&[lease], false), (&[canary], false), (&[lease, canary], true)]
        {
            let parsed = CommandLine::try_parse_from(controller.iter().chain(options));
            assert_eq!(parsed.is_ok(), is_valid, "{options:?}");
        }
    }
}
