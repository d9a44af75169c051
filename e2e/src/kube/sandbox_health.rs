//! SandboxHealth objects, as kubectl shows them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};

/// The SandboxHealth object of a pod, whatever it says.
///
/// # Errors
///
/// When there is none.
pub fn sandbox_health(node: &Node, pod: &str) -> Result<Value> {
    node.get(&["sandboxhealth", pod])
}

/// Waits until the row of a pod says so: `Healthy`'s status and reason.
///
/// # Errors
///
/// When it does not, with what it says.
pub fn health_of(node: &Node, pod: &str, status: &str, reason: &str) -> Result<Value> {
    retry::until(&format!("{pod} is {status} for {reason}"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let healthy = conditions.iter().find(|condition| condition["type"] == "Healthy");
        let healthy = healthy.context("it has no condition Healthy")?;
        ensure!(healthy["status"] == status && healthy["reason"] == reason, "it is {healthy}");
        Ok(object)
    })
}

/// Zombies as the row of a pod says.
///
/// # Errors
///
/// When nobody counts them.
pub fn zombies_of(node: &Node, pod: &str) -> Result<i64> {
    let object = sandbox_health(node, pod)?;
    object["status"]["processes"]["zombies"]
        .as_i64()
        .with_context(|| format!("no zombies counted: {}", object["status"]))
}

/// Waits until a pod that nobody watches has no row, in which nothing would change any more.
pub fn unwatched_row_goes(node: &Node, pod: &str) -> Result<()> {
    retry::until(&format!("the row of {pod} goes, which is not watched"), TIMEOUT, || {
        let row = node.kubectl(["get", "sandboxhealth", pod, "--ignore-not-found", "-o", "name"])?;
        ensure!(row.is_empty(), "{row}");
        Ok(())
    })
}

/// Writes into the row of a pod, as somebody may, that it was restarted 99 times.
pub fn edit_restarts(node: &Node, pod: &str) -> Result<()> {
    let lie = r#"{"status":{"restarts":99}}"#;
    node.kubectl(["patch", "sandboxhealth", pod, "--subresource=status", "--type=merge", "-p", lie])?;
    Ok(())
}
