//! Pods of the tests and of the demo: creation, deletion, and commands in a shell inside.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::sandbox_health::wait_for_health;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};
use crate::names::BUSYBOX;

/// A pod that shares its PID namespace. Its container `shell` has a shell and does not exit; further containers are given.
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
            // No process of these pods exits on SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
        },
    })
}

/// The output of a command in the shell of a pod.
///
/// # Errors
///
/// When it fails.
pub fn shell(node: &Node, pod: &str, script: &str) -> Result<String> {
    node.kubectl(["exec", pod, "-c", "shell", "--", "sh", "-c", script])
}

/// A pod of the namespace `default`, as the API has it.
///
/// # Errors
///
/// When there is none.
pub fn pod_object(node: &Node, pod: &str) -> Result<Value> {
    node.read(&format!("/api/v1/namespaces/default/pods/{pod}"))
}

/// The UID of a pod.
///
/// # Errors
///
/// When there is none.
pub fn uid_of(node: &Node, pod: &str) -> Result<String> {
    pod_object(node, pod)?["metadata"]["uid"].as_str().map(str::to_owned).context("no uid")
}

/// Creates a pod and waits until it is ready; returns its name.
pub fn create(node: &Node, pod: &Value) -> Result<String> {
    create_all(node, std::slice::from_ref(pod))?.pop().context("no pod")
}

/// Creates pods at once and waits until all are ready; returns their names.
pub fn create_all(node: &Node, pods: &[Value]) -> Result<Vec<String>> {
    let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
    let names: Vec<_> = names.collect::<Option<_>>().context("a pod without a name")?;
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    let pods = names.iter().map(|name| format!("pod/{name}"));
    let wait = ["wait", "--for=condition=Ready", "--timeout=300s"].map(str::to_owned);
    node.kubectl(wait.into_iter().chain(pods))?;
    Ok(names)
}

/// Creates pods with these names at once and waits until their objects are healthy.
pub fn create_healthy<const N: usize>(node: &Node, names: [&str; N]) -> Result<[String; N]> {
    create_all(node, &names.map(|name| pod(name, &[])))?;
    for name in names {
        wait_for_health(node, name, "True", "SandboxHealthy")?;
    }
    Ok(names.map(str::to_owned))
}

/// Deletes a pod without waiting for its termination, which takes seconds.
///
/// # Errors
///
/// When kubectl fails.
pub fn delete(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["delete", "pod", pod, "--wait=false"]).map(drop)
}

/// Deletes a pod and waits until it is gone.
///
/// # Errors
///
/// When kubectl fails.
pub fn delete_and_wait(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["delete", "pod", pod, "--wait"]).map(drop)
}

/// Starts a process with this number of zombies in the pod's shell, which it does not reap; returns its PID there.
pub fn leave_zombies(node: &Node, pod: &str, zombies: u32) -> Result<String> {
    let script = format!(
        "sh -c 'for i in $(seq {zombies}); do sleep 2 & done; exec sleep 100000' >/dev/null 2>&1 & echo $!"
    );
    Ok(shell(node, pod, &script)?.trim().to_owned())
}

/// The lowest restart count of the containers of a pod.
pub fn container_restarts(pod: &Value) -> Option<u64> {
    pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .map(|status| status["restartCount"].as_u64())
        .min()?
}

/// Waits until each container of a pod has been restarted at least this often: sometimes the kubelet also tries to start one in a sandbox
/// that is about to end, and counts that.
pub fn wait_for_container_restarts(node: &Node, pod: &str, times: u64) -> Result<()> {
    retry::until(&format!("the containers of {pod} were restarted {times} times"), TIMEOUT, || {
        let restarts = container_restarts(&pod_object(node, pod)?);
        ensure!(restarts >= Some(times), "they were restarted {restarts:?} times");
        Ok(())
    })
}

/// A pod of a fleet, with its UID.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name in the namespace `default`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// Creates this number of pods at once and waits until each is healthy.
pub fn create_fleet(node: &Node, fleet: &str, size: usize) -> Result<Vec<Member>> {
    let pods: Vec<_> = (1..=size)
        .map(|number| {
            let mut pod = pod(&format!("{fleet}-{number}"), &[]);
            pod["metadata"]["labels"] = json!({"fleet": fleet});
            pod
        })
        .collect();
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    let label = format!("fleet={fleet}");
    node.kubectl(["wait", "--for=condition=Ready", "pods", "-l", &label, "--timeout=300s"])?;
    let list = node.get(&["pods", "-l", &label])?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("not a string");
    let members =
        list["items"].as_array().context("no list")?.iter().map(|pod| {
            Ok(Member { name: text(&pod["metadata"]["name"])?, uid: text(&pod["metadata"]["uid"])? })
        });
    let members: Vec<_> = members.collect::<Result<_>>()?;
    ensure!(members.len() == size, "{members:?}");
    for member in &members {
        wait_for_health(node, &member.name, "True", "SandboxHealthy")?;
    }
    Ok(members)
}

/// Deletes the pods of a fleet without waiting for their termination.
///
/// # Errors
///
/// When kubectl fails.
pub fn delete_fleet(node: &Node, fleet: &str) -> Result<()> {
    node.kubectl(["delete", "pods", "-l", &format!("fleet={fleet}"), "--wait=false"]).map(drop)
}
