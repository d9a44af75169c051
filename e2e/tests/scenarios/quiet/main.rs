//! Writes to the API of agent and controller, on a cluster where nothing happens that the tests do not cause. The tests mostly wait: five
//! minutes without a write, up to five minutes for an agent's next list, ten minutes until a sandbox counts as stable. The other groups
//! run meanwhile on clusters of their own. They share the cluster `quiet` and need root; elsewhere they are reported as ignored.

mod api_requests;

use std::process::ExitCode;

use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("quiet").with(&api_requests::SCENARIOS).run()
}
