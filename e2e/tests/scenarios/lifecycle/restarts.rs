//! Restarts of sandboxes are counted exactly, whatever else is restarted.

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, sandbox_health};
use serde_json::Value;

use super::Cluster;
use e2e::kube::{create, delete, kernel_is_at_least, kill_pause, never_waits, restart, told_of};

/// Linux 6.15 and later tell how a process ended (PIDFD_INFO_EXIT).
fn kernel_tells() -> Result<bool> {
    kernel_is_at_least((6, 15))
}

pub(super) fn each_kill_of_pause_is_one_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("killed", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    for restarts in 1..=2 {
        kill_pause(node, &pod)?;
        let told = told_of(node, &pod, restarts)?;
        let last = told.last().context("no Event")?;
        ensure!(last.contains(&format!("restart {restarts}")), "{told:?}");
        ensure!(last.contains("SIGKILL") || !kernel_tells()?, "{told:?}");
        let row = node.kubectl(["get", "sandboxhealth", &pod, "--no-headers"])?;
        ensure!(row.split_whitespace().nth(3) == Some(&restarts.to_string()), "{row}");
        let status = &sandbox_health(node, &pod)?["status"];
        ensure!(status["lastRestart"]["reason"] == "PauseExited", "{status}");
        ensure!(status["history"].as_array().map(Vec::len) == Some(restarts), "{status}");
    }
    Ok(())
}

/// Goes on with the pod that was killed twice, or makes it.
fn restarted_pod(node: &Node) -> Result<(String, usize)> {
    let name = "killed".to_owned();
    if sandbox_health(node, &name).is_err() {
        create(node, &pod(&name, &[]))?;
        health_of(node, &name, "True", "AllWell")?;
        kill_pause(node, &name)?;
        told_of(node, &name, 1)?;
    }
    let restarts = sandbox_health(node, &name)?["status"]["restarts"].as_u64().context("no restarts")?;
    Ok((name, usize::try_from(restarts)?))
}

pub(super) fn deleting_a_pod_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (name, restarts) = restarted_pod(node)?;
    let object = sandbox_health(node, &name)?;
    delete(node, &name)?;
    retry::until("the row is gone with its pod", TIMEOUT, || {
        let list = node.get(&["sandboxhealths"])?;
        let uids = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
        ensure!(
            !uids(&list).iter().any(|row| row["metadata"]["uid"] == object["metadata"]["uid"]),
            "it is there"
        );
        Ok(())
    })?;
    let of_old = format!(
        "involvedObject.uid={},reason=SandboxRestarted",
        object["spec"]["podUID"].as_str().unwrap_or_default()
    );
    let told = || node.get(&["events", "--field-selector", &of_old]);
    // The agent and the controller have seen a later pod of the name by the end of this.
    create(node, &pod(&name, &[]))?;
    let fresh = health_of(node, &name, "True", "AllWell")?;
    ensure!(fresh["spec"]["podUID"] != object["spec"]["podUID"], "{fresh}");
    ensure!(fresh["status"]["restarts"] == 0 && fresh["status"]["history"].is_null(), "{fresh}");
    ensure!(events_of(node, &name, "SandboxRestarted")?.is_empty());
    ensure!(told()?["items"].as_array().map(Vec::len) == Some(restarts), "an Event was added: {}", told()?);
    delete(node, &name)
}

/// A pod with a restart and zombies, while a component is restarted: nothing is told twice, and what happens after is
/// told once.
fn survives(node: &Node, name: &str, component: &str) -> Result<()> {
    let name = create(node, &pod(name, &[]))?;
    health_of(node, &name, "True", "AllWell")?;
    kill_pause(node, &name)?;
    told_of(node, &name, 1)?;
    node.kubectl(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"])?;
    let parent = never_waits(node, &name, 8)?;
    health_of(node, &name, "False", "ZombiesAccumulating")?;
    let before = sandbox_health(node, &name)?;

    restart(node, component)?;
    // Whoever is new has seen all there is once it has told of something that came later.
    let witness = create(node, &pod(&format!("{name}-witness"), &[]))?;
    health_of(node, &witness, "True", "AllWell")?;
    let after = sandbox_health(node, &name)?;
    for field in ["restarts", "lastRestart", "history", "sandbox", "conditions"] {
        ensure!(after["status"][field] == before["status"][field], "{field}: {before} became {after}");
    }
    ensure!(events_of(node, &name, "SandboxRestarted")?.len() == 1, "a restart was told of again");
    ensure!(events_of(node, &name, "ZombiesAccumulating")?.len() == 1, "the zombies were told of again");

    e2e::kube::shell(node, &name, &format!("kill {parent}"))?;
    retry::until("the end of the zombies is told", TIMEOUT, || {
        let told = events_of(node, &name, "ZombiesCleared")?;
        ensure!(told.len() == 1, "{told:?}");
        Ok(())
    })?;
    kill_pause(node, &name)?;
    told_of(node, &name, 2)?;
    delete(node, &witness)?;
    delete(node, &name)
}

pub(super) fn restarting_the_agent(cluster: &Cluster) -> Result<()> {
    survives(&cluster.node, "agent-restarted", "agent")
}

pub(super) fn restarting_the_controller(cluster: &Cluster) -> Result<()> {
    survives(&cluster.node, "controller-restarted", "controller")
}
