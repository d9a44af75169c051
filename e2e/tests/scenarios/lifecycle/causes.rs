//! Causes of the end of a sandbox and their Events: the list of `e2e::kube::causes` on this machine's kernel.

use anyhow::Result;
use e2e::kube::causes;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] = [("causes_of_restarts_are_named", causes_of_restarts_are_named)];

fn causes_of_restarts_are_named(cluster: &Cluster) -> Result<()> {
    causes::causes_are_named(&*cluster.node)
}
