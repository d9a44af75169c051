//! Permissions, stolen tokens, releases that are installed, upgraded and uninstalled, and components that lack what they need: the API
//! server, the CRD, permissions, a visible /proc, a ready node, room below a quota. They share the cluster `security` and need root;
//! elsewhere they are reported as ignored.

mod agent_pods;
mod gitops;
mod node_visibility;
mod outages;
mod permissions;
mod quotas;
mod refused_events;
mod releases;
mod uninstall;

use std::process::ExitCode;

use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("security")
        .with(&permissions::SCENARIOS)
        .with(&outages::SCENARIOS)
        .with(&node_visibility::SCENARIOS)
        .with(&agent_pods::SCENARIOS)
        .with(&refused_events::SCENARIOS)
        .with(&quotas::SCENARIOS)
        .with(&releases::SCENARIOS)
        .with(&gitops::SCENARIOS)
        // Last, because it uninstalls the chart.
        .with(&uninstall::SCENARIOS)
        .run()
}
