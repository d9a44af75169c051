//! Metrics of agent and controller, over HTTP from inside of the node's network.

use anyhow::{Context as _, Result, ensure};

use super::workloads::pods_of;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};
use crate::names::RELEASE_NAMESPACE;

/// Whether the controller that works shows this series to Prometheus.
pub fn controller_shows(node: &Node, series: &str) -> Result<()> {
    retry::until(&format!("a controller shows {series}"), TIMEOUT, || {
        for pod in pods_of(node, "controller")? {
            let address = pod["status"]["podIP"].as_str().context("a pod without an address")?;
            if http_get(node, address, "/metrics")?.lines().any(|line| line == series) {
                return Ok(());
            }
        }
        anyhow::bail!("none does")
    })
}

/// The agent's own count of statuses that could not be read for this reason.
pub fn read_errors(node: &Node, reason: &str) -> Result<u64> {
    let metrics = agent_metrics(node)?;
    let series = format!("sandbox_status_read_errors_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.with_context(|| format!("no {series} in\n{metrics}"))?.trim().parse().context("not a number")
}

/// What the node's agent shows to Prometheus.
pub fn agent_metrics(node: &Node) -> Result<String> {
    http_get(node, &agent_address(node)?, "/metrics")
}

fn agent_address(node: &Node) -> Result<String> {
    let selector = "app.kubernetes.io/component=agent";
    let path = "jsonpath={.items[0].status.podIP}";
    node.kubectl(["-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", path])
}

/// What a pod answers over HTTP, head and body.
pub fn http_get(node: &Node, address: &str, path: &str) -> Result<String> {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/8080 && printf 'GET {path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let ran = node.command("bash").args(["-c", &script]).output()?;
    ensure!(ran.status.success(), "{address}{path}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
