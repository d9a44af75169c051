//! What users observe: kubectl, Events, metrics, the commands of the docs; also with hostile pods. They share the cluster `observability`
//! and need root; elsewhere they are reported as ignored.

mod documented_commands;
mod hostile_pods;
mod kubectl_output;
mod objects;
mod prometheus;
mod zombie_parents;

use std::process::ExitCode;

use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("observability")
        .with(&kubectl_output::SCENARIOS)
        .with(&documented_commands::SCENARIOS)
        .with(&objects::SCENARIOS)
        .with(&prometheus::SCENARIOS)
        .with(&hostile_pods::SCENARIOS)
        .with(&zombie_parents::SCENARIOS)
        .run()
}
