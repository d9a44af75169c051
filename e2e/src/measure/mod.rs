//! What agent and controller cost, and how soon a restart is told of: measured in one run, side by side with what people
//! use today. It measures, and tests nothing that is promised elsewhere. `cargo cost` runs it; docs/development/benchmarks.md says what
//! each number means.

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

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// The agent on a full node, beside node_exporter
    Agent,
    /// From a pause's death to its Event
    Latency,
    /// The controller with many pods on fake nodes
    Controller,
    /// What the API server is asked by many agents and the controller
    Api,
}

impl Measurement {
    /// In the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Latency, Self::Controller, Self::Api];
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Amounts {
    /// Pods of the agent's node.
    pub pods: usize,
    /// Processes of the agent's node.
    pub processes: usize,
    /// For how long the agent is observed.
    pub minutes: u64,
    /// How often a pause is killed.
    pub kills: usize,
    /// Of the order in which pauses are killed.
    pub seed: u64,
    /// Pods of the controller's cluster.
    pub cluster_pods: usize,
    /// Whether it watches those that do not share their PID namespace, too.
    pub watch_all: bool,
    /// Agents that start at once.
    pub agents: usize,
    /// For how long their requests are counted.
    pub api_minutes: u64,
}

/// The text that a measurement ends with, and whether all its targets are met.
struct Outcome {
    text: String,
    met: bool,
}

/// Does the work of a process of the benchmark's own, if this is one, and then never returns.
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

/// Measures, prints the results as Markdown, and says whether all targets are met. Progress goes to stderr.
///
/// # Errors
///
/// When something cannot be measured here.
pub fn run(measurements: &[Measurement], amounts: &Amounts) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for namespaces and cgroups");
    println!("{}\n", machine::line()?);
    let (mut met, mut failed) = (true, vec![]);
    for measurement in measurements {
        let outcome = match measurement {
            Measurement::Agent => agent::measure(amounts.pods, amounts.processes, amounts.minutes),
            Measurement::Latency => latency::measure(amounts.kills, amounts.seed),
            Measurement::Controller => controller::measure(amounts.cluster_pods, amounts.watch_all),
            Measurement::Api => api::measure(amounts.cluster_pods, amounts.agents, amounts.api_minutes),
        };
        // One that cannot be measured takes nothing from the others.
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
