//! Benchmarks of agent and controller: the resources that they use and the delay until a restart is reported, measured in one run side by
//! side with today's tools. Nothing here is a test. `cargo cost` runs them; docs/development/benchmarks.md explains each number.

mod agent;
mod api;
mod audit;
mod command;
mod controller;
mod event_watch;
mod fake_node;
mod latency;
mod machine;
mod many_pods;
mod own_process;
mod percentiles;
mod process;
mod process_cgroup;
mod scrape;
mod shuffle;
mod system_calls;
mod table;
mod tools;

use anyhow::{Result, ensure};
use clap::ValueEnum;

pub use command::{CommandLine, run as run_command};

/// A measurement that can run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// The agent on a full node, beside node_exporter
    Agent,
    /// The time from a pause's exit to its Event
    Latency,
    /// The controller with many pods on fake nodes
    Controller,
    /// Requests of many agents and the controller to the API server
    Api,
}

impl Measurement {
    /// All measurements, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Latency, Self::Controller, Self::Api];
}

/// Sizes of the measurements.
#[derive(Debug, Clone)]
pub struct Amounts {
    /// Number of pods on the agent's node.
    pub pods: usize,
    /// Number of processes on the agent's node.
    pub processes: usize,
    /// Minutes for which the agent is observed.
    pub minutes: u64,
    /// Number of kills of a pause.
    pub kills: usize,
    /// Seed of the order in which pauses are killed.
    pub seed: u64,
    /// Number of pods in the controller's cluster.
    pub cluster_pods: usize,
    /// Whether the controller also watches pods that do not share their PID namespace.
    pub watch_all: bool,
    /// Number of agents that start at once.
    pub agents: usize,
    /// Minutes for which their requests are counted.
    pub api_minutes: u64,
}

/// The result of a measurement: its text, and whether all its targets are met.
struct Outcome {
    text: String,
    met: bool,
}

/// Runs as one of the benchmark's own processes if this process was started as one, and then never returns.
pub fn run_if_own_process() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [fake_node::GUARD, plan] => fake_node::guard(plan),
        [fake_node::NODE, plan, cgroup] => fake_node::node(plan, cgroup),
        [own_process::UNTIL_READY, address] => own_process::wait(address),
        _ => return,
    };
    if let Err(error) = outcome {
        eprintln!("cost: {error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Measures, and prints the results as Markdown. Returns whether all targets are met. Progress goes to stderr.
///
/// # Errors
///
/// When a measurement fails.
pub fn run(measurements: &[Measurement], amounts: &Amounts) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "root is needed for namespaces and cgroups (try sudo)");
    println!("{}\n", machine::line()?);
    let (mut met, mut failed) = (true, vec![]);
    for measurement in measurements {
        let outcome = match measurement {
            Measurement::Agent => agent::measure(amounts.pods, amounts.processes, amounts.minutes),
            Measurement::Latency => latency::measure(amounts.kills, amounts.seed),
            Measurement::Controller => controller::measure(amounts.cluster_pods, amounts.watch_all),
            Measurement::Api => api::measure(amounts.cluster_pods, amounts.agents, amounts.api_minutes),
        };
        // A failed measurement does not affect the others.
        match outcome {
            Ok(outcome) => {
                println!("{}", outcome.text);
                met &= outcome.met;
            }
            Err(error) => failed.push(format!("{measurement:?}: {error:#}")),
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join("\n"));
    Ok(met)
}
