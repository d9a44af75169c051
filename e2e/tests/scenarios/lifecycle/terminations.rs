//! A sandbox that the kubelet does not replace, because the pod is never restarted: its end is reported once, with the cause. A Job that
//! completes has none to report (`exact_counts`).

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, delete, events_of, kernel_is_at_least, kill_pause, pod, restart, sandbox_health, wait_for_health,
};
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] = [(
    "killed_sandbox_of_never_restarted_pod_is_reported_once",
    killed_sandbox_of_never_restarted_pod_is_reported_once,
)];

fn killed_sandbox_of_never_restarted_pod_is_reported_once(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut manifest = pod("never-restarted", &[]);
    manifest["spec"]["restartPolicy"] = json!("Never");
    let pod = create(node, &manifest)?;
    let sandbox = wait_for_health(node, &pod, "True", "SandboxHealthy")?["status"]["sandbox"]["id"].take();
    kill_pause(node, &pod)?;
    let status = retry::until("the termination is in the object", TIMEOUT, || terminated(node, &pod))?;
    ensure!(status["termination"]["sandboxID"] == sandbox, "{status}");
    let cause = status["termination"]["message"].as_str().context("no message")?;
    ensure!(!kernel_is_at_least((6, 15))? || cause.contains("SIGKILL"), "{cause}");
    ensure!(status["restarts"] == 0 && status["lastRestart"].is_null(), "{status}");
    retry::until("there is an Event", TIMEOUT, || reported_once(node, &pod))?;
    // What both have written holds after they were restarted.
    restart(node, "agent")?;
    restart(node, "controller")?;
    wait_for_health(node, &pod, "False", "SandboxTerminated")?;
    ensure!(terminated(node, &pod)?["termination"] == status["termination"], "it changed");
    reported_once(node, &pod)?;
    ensure!(events_of(node, &pod, "SandboxRestarted")?.is_empty(), "a restart is reported");
    delete(node, &pod)
}

fn terminated(node: &Node, pod: &str) -> Result<Value> {
    let status = sandbox_health(node, pod)?["status"].take();
    ensure!(status["termination"].is_object(), "{status}");
    Ok(status)
}

fn reported_once(node: &Node, pod: &str) -> Result<()> {
    let messages = events_of(node, pod, "SandboxTerminated")?;
    ensure!(messages.len() == 1, "{messages:?}");
    Ok(())
}
