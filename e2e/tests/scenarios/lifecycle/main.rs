//! Sandboxes, agents, controllers and API servers that start, end and are killed: counts and reports stay exact. They share the cluster
//! `lifecycle` and need root; elsewhere they are reported as ignored.

mod causes;
mod exact_counts;
mod failover;
mod pause_image;
mod randomized_restarts;
mod restarts;
mod slow_api;
mod static_pods;
mod terminations;

use std::process::ExitCode;

use e2e::demo::STEPS;
use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("lifecycle")
        .with_steps(&STEPS)
        .with(&pause_image::SCENARIOS)
        .with(&restarts::SCENARIOS)
        .with(&causes::SCENARIOS)
        .with(&exact_counts::SCENARIOS)
        .with(&randomized_restarts::SCENARIOS)
        .with(&terminations::SCENARIOS)
        .with(&static_pods::SCENARIOS)
        .with(&failover::SCENARIOS)
        .with(&slow_api::SCENARIOS)
        .run()
}
