//! Restarts of sandboxes are counted exactly, whatever else is restarted.

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, create_healthy, delete, delete_and_wait, events, events_of, has_sandbox_health,
    kernel_is_at_least, kill_pause, leave_zombies, object_uid, pod, refused_edit, restart, sandbox_health,
    sandbox_healths, shell, wait_for_health, wait_for_restarts,
};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 4] = [
    ("pause_kill_is_one_restart_each", pause_kill_is_one_restart_each),
    ("pod_deletion_is_no_restart", pod_deletion_is_no_restart),
    ("component_restarts_lose_and_repeat_nothing", component_restarts_lose_and_repeat_nothing),
    ("status_edit_by_user_is_refused", status_edit_by_user_is_refused),
];

/// Linux 6.15 and later report how a process ended (PIDFD_INFO_EXIT).
fn kernel_reports_exits() -> Result<bool> {
    kernel_is_at_least((6, 15))
}

fn pause_kill_is_one_restart_each(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [pod] = create_healthy(node, ["killed"])?;
    for restarts in 1..=2 {
        kill_pause(node, &pod)?;
        let messages = wait_for_restarts(node, &pod, restarts)?;
        let last = messages.last().context("no Event")?;
        ensure!(last.contains(&format!("restart {restarts}")), "{messages:?}");
        ensure!(last.contains("SIGKILL") || !kernel_reports_exits()?, "{messages:?}");
        let line = node.kubectl(["get", "sandboxhealth", &pod, "--no-headers"])?;
        ensure!(line.split_whitespace().nth(3) == Some(&restarts.to_string()), "{line}");
        let status = &sandbox_health(node, &pod)?["status"];
        ensure!(status["lastRestart"]["reason"] == "PauseExited", "{status}");
        ensure!(status["history"].as_array().map(Vec::len) == Some(restarts), "{status}");
    }
    Ok(())
}

/// The pod that was killed twice; it is created if it is not there.
fn restarted_pod(node: &Node) -> Result<(String, usize)> {
    let name = "killed".to_owned();
    if !has_sandbox_health(node, &name)? {
        create_healthy(node, [&name])?;
        kill_pause(node, &name)?;
        wait_for_restarts(node, &name, 1)?;
    }
    let restarts = sandbox_health(node, &name)?["status"]["restarts"].as_u64().context("no restarts")?;
    Ok((name, usize::try_from(restarts)?))
}

fn pod_deletion_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (name, restarts) = restarted_pod(node)?;
    let object = sandbox_health(node, &name)?;
    delete_and_wait(node, &name)?;
    retry::until("the object is deleted with its pod", TIMEOUT, || {
        let uid = object_uid(&object)?;
        ensure!(
            !sandbox_healths(node)?.iter().any(|other| other["metadata"]["uid"] == *uid),
            "it still exists"
        );
        Ok(())
    })?;
    let old_uid = object["spec"]["podUID"].as_str().unwrap_or_default();
    let old_selector = format!("involvedObject.uid={old_uid},reason=SandboxRestarted");
    // The agent and the controller have processed a later pod of the name by the end of this.
    create(node, &pod(&name, &[]))?;
    let new = wait_for_health(node, &name, "True", "SandboxHealthy")?;
    ensure!(new["spec"]["podUID"] != object["spec"]["podUID"], "{new}");
    ensure!(new["status"]["restarts"] == 0 && new["status"]["history"].is_null(), "{new}");
    ensure!(events_of(node, &name, "SandboxRestarted")?.is_empty());
    let events = events(node, &old_selector)?;
    ensure!(events.len() == restarts, "an Event was added: {events:?}");
    delete(node, &name)
}

/// Pods with a restart and zombies while a component is restarted: no Event is repeated, and what happens afterwards has one Event.
fn component_restarts_lose_and_repeat_nothing(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let components = ["agent", "controller"];
    let pods = create_healthy(node, components.map(name_of_pod_of).each_ref().map(String::as_str))?;
    for pod in &pods {
        kill_pause(node, pod)?;
    }
    let mut parents = Vec::new();
    for pod in &pods {
        wait_for_restarts(node, pod, 1)?;
        node.kubectl(["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=120s"])?;
        parents.push(leave_zombies(node, pod, 8)?);
    }
    for pod in &pods {
        wait_for_health(node, pod, "False", "ZombiesAccumulating")?;
    }
    for ((component, pod), parent) in components.iter().zip(&pods).zip(&parents) {
        survives(node, component, pod, parent)
            .with_context(|| format!("after a restart of the {component}"))?;
    }
    Ok(())
}

fn name_of_pod_of(component: &str) -> String {
    format!("{component}-restarted")
}

fn survives(node: &Node, component: &str, pod_name: &str, parent: &str) -> Result<()> {
    let before = sandbox_health(node, pod_name)?;
    restart(node, component)?;
    // The new process has read everything once it has reported something later.
    let witness = create(node, &pod(&format!("{pod_name}-witness"), &[]))?;
    wait_for_health(node, &witness, "True", "SandboxHealthy")?;
    let after = sandbox_health(node, pod_name)?;
    for field in ["restarts", "lastRestart", "history", "sandbox", "conditions"] {
        ensure!(after["status"][field] == before["status"][field], "{field}: {before} became {after}");
    }
    for reason in ["SandboxRestarted", "ZombiesAccumulating"] {
        let messages = events_of(node, pod_name, reason)?;
        ensure!(messages.len() == 1, "{messages:?}");
    }
    shell(node, pod_name, &format!("kill {parent}"))?;
    retry::until("an Event reports that the zombies are gone", TIMEOUT, || {
        let messages = events_of(node, pod_name, "ZombiesReaped")?;
        ensure!(messages.len() == 1, "{messages:?}");
        Ok(())
    })?;
    kill_pause(node, pod_name)?;
    wait_for_restarts(node, pod_name, 2)?;
    delete(node, &witness)?;
    delete(node, pod_name)
}

/// Only agent and controller write status, so that neither has to repair it.
fn status_edit_by_user_is_refused(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [pod] = create_healthy(node, ["edited"])?;
    kill_pause(node, &pod)?;
    wait_for_restarts(node, &pod, 1)?;
    let error = refused_edit(node, &pod)?;
    ensure!(
        error.contains("only the agents and the controller of sandbox-health write the status"),
        "{error}"
    );
    wait_for_restarts(node, &pod, 1)?;
    delete(node, &pod)
}
