//! Pods of the tests and of the demo: created, deleted, and made to do something by a shell inside.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::sandbox_health::health_of;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};
use crate::names::BUSYBOX;

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

/// Creates a pod and waits for it.
pub fn create(node: &Node, pod: &Value) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?.to_owned();
    node.apply(pod)?;
    node.kubectl(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=300s"])?;
    Ok(name)
}

/// Creates pods, or leaves them as they are, and waits for all of them.
///
/// # Errors
///
/// When they do not become Ready.
pub fn create_pods(node: &Node, pods: &[Value]) -> Result<()> {
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    let names =
        pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).map(|name| format!("pod/{name}"));
    let wait = ["wait", "--for=condition=Ready", "--timeout=300s"].map(str::to_owned);
    node.kubectl(wait.into_iter().chain(names)).map(drop)
}

/// Deletes a pod and waits until it is gone.
///
/// # Errors
///
/// What kubectl says.
pub fn delete(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["delete", "pod", pod, "--wait"]).map(drop)
}

/// Starts a parent of `zombies` zombies in the pod's shell; its PID there.
pub fn never_waits(node: &Node, pod: &str, zombies: u32) -> Result<String> {
    let script = format!(
        "sh -c 'for i in $(seq {zombies}); do sleep 2 & done; exec sleep 100000' >/dev/null 2>&1 & echo $!"
    );
    Ok(shell(node, pod, &script)?.trim().to_owned())
}

/// How often the kubelet says that the containers of a pod were started anew; the least of them.
pub fn container_restarts(pod: &Value) -> Option<u64> {
    pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .map(|status| status["restartCount"].as_u64())
        .min()?
}

/// Waits until the kubelet says that a pod's containers were started anew so often, or more: now and then it tries to start one
/// in a sandbox that is going, and counts that, too.
pub fn containers_restarted(node: &Node, pod: &str, times: u64) -> Result<()> {
    retry::until(&format!("{pod} was started anew {times} times"), TIMEOUT, || {
        let said = container_restarts(&node.get(&["pod", pod])?);
        ensure!(said >= Some(times), "its containers were started anew {said:?} times");
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

/// So many pods at once, each of them healthy.
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
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let members =
        list["items"].as_array().context("no list")?.iter().map(|pod| {
            Ok(Member { name: text(&pod["metadata"]["name"])?, uid: text(&pod["metadata"]["uid"])? })
        });
    let members: Vec<_> = members.collect::<Result<_>>()?;
    ensure!(members.len() == size, "{members:?}");
    for member in &members {
        health_of(node, &member.name, "True", "AllWell")?;
    }
    Ok(members)
}

/// Deletes the pods of a fleet.
///
/// # Errors
///
/// What kubectl says.
pub fn delete_fleet(node: &Node, fleet: &str) -> Result<()> {
    node.kubectl(["delete", "pods", "-l", &format!("fleet={fleet}"), "--wait"]).map(drop)
}
