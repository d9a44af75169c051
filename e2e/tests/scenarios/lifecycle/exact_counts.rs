//! Restart counts are exact in each special case: two kills in a second, without API server, controller or agent, jobs, and a network
//! that fails. Objects and Events must both have the number. Restarts of agent and controller are in `restarts`, random ones in
//! `randomized_restarts`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    container_restarts, create_healthy, delete, events_of, kill_pause, pod, pod_object, restart_number,
    sandbox_health, uid_of, wait_for_container_restarts, wait_for_health, wait_for_restarts, without_agents,
    without_controllers,
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Cluster, Scenario};
use e2e::kube::processes::{all, pause_of_pod, replace_pause};

pub(super) const SCENARIOS: [Scenario; 6] = [
    ("two_kills_in_a_second_are_two_restarts", two_kills_in_a_second_are_two_restarts),
    ("kill_during_api_outage_is_one_restart", kill_during_api_outage_is_one_restart),
    ("kills_without_controller_are_reported_later", kills_without_controller_are_reported_later),
    ("kills_without_agent_are_marked_as_a_minimum", kills_without_agent_are_marked_as_a_minimum),
    ("completed_job_is_no_restart", completed_job_is_no_restart),
    ("failing_network_setup_is_no_restart", failing_network_setup_is_no_restart),
];

const KILLS_MAX: usize = 20;

/// Creates a healthy pod; its name and UID.
fn healthy(node: &Node, name: &str) -> Result<(String, String)> {
    let [pod] = create_healthy(node, [name])?;
    let uid = uid_of(node, &pod)?;
    Ok((pod, uid))
}

/// A sandbox is killed as soon as the agent waits for its exit. On a busy machine that may be over a second after its start; then its
/// successor is killed, too.
fn two_kills_in_a_second_are_two_restarts(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (pod, uid) = healthy(node, "twice")?;
    let (mut kills, mut killed) = (0, None);
    loop {
        let pause = retry::every(Duration::from_millis(50), "another sandbox is observed", TIMEOUT, || {
            let pause = pause_of_pod(&uid)?;
            ensure!(killed != Some(pause.pid) && pause.is_observed()?, "{pause:?} is not");
            Ok(pause)
        })?;
        let is_second_in_a_second = killed.is_some() && pause.lived()? < Duration::from_secs(1);
        pause.signal(Signal::SIGKILL)?;
        (kills, killed) = (kills + 1, Some(pause.pid));
        if is_second_in_a_second {
            break;
        }
        ensure!(kills < KILLS_MAX, "no sandbox was observed within a second of its start");
    }
    let messages = wait_for_restarts(node, &pod, kills)?;
    // Events of the same second may be listed in either order.
    let mut numbers: Vec<_> = messages.iter().filter_map(|message| restart_number(message)).collect();
    numbers.sort_unstable();
    ensure!(numbers == (1..=kills).collect::<Vec<_>>(), "{messages:?}");
    delete(node, &pod)
}

fn kill_during_api_outage_is_one_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (pod, uid) = healthy(node, "cut-off")?;
    node.stop_component(Component::Apiserver)?;
    // The kubelet recreates a sandbox without the API server.
    let replaced = replace_pause(&uid);
    node.start_component(Component::Apiserver)?;
    retry::until("the API server is back", TIMEOUT, || node.kubectl(["get", "--raw", "/readyz"]))?;
    replaced?;
    wait_for_restarts(node, &pod, 1)?;
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["lastRestart"]["reason"] == "PauseExited", "an agent ran: {status}");
    delete(node, &pod)
}

fn kills_without_controller_are_reported_later(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [once, twice] = create_healthy(node, ["unreported-once", "unreported-twice"])?;
    let object_has = |pod: &str, restarts: u64| {
        retry::until(&format!("the object of {pod} has {restarts} restarts"), TIMEOUT, || {
            let status = &sandbox_health(node, pod)?["status"];
            ensure!(status["restarts"] == restarts, "{status}");
            Ok(())
        })
    };
    without_controllers(node, || {
        kill_pause(node, &once)?;
        kill_pause(node, &twice)?;
        object_has(&once, 1)?;
        object_has(&twice, 1)?;
        wait_for_container_restarts(node, &twice, 1)?;
        kill_pause(node, &twice)?;
        object_has(&twice, 2)?;
        for pod in [&once, &twice] {
            let messages = events_of(node, pod, "SandboxRestarted")?;
            ensure!(messages.is_empty(), "Events without a controller: {messages:?}");
        }
        Ok(())
    })?;
    for (pod, restarts) in [(once, 1), (twice, 2)] {
        wait_for_restarts(node, &pod, restarts)?;
        delete(node, &pod)?;
    }
    Ok(())
}

