//! `cargo cost`: measures the resources that agent and controller use, and the delay until a restart is reported. The results go to stdout
//! as Markdown, progress to stderr.

use std::process::ExitCode;
use std::time::SystemTime;

use super::{Amounts, Measurement, agent};
use anyhow::Result;
use clap::Parser;

/// Measures the agent beside node_exporter, the time from a pause's exit to its Event, and the controller with many pods. Exits with 0 if
/// all targets are met, with 1 if not, with 2 if it cannot measure.
#[derive(Parser)]
#[command(bin_name = "cargo cost --")]
pub struct CommandLine {
    /// Measurements to run [default: all]
    measurements: Vec<Measurement>,
    /// Number of pods on the agent's node
    #[arg(long, default_value_t = 110)]
    pods: usize,
    /// Number of processes on the agent's node
    #[arg(long, default_value_t = agent::USUAL_PROCESSES)]
    processes: usize,
    /// Minutes for which the agent is observed
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Number of kills of a pause
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Seed of the order in which pauses are killed [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of pods in the controller's cluster; one of ten shares its PID namespace
    #[arg(long, default_value_t = 20_000)]
    cluster_pods: usize,
    /// Make the controller watch all pods, as with `watch.pods: All`
    #[arg(long)]
    watch_all: bool,
    /// Number of agents that start at once, each for another fake node
    #[arg(long, default_value_t = 50)]
    agents: usize,
    /// Minutes for which their requests are counted
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    api_minutes: u64,
}

const EXIT_MISSED: u8 = 1;
const EXIT_NOT_MEASURED: u8 = 2;

/// Runs the selected measurements.
///
/// # Errors
///
/// None: a failed measurement has an exit status of its own.
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
