//! SandboxHealth objects of pods in the namespace `default`.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};
use crate::names::{CONTROLLER, RELEASE_NAMESPACE};

const API: &str = "/apis/sandboxhealth.dev/v1alpha1";

/// The SandboxHealth object of a pod.
///
/// # Errors
///
/// When there is none.
pub fn sandbox_health(node: &Node, pod: &str) -> Result<Value> {
    node.read(&format!("{API}/namespaces/default/sandboxhealths/{pod}"))
}

/// All SandboxHealth objects of the cluster.
///
/// # Errors
///
/// When they cannot be listed.
pub fn sandbox_healths(node: &Node) -> Result<Vec<Value>> {
    let mut list = node.read(&format!("{API}/sandboxhealths"))?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// Whether a pod has an object. An error of the API is not mistaken for its absence.
///
/// # Errors
///
/// When the objects cannot be listed.
pub fn has_sandbox_health(node: &Node, pod: &str) -> Result<bool> {
    let is_its_own =
        |object: &Value| object["metadata"]["namespace"] == "default" && object["metadata"]["name"] == *pod;
    Ok(sandbox_healths(node)?.iter().any(is_its_own))
}

/// The UID of a SandboxHealth object.
///
/// # Errors
///
/// When it has none.
pub fn object_uid(object: &Value) -> Result<String> {
    object["metadata"]["uid"].as_str().map(str::to_owned).context("no uid")
}

/// Waits until the condition `Healthy` of a pod's object has this status and reason; returns the object.
///
/// # Errors
///
/// When it does not, with the condition that it has.
pub fn wait_for_health(node: &Node, pod: &str, status: &str, reason: &str) -> Result<Value> {
    retry::until(&format!("{pod} is {status} for {reason}"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let healthy = conditions.iter().find(|condition| condition["type"] == "Healthy");
        let healthy = healthy.context("it has no condition Healthy")?;
        ensure!(healthy["status"] == status && healthy["reason"] == reason, "it is {healthy}");
        Ok(object)
    })
}

/// Waits until the object of a pod reports this number of zombies. While a burst of processes exits, it may report fewer.
///
/// # Errors
///
/// When it does not within [`TIMEOUT`].
pub fn wait_for_zombies(node: &Node, pod: &str, zombies: i64) -> Result<Value> {
    wait_for_health(node, pod, "False", "ZombiesAccumulating")?;
    retry::until(&format!("{pod} has {zombies} zombies"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        ensure!(object["status"]["processes"]["zombies"] == zombies, "{object}");
        Ok(object)
    })
}

/// The number of zombies in the object of a pod.
///
/// # Errors
///
/// When it has none.
pub fn zombies_of(node: &Node, pod: &str) -> Result<i64> {
    let object = sandbox_health(node, pod)?;
    object["status"]["processes"]["zombies"]
        .as_i64()
        .with_context(|| format!("no zombies counted: {}", object["status"]))
}

/// Waits until the object of an unwatched pod is deleted: nothing in it would be updated any more.
pub fn wait_until_object_deleted(node: &Node, pod: &str) -> Result<()> {
    retry::until(&format!("the object of the unwatched pod {pod} is deleted"), TIMEOUT, || {
        let object = node.kubectl(["get", "sandboxhealth", pod, "--ignore-not-found", "-o", "name"])?;
        ensure!(object.is_empty(), "{object}");
        Ok(())
    })
}

/// Tries to write 99 restarts into the status of a pod's object as an administrator; returns the error of the API server.
///
/// # Errors
///
/// When it is accepted.
pub fn refused_edit(node: &Node, pod: &str) -> Result<String> {
    let edit = r#"{"status":{"restarts":99}}"#;
    let edited =
        node.kubectl(["patch", "sandboxhealth", pod, "--subresource=status", "--type=merge", "-p", edit]);
    edited.err().map(|error| format!("{error:#}")).context("the edit was accepted")
}

/// Option of kubectl by which an administrator acts as an account of the release.
#[must_use]
pub fn as_account(account: &str) -> String {
    format!("--as=system:serviceaccount:{RELEASE_NAMESPACE}:{account}")
}

/// Applies the status of an object as the controller's account, under any field manager.
///
/// # Errors
///
/// When the API server refuses it.
pub fn apply_status(node: &Node, manager: &str, object: &Value) -> Result<String> {
    let status = ["--server-side", "--force-conflicts", "--validate=false", "--subresource=status"];
    let (manager, account) = (format!("--field-manager={manager}"), as_account(CONTROLLER));
    node.apply_with(&[&status[..], &[&manager, &account]].concat(), object)
}
