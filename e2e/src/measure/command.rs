//! `cargo cost`: what agent and controller cost, and how soon a restart is told of. The results go to stdout as Markdown, all
//! else is progress on stderr.

use std::process::ExitCode;
use std::time::SystemTime;

use super::{Amounts, Measurement, agent};
use anyhow::Result;
use clap::Parser;

/// Measures the agent beside node_exporter, the time from a death to its Event, and the controller with many pods. Ends with 0
/// if all targets are met, with 1 if not, with 2 if it cannot measure.
#[derive(Parser)]
#[command(bin_name = "cargo cost --")]
pub struct CommandLine {
    /// What is measured [default: all]
    measurements: Vec<Measurement>,
    /// Pods of the agent's node
    #[arg(long, default_value_t = 110)]
    pods: usize,
    /// Processes of the agent's node
    #[arg(long, default_value_t = agent::USUAL_PROCESSES)]
    processes: usize,
    /// For how long the agent is observed
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// How often a pause is killed
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Of the order in which pauses are killed [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Pods of the controller's cluster; one of ten shares its PID namespace
    #[arg(long, default_value_t = 20_000)]
    cluster_pods: usize,
    /// Have the controller watch all of them, as with `watch.pods: All`
    #[arg(long)]
    watch_all: bool,
    /// Agents that start at once, each on another fake node
    #[arg(long, default_value_t = 50)]
    agents: usize,
    /// For how long their requests are counted
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    api_minutes: u64,
}

const EXIT_MISSED: u8 = 1;
const EXIT_NOT_MEASURED: u8 = 2;

/// Measures what was asked for.
///
/// # Errors
///
/// None: what cannot be measured has an exit status of its own.
pub fn run(line: CommandLine) -> Result<ExitCode> {
    let CommandLine {
        mut measurements,
        pods,
        processes,
        minutes,
        kills,
        seed,
        cluster_pods,
        watch_all,
        agents,
        api_minutes,
    } = line;
    if measurements.is_empty() {
        measurements.extend(Measurement::ALL);
    }
    let seed = seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    });
    let amounts =
        Amounts { pods, processes, minutes, kills, seed, cluster_pods, watch_all, agents, api_minutes };
    Ok(match super::run(&measurements, &amounts) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_MISSED),
        Err(error) => {
            eprintln!("cost: {error:#}");
            ExitCode::from(EXIT_NOT_MEASURED)
        }
    })
}
