//! An API server whose writes take seconds: the leader keeps its term, and restarts are counted and reported.

use anyhow::Result;
use e2e::kube::{create_healthy, delete, kill_pause, wait_for_restarts, with_slow_api_server};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] = [("slow_api_server_ends_no_term", slow_api_server_ends_no_term)];

/// Five times the duration of a Lease.
const STOPS: u32 = 15;

fn slow_api_server_ends_no_term(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [pod] = create_healthy(node, ["slowly"])?;
    with_slow_api_server(node, STOPS, || {
        kill_pause(node, &pod)?;
        wait_for_restarts(node, &pod, 1)
    })?;
    delete(node, &pod)
}