/// Without an agent the number of sandboxes is not known: one restart is counted, and marked as a minimum.
fn kills_without_agent_are_marked_as_a_minimum(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pods = create_healthy(node, ["unobserved-again", "unobserved-once", "unobserved-twice"])?;
    // A counted restart must not be mistaken for one that was not counted.
    kill_pause(node, &pods[0])?;
    wait_for_restarts(node, &pods[0], 1)?;
    wait_for_container_restarts(node, &pods[0], 1)?;
    let mut uids = Vec::new();
    for pod in &pods {
        uids.push(uid_of(node, pod)?);
    }
    without_agents(node, || {
        let mut before = Vec::new();
        for (pod, uid) in pods.iter().zip(&uids) {
            before.push(container_restarts(&pod_object(node, pod)?).context("the pod has no restart count")?);
            replace_pause(uid)?;
        }
        for (pod, before) in pods.iter().zip(&before) {
            wait_for_container_restarts(node, pod, before + 1)?;
        }
        replace_pause(&uids[2])?;
        wait_for_container_restarts(node, &pods[2], before[2] + 2)
    })?;
    for (pod, restarts) in pods.iter().zip([2, 1, 1]) {
        let message = wait_for_restarts(node, pod, restarts)?.pop().context("no Event")?;
        ensure!(message.contains("while no agent was running") && message.contains("at least"), "{message}");
        let status = &sandbox_health(node, pod)?["status"];
        ensure!(status["lastRestart"]["reason"] == "Replaced", "{status}");
        ensure!(status["restartsAtLeast"] == true, "{status}");
        delete(node, pod)?;
    }
    Ok(())
}

fn completed_job_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut template = pod("done", &[]);
    template["spec"]["restartPolicy"] = json!("Never");
    template["spec"]["containers"][0]["command"] = json!(["sleep", "2"]);
    node.apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "done", "namespace": "default"},
        "spec": {"template": {"spec": template["spec"]}},
    }))?;
    node.kubectl(["wait", "--for=condition=Complete", "job/done", "--timeout=120s"])?;
    let name = "jsonpath={.items[*].metadata.name}";
    let pod = node.kubectl(["get", "pods", "-l", "batch.kubernetes.io/job-name=done", "-o", name])?;
    let uid = uid_of(node, &pod)?;
    retry::until("the kubelet has ended the sandbox", TIMEOUT, || {
        ensure!(!all()?.iter().any(|process| process.is_pause() && process.is_of(&uid)), "its pause runs");
        Ok(())
    })?;
    wait_for_health(node, &pod, "Unknown", "PodFinished")?;
    no_restart_is_reported(node, &pod)?;
    node.kubectl(["delete", "job", "done", "--wait=false"]).map(drop)
}

/// A pod has no restart, even after agent and controller have processed something that came later.
fn no_restart_is_reported(node: &Node, pod: &str) -> Result<()> {
    let (witness, _) = healthy(node, "witness")?;
    kill_pause(node, &witness)?;
    wait_for_restarts(node, &witness, 1)?;
    delete(node, &witness)?;
    let status = &sandbox_health(node, pod)?["status"];
    ensure!(status["restarts"] == 0 && status["history"].is_null(), "{status}");
    let messages = events_of(node, pod, "SandboxRestarted")?;
    ensure!(messages.is_empty(), "{messages:?}");
    Ok(())
}

/// Failures of the network plugin before the sandbox starts.
const FAILURES: u32 = 20;

fn failing_network_setup_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.break_network(FAILURES)?;
    let outcome = behind_a_failing_network(node);
    node.restore_network()?;
    let pod = outcome?;
    no_restart_is_reported(node, &pod)?;
    delete(node, &pod)
}

fn behind_a_failing_network(node: &Node) -> Result<String> {
    node.apply(&pod("unconnected", &[]))?;
    let mut touched = 0;
    // The kubelet retries every 10 s or so, and at once when the pod has changed.
    retry::until("the network has failed often enough", TIMEOUT * 2, || {
        touched += 1;
        let touch = format!("touched={touched}");
        node.kubectl(["annotate", "pod", "unconnected", "--overwrite", &touch])?;
        let calls = node.network_additions()?;
        ensure!(calls > FAILURES as usize, "it was called {calls} times");
        Ok(())
    })?;
    node.kubectl(["wait", "--for=condition=Ready", "pod/unconnected", "--timeout=120s"])?;
    let object = wait_for_health(node, "unconnected", "True", "SandboxHealthy")?;
    let name = object["spec"]["podName"].as_str().context("no name")?;
    Ok(name.to_owned())
}
