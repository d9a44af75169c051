//! Limits: the longest names, a terminating namespace, and the maximum number of objects.

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    apply_status, controller_exposes, create, create_all, delete, events_of, http_get, in_release,
    kill_pause, pod, pods_of, processes, sandbox_health, sandbox_healths, uid_of, wait_for_controller_metric,
    wait_for_health, wait_for_restarts, with_values,
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 3] = [
    ("longest_pod_names_work", longest_pod_names_work),
    ("terminating_namespace_causes_no_errors", terminating_namespace_causes_no_errors),
    ("above_max_objects_only_unhealthy_pods_get_objects", above_max_objects_only_unhealthy_pods),
];

/// Bytes of the longest name of a pod (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// The kubelet keeps logs in a directory called `<namespace>_<name>_<UID>`, of 255 bytes at most: a pod with a longer name never runs.
const RUNNING_NAME_MAX: usize = 255 - "default__".len() - 36;

fn longest_pod_names_work(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let runs = create(node, &pod(&"r".repeat(RUNNING_NAME_MAX), &[]))?;
    // This pod cannot run, so the test reports for it in its agent's place.
    let waits = "w".repeat(NAME_MAX);
    node.apply(&pod(&waits, &[]))?;
    let object = retry::until("it has an object", TIMEOUT, || sandbox_health(node, &waits))?;
    let time = &object["metadata"]["creationTimestamp"];
    let report = json!({"apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth", "metadata": {"name": waits, "namespace": "default"}, "status": {
        "restarts": 1,
        "sandbox": {"id": "b", "startedAt": time},
        "lastRestart": {"time": time, "reason": "Replaced", "message": "it was replaced"},
        "history": [{"sandboxID": "a", "startedAt": time, "reason": "Replaced"}],
    }});
    apply_status(node, "sandbox-agent", &report)?;
    retry::until("there is an Event about it", TIMEOUT, || {
        let messages = events_of(node, &waits, "SandboxRestarted")?;
        ensure!(messages.len() == 1 && messages[0].contains("it was replaced"), "{messages:?}");
        Ok(())
    })?;
    wait_for_health(node, &runs, "True", "SandboxHealthy")?;
    kill_pause(node, &runs)?;
    wait_for_restarts(node, &runs, 1)?;
    delete(node, &runs)?;
    delete(node, &waits)
}

const TERMINATING: &str = "terminating";

fn terminating_namespace_causes_no_errors(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["create", "namespace", TERMINATING])?;
    retry::until("pods can be created in it", TIMEOUT, || {
        node.kubectl(["-n", TERMINATING, "get", "serviceaccount", "default"])
    })?;
    let pods = (1..=3).map(|number| {
        let mut pod = pod(&format!("in-terminating-{number}"), &[]);
        pod["metadata"]["namespace"] = json!(TERMINATING);
        pod
    });
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>()}))?;
    let objects = retry::until("all have a report", TIMEOUT, || {
        let list = node.get(&["-n", TERMINATING, "sandboxhealths"])?;
        let objects = list["items"].as_array().cloned().unwrap_or_default();
        let reported = objects.iter().filter(|object| object["status"]["processes"].is_object()).count();
        ensure!(reported == 3, "{list}");
        Ok(objects)
    })?;
    let before = failed_reconciles(node)?;
    // Something to report in a namespace that accepts no more Events.
    for object in &objects {
        let uid = object["spec"]["podUID"].as_str().context("no UID")?;
        processes::pause_of_pod(uid)?.signal(Signal::SIGKILL)?;
    }
    node.kubectl(["delete", "namespace", TERMINATING, "--wait", "--timeout=120s"])?;
    // A controller that has reported something later has processed the deletion.
    let witness = create(node, &pod("outside-of-terminating", &[]))?;
    wait_for_health(node, &witness, "True", "SandboxHealthy")?;
    let of_us = ["logs", "-l", "app.kubernetes.io/name=sandbox-health", "--tail=-1"];
    let log = in_release(node, &of_us)?;
    let is_bad =
        |line: &&str| line.contains(TERMINATING) && (line.contains("WARN") || line.contains("ERROR"));
    let bad: Vec<_> = log.lines().filter(is_bad).collect();
    ensure!(bad.is_empty(), "{bad:?}");
    let after = failed_reconciles(node)?;
    ensure!(after == before, "{before} failed reconciles before, {after} now");
    delete(node, &witness)
}

/// The number of failed reconciles of all controllers.
fn failed_reconciles(node: &Node) -> Result<u64> {
    let series = "sandboxhealth_reconcile_errors_total ";
    let mut sum = 0;
    for controller in pods_of(node, "controller")? {
        let address = controller["status"]["podIP"].as_str().context("no address")?;
        let metrics = http_get(node, address, "/metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        sum += value.with_context(|| format!("no {series} in\n{metrics}"))?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

fn above_max_objects_only_unhealthy_pods(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let first = create(node, &pod("with-an-object", &[]))?;
    wait_for_health(node, &first, "True", "SandboxHealthy")?;
    with_values(node, "controller.maxObjects=1", || {
        create_all(node, &["one-too-many", "another"].map(|name| pod(name, &[])))?;
        retry::until("a controller logs that the maximum is reached", TIMEOUT, || {
            let log =
                in_release(node, &["logs", "-l", "app.kubernetes.io/component=controller", "--tail=-1"])?;
            ensure!(log.contains("SandboxHealth limit reached"), "{log}");
            Ok(())
        })?;
        wait_for_controller_metric(node, "sandboxhealth_objects_max 1")?;
        // Objects of earlier tests may still be deleted meanwhile.
        retry::until("the metric has the number of objects", TIMEOUT, || {
            let count = sandbox_healths(node)?.len();
            controller_exposes(node, &format!("sandboxhealth_objects {count}"))
        })?;
        processes::pause_of_pod(&uid_of(node, "one-too-many")?)?.signal(Signal::SIGKILL)?;
        wait_for_restarts(node, "one-too-many", 1)?;
        let objects = sandbox_healths(node)?;
        let names: Vec<_> = objects.iter().map(|object| object["spec"]["podName"].clone()).collect();
        ensure!(names.contains(&json!(first)) && !names.contains(&json!("another")), "{names:?}");
        Ok(())
    })?;
    // The maximum is the default again.
    wait_for_health(node, "another", "True", "SandboxHealthy")?;
    for pod in [&first, "one-too-many", "another"] {
        delete(node, pod)?;
    }
    Ok(())
}
