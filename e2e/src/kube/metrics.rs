//! Metrics of agent and controller, over HTTP from inside of the node's network.

use anyhow::{Context as _, Result, ensure};

use super::workloads::pods_of;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};

/// Waits until a controller exposes this sample. Only the leader exposes most of them.
pub fn wait_for_controller_metric(node: &Node, sample: &str) -> Result<()> {
    retry::until(&format!("a controller exposes {sample}"), TIMEOUT, || controller_exposes(node, sample))
}

/// Fails if no controller exposes this sample.
pub fn controller_exposes(node: &Node, sample: &str) -> Result<()> {
    for pod in pods_of(node, "controller")? {
        let address = pod["status"]["podIP"].as_str().context("a pod without an address")?;
        if http_get(node, address, "/metrics")?.lines().any(|line| line == sample) {
            return Ok(());
        }
    }
    anyhow::bail!("no controller does")
}

/// The agent's counter of read errors with this reason.
pub fn read_errors(node: &Node, reason: &str) -> Result<u64> {
    let metrics = agent_metrics(node)?;
    let series = format!("sandboxhealth_read_errors_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.with_context(|| format!("no {series} in\n{metrics}"))?.trim().parse().context("not a number")
}

/// The metrics of the node's agent, with the head of the HTTP response.
pub fn agent_metrics(node: &Node) -> Result<String> {
    http_get(node, &agent_address(node)?, "/metrics")
}

fn agent_address(node: &Node) -> Result<String> {
    let agents = pods_of(node, "agent")?;
    let address = agents.first().and_then(|agent| agent["status"]["podIP"].as_str());
    Ok(address.context("no agent has an address")?.to_owned())
}

/// A bash script that prints the HTTP response of a pod, head and body.
#[must_use]
pub fn http_script(address: &str, path: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{address}/8080 && printf 'GET {path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3"
    )
}

/// The HTTP response of a pod, head and body.
pub fn http_get(node: &Node, address: &str, path: &str) -> Result<String> {
    let ran = node.command("bash").args(["-c", &http_script(address, path)]).output()?;
    ensure!(ran.status.success(), "{address}{path}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
