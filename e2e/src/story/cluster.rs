//! What the story and the tests need of the cluster: the chart installed, pods made, rows and Events read, and the pause of
//! a sandbox found among the processes of the machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::PATIENCE;
use crate::images::{BUSYBOX, SANDBOX_HEALTH};
use crate::node::Node;
use crate::wait;

/// The pod that the story is about, in the namespace `default`.
pub const POD: &str = "web";
/// The Helm release.
pub const RELEASE: &str = "sandbox-health";
/// Where it is installed.
pub const RELEASE_NAMESPACE: &str = "sandbox-health";

/// Installs the chart, or upgrades it, and waits until agent and controller are ready.
///
/// # Errors
///
/// What Helm says.
pub fn install_chart(node: &Node) -> Result<String> {
    let chart = project_file("charts/sandbox-health")?;
    let (repository, tag) = SANDBOX_HEALTH.rsplit_once(':').context("the image has no tag")?;
    node.helm([
        "upgrade",
        "--install",
        RELEASE,
        &chart,
        "--namespace",
        RELEASE_NAMESPACE,
        "--create-namespace",
        "--set",
        &format!("image.repository={repository},image.tag={tag}"),
        "--wait",
    ])
}

/// A file of the project, as the node finds it, too.
///
/// # Errors
///
/// When there is none.
pub fn project_file(path: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    Ok(file.canonicalize().with_context(|| path.to_owned())?.display().to_string())
}

/// A pod that shares its PID namespace, with a container `shell` that has a shell and stays, and those given.
#[must_use]
pub fn pod(name: &str, containers: &[Value]) -> Value {
    let shell = json!({"name": "shell", "image": BUSYBOX, "command": ["sleep", "1000000"]});
    let containers: Vec<_> = std::iter::once(shell).chain(containers.iter().cloned()).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "shareProcessNamespace": true,
            "automountServiceAccountToken": false,
            // Nothing in these pods ends by SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
        },
    })
}

/// What a command says in the shell of a pod.
///
/// # Errors
///
/// When it fails.
pub fn shell(node: &Node, pod: &str, script: &str) -> Result<String> {
    node.kubectl(["exec", pod, "-c", "shell", "--", "sh", "-c", script])
}

/// The UID of a pod.
///
/// # Errors
///
/// When there is none.
pub fn uid_of(node: &Node, pod: &str) -> Result<String> {
    node.kubectl(["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])
}

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
    wait::until(&format!("{pod} is {status} for {reason}"), PATIENCE, || {
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

/// The notes of the Events about this very pod so far, oldest first. An earlier pod of the name has left some, too.
///
/// # Errors
///
/// When they cannot be listed.
pub fn events_of(node: &Node, pod: &str, reason: &str) -> Result<Vec<String>> {
    let uid = uid_of(node, pod)?;
    let selector = format!("involvedObject.uid={uid},reason={reason}");
    let mut list = node.get(&["events", "--field-selector", &selector])?;
    let mut items: Vec<Value> = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    // The one has seconds, the other microseconds; the kubelet's Events have none of those.
    items.sort_by_key(|item| {
        [&item["metadata"]["creationTimestamp"], &item["eventTime"]].map(Value::to_string)
    });
    Ok(items.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

/// The pause process of a pod's sandbox, as the machine numbers it: found by the sandbox's id, in its cgroup.
///
/// # Errors
///
/// When there is none.
pub fn pause_of(node: &Node, pod: &str) -> Result<u32> {
    let object = sandbox_health(node, pod)?;
    pause_in_cgroup_of(object["status"]["sandbox"]["id"].as_str().context("the row names no sandbox")?)
}

/// The pause process whose cgroup names this pod (its UID) or sandbox.
///
/// # Errors
///
/// When there is none.
pub fn pause_in_cgroup_of(id: &str) -> Result<u32> {
    process_in_cgroup_of(id, "comm", "pause\n")
}

/// A process in the cgroup of a pod or sandbox, by what a file of its folder in /proc says.
///
/// # Errors
///
/// When there is none.
pub fn process_in_cgroup_of(id: &str, file: &str, says: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end while we look at it.
        let read = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        if read(file) == says && read("cgroup").contains(id) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of {id} whose {file} is {says:?}")
}

#[cfg(test)]
mod tests {
    use crate::images::{BUSYBOX, NGINX};

    #[test]
    fn the_pod_of_the_story_has_the_images_of_the_node() {
        let manifest = include_str!("web.yaml");
        for image in [BUSYBOX, NGINX] {
            assert!(manifest.contains(&format!("image: {image}\n")), "{image}");
        }
    }
}
