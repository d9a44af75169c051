//! A cluster's worth of pods on fake nodes that kwok simulates. They are as large as real pods, because their size matters for lists.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::fake_node::{Identity, pod_object};
use crate::build::go;
use crate::cluster::Node;
use crate::host::retry;

const STAGES: &str = include_str!("kwok-stages.yaml");
const PODS_OF_A_NODE: usize = 100;
/// One of this number of pods shares its PID namespace.
const ONE_SHARES_OF: usize = 10;
/// Number of kubectl processes that create pods in parallel.
const WRITERS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(1200);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Number of pods that share their PID namespace.
pub(super) fn sharing(pods: usize) -> usize {
    pods.div_ceil(ONE_SHARES_OF)
}

/// Creates nodes and pods, and waits until all run. kwok ends with the node.
pub(super) fn create_all(node: &Node, pods: usize, directory: &Path) -> Result<()> {
    let mut kwok = start_kwok(node, directory)?;
    let nodes: Vec<_> = (0..pods.div_ceil(PODS_OF_A_NODE)).map(fake_node).collect();
    eprintln!("cost: creating {} nodes and {pods} pods", nodes.len());
    let file = directory.join("nodes.json");
    std::fs::write(&file, list(&nodes).to_string())?;
    create(node, &file, "nodes")?.wait()?;
    let mut writers = vec![];
    for writer in 0..WRITERS {
        let file = directory.join(format!("pods-{writer}.json"));
        let pods: Vec<_> = (writer..pods).step_by(WRITERS).map(pod).collect();
        std::fs::write(&file, list(&pods).to_string())?;
        writers.push(create(node, &file, "pods")?);
    }
    let begun = Instant::now();
    while let Some(writer) = writers.last_mut() {
        match writer.try_wait()? {
            Some(status) => {
                ensure!(status.success(), "kubectl create: {status}");
                writers.pop();
            }
            None => report_progress(&begun, "creating pods"),
        }
    }
    retry::until("all pods run", TIMEOUT, || {
        if let Some(status) = kwok.try_wait()? {
            let output = crate::host::command::tail(&log_of_kwok(node)).unwrap_or_default();
            // kwok has exited: the pods will never run.
            return Ok(Err(anyhow!("kwok ended ({status}):\n{output}")));
        }
        report_progress(&begun, "waiting for all pods to run");
        ensure!(not_running(node)? == 0, "not all pods run");
        Ok(Ok(()))
    })?
}

/// Reports progress and sleeps: on a machine of few cores, polling takes CPU time from the work.
fn report_progress(begun: &Instant, what: &str) {
    eprintln!("cost: {what}: {} s", begun.elapsed().as_secs());
    thread::sleep(PROGRESS_INTERVAL);
}

fn log_of_kwok(node: &Node) -> PathBuf {
    node.log_dir().join("kwok.log")
}

fn start_kwok(node: &Node, directory: &Path) -> Result<Child> {
    let stages = directory.join("kwok-stages.yaml");
    std::fs::write(&stages, STAGES)?;
    let log = File::create(log_of_kwok(node))?;
    let kwok = node
        .command(go::kwok()?)
        .args(["--manage-nodes-with-annotation-selector", "kwok.x-k8s.io/node=fake", "--config"])
        .arg(&stages)
        .arg("--kubeconfig")
        .arg(node.kubeconfig())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn();
    kwok.context("cannot run kwok")
}

/// 0 if all pods run, else 1: a list of 20,000 pods would be too large.
fn not_running(node: &Node) -> Result<usize> {
    let path = "/api/v1/namespaces/default/pods?fieldSelector=status.phase%21%3DRunning&limit=1";
    let list: Value = serde_json::from_str(&node.kubectl(["get", "--raw", path])?)?;
    list["items"].as_array().map(Vec::len).context("a list without items")
}

fn create(node: &Node, file: &Path, what: &str) -> Result<Child> {
    let mut command: Command = node.command("kubectl");
    command.args(["create", "--validate=false", "--filename"]).arg(file);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().with_context(|| format!("creating {what}"))
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

pub(super) fn name_of_node(number: usize) -> String {
    format!("fake-{number:03}")
}

fn fake_node(number: usize) -> Value {
    let name = name_of_node(number);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": {"cpu": "32", "memory": "256Gi", "pods": "110"}, "allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}},
    })
}

/// Fields of a pod's metadata that others add; and its owner, which does not exist here.
const ADDED_BY_OTHERS: [&str; 6] =
    ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences"];

/// A pod as it is created: without the fields that the API server and the kubelet add.
fn pod(number: usize) -> Value {
    let mut pod = pod_object(&Identity::of(number), &name_of_node(number / PODS_OF_A_NODE));
    if let Some(object) = pod.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        for field in ADDED_BY_OTHERS {
            metadata.remove(field);
        }
    }
    if !number.is_multiple_of(ONE_SHARES_OF) {
        pod["spec"]["shareProcessNamespace"] = json!(false);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_pods_is_exact_and_names_are_unique() {
        let pods: Vec<_> = (0..1234).map(pod).collect();
        let shared = pods.iter().filter(|pod| pod["spec"]["shareProcessNamespace"] == true).count();
        assert_eq!(shared, sharing(pods.len()));
        let names: std::collections::BTreeSet<_> =
            pods.iter().map(|pod| pod["metadata"]["name"].to_string()).collect();
        assert_eq!(names.len(), pods.len());
        let last = &pods[1233]["spec"]["nodeName"];
        assert_eq!(*last, name_of_node(12));
    }

    #[test]
    fn pod_is_created_without_fields_of_others() {
        let pod = pod(1);
        assert!(pod["status"].is_null());
        let fields: Vec<_> = pod["metadata"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["annotations", "generateName", "labels", "name", "namespace"]);
    }
}
