//! What has a limit: names as long as they may be, a namespace that takes nothing new any more, and no more rows than are
//! allowed.

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, sandbox_health, uid_of};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Cluster, Scenario};
use e2e::kube::processes;
use e2e::kube::{
    controller_shows, create, delete, http_get, in_release, kill_pause, pods_of, told_of, with_values,
};

pub(super) const STORIES: [Scenario; 3] = [
    ("a_pod_s_name_may_be_as_long_as_the_api_takes", names_of_any_length),
    ("a_namespace_that_is_deleted_leaves_no_errors", a_namespace_that_is_deleted),
    ("above_max_objects_only_a_pod_with_something_wrong_gets_a_row", above_max_objects),
];

/// Bytes of the longest name of a pod (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// The kubelet keeps logs in a folder called `<namespace>_<name>_<UID>`, which has 255 bytes at most: a pod of a longer name
/// never runs.
const RUNNING_NAME_MAX: usize = 255 - "default__".len() - 36;

fn names_of_any_length(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let runs = create(node, &pod(&"r".repeat(RUNNING_NAME_MAX), &[]))?;
    // What is told of a pod that cannot run is told to the API server in its agent's place.
    let waits = "w".repeat(NAME_MAX);
    node.apply(&pod(&waits, &[]))?;
    let row = retry::until("it has a row", TIMEOUT, || sandbox_health(node, &waits))?;
    let time = &row["metadata"]["creationTimestamp"];
    let report = json!({"status": {
        "restarts": 1,
        "sandbox": {"id": "b", "startedAt": time},
        "lastRestart": {"time": time, "reason": "Replaced", "message": "it was replaced"},
        "history": [{"sandboxID": "a", "startedAt": time, "reason": "Replaced"}],
    }});
    let (report, manager) = (report.to_string(), "--field-manager=sandbox-agent");
    let patch = ["--subresource=status", manager, "--type=merge", "-p", &report];
    node.kubectl([&["patch", "sandboxhealth", &waits], &patch[..]].concat())?;
    retry::until("there is an Event about it", TIMEOUT, || {
        let told = events_of(node, &waits, "SandboxRestarted")?;
        ensure!(told.len() == 1 && told[0].contains("it was replaced"), "{told:?}");
        Ok(())
    })?;
    health_of(node, &runs, "True", "AllWell")?;
    kill_pause(node, &runs)?;
    told_of(node, &runs, 1)?;
    delete(node, &runs)?;
    delete(node, &waits)
}

const DOOMED: &str = "doomed";

fn a_namespace_that_is_deleted(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["create", "namespace", DOOMED])?;
    retry::until("pods may be made in it", TIMEOUT, || {
        node.kubectl(["-n", DOOMED, "get", "serviceaccount", "default"])
    })?;
    let pods = (1..=3).map(|number| {
        let mut pod = pod(&format!("doomed-{number}"), &[]);
        pod["metadata"]["namespace"] = json!(DOOMED);
        pod
    });
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>()}))?;
    let rows = retry::until("all have a report", TIMEOUT, || {
        let list = node.get(&["-n", DOOMED, "sandboxhealths"])?;
        let rows = list["items"].as_array().cloned().unwrap_or_default();
        let reported = rows.iter().filter(|row| row["status"]["processes"].is_object()).count();
        ensure!(reported == 3, "{list}");
        Ok(rows)
    })?;
    let before = failed_looks(node)?;
    // So that there is something to tell in it when nobody can be told in it any more.
    for row in &rows {
        let uid = row["spec"]["podUID"].as_str().context("no UID")?;
        processes::pause_of_pod(uid)?.signal(Signal::SIGKILL)?;
    }
    node.kubectl(["delete", "namespace", DOOMED, "--wait", "--timeout=120s"])?;
    // Who has told of what came later has seen the end of it.
    let witness = create(node, &pod("doomed-witness", &[]))?;
    health_of(node, &witness, "True", "AllWell")?;
    let of_us = ["logs", "-l", "app.kubernetes.io/name=sandbox-health", "--tail=-1"];
    let log = in_release(node, &of_us)?;
    let is_bad = |line: &&str| line.contains(DOOMED) && (line.contains("WARN") || line.contains("ERROR"));
    let bad: Vec<_> = log.lines().filter(is_bad).collect();
    ensure!(bad.is_empty(), "{bad:?}");
    let after = failed_looks(node)?;
    ensure!(after == before, "of {before} looks at pods that failed there are {after} now");
    delete(node, &witness)
}

/// How often a controller failed to do for a pod what was to be done.
fn failed_looks(node: &Node) -> Result<u64> {
    let series = "sandbox_health_reconciles_total{result=\"error\"} ";
    let mut sum = 0;
    for controller in pods_of(node, "controller")? {
        let address = controller["status"]["podIP"].as_str().context("no address")?;
        let metrics = http_get(node, address, "/metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        sum += value.with_context(|| format!("no {series} in\n{metrics}"))?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// All rows of the cluster.
fn rows(node: &Node) -> Result<Vec<Value>> {
    let list = node.get(&["sandboxhealths", "--all-namespaces"])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn above_max_objects(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let first = create(node, &pod("with-a-row", &[]))?;
    health_of(node, &first, "True", "AllWell")?;
    with_values(node, "controller.maxObjects=1", || {
        for name in ["one-too-many", "another"] {
            create(node, &pod(name, &[]))?;
        }
        retry::until("a controller says that there is no room", TIMEOUT, || {
            let log =
                in_release(node, &["logs", "-l", "app.kubernetes.io/component=controller", "--tail=-1"])?;
            ensure!(log.contains("as many SandboxHealth objects as may be"), "{log}");
            Ok(())
        })?;
        // The controllers are new, and no row has changed since they listed them.
        controller_shows(node, "sandbox_health_objects_max 1")?;
        controller_shows(node, &format!("sandbox_health_objects {}", rows(node)?.len()))?;
        processes::pause_of_pod(&uid_of(node, "one-too-many")?)?.signal(Signal::SIGKILL)?;
        told_of(node, "one-too-many", 1)?;
        let names: Vec<_> = rows(node)?.iter().map(|row| row["spec"]["podName"].clone()).collect();
        ensure!(names.contains(&json!(first)) && !names.contains(&json!("another")), "{names:?}");
        Ok(())
    })?;
    // There is room again.
    health_of(node, "another", "True", "AllWell")?;
    for pod in [&first, "one-too-many", "another"] {
        delete(node, pod)?;
    }
    Ok(())
}
