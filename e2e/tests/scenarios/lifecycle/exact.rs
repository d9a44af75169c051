//! Restarts are exact: what happens to a sandbox is done in every awkward moment there is, the number that must come of it is
//! stated, and row and Events must both have it. Restarts of agent and controller are in `restarts`, chance is in `chaos`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, sandbox_health, uid_of};
use nix::sys::signal::Signal;
use serde_json::json;

use super::Cluster;
use e2e::kube::processes::{all, replace_pause};
use e2e::kube::{
    container_restarts, containers_restarted, create, delete, kill_pause, number_of, told_of, without_agents,
    without_controllers,
};

/// What a sandbox must live to be counted: while one is missing the agent looks for it every 200 ms.
const SEEN: Duration = Duration::from_millis(300);

/// A healthy pod with its UID.
fn healthy(node: &Node, name: &str) -> Result<(String, String)> {
    let pod = create(node, &pod(name, &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    let uid = uid_of(node, &pod)?;
    Ok((pod, uid))
}

pub(super) fn two_kills_in_a_second(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (pod, uid) = healthy(node, "twice")?;
    let mut kills = 0;
    loop {
        let next = replace_pause(&uid)?;
        kills += 1;
        retry::until("it has been seen", TIMEOUT, || {
            ensure!(next.lived()? >= SEEN, "it is too young");
            Ok(())
        })?;
        if next.lived()? < Duration::from_secs(1) {
            next.signal(Signal::SIGKILL)?;
            kills += 1;
            break;
        }
        // On a machine that does much else we come late; then another is killed.
        ensure!(kills < 10, "no pause could be killed within a second of its start");
    }
    let told = told_of(node, &pod, kills)?;
    // Two of a second may be listed in either order.
    let mut numbers: Vec<_> = told.iter().filter_map(|note| number_of(note)).collect();
    numbers.sort_unstable();
    ensure!(numbers == (1..=kills).collect::<Vec<_>>(), "{told:?}");
    delete(node, &pod)
}

pub(super) fn a_kill_while_the_api_server_is_away(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (pod, uid) = healthy(node, "cut-off")?;
    node.stop_component(Component::Apiserver)?;
    // The kubelet needs nobody to start a sandbox anew.
    let replaced = replace_pause(&uid);
    node.start_component(Component::Apiserver)?;
    retry::until("the API server is back", TIMEOUT, || node.kubectl(["get", "--raw", "/readyz"]))?;
    replaced?;
    told_of(node, &pod, 1)?;
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["lastRestart"]["reason"] == "PauseExited", "the agent was there: {status}");
    delete(node, &pod)
}

pub(super) fn kills_while_no_controller_runs(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (once, _) = healthy(node, "unheard-once")?;
    let (twice, _) = healthy(node, "unheard-twice")?;
    let row_says = |pod: &str, restarts: u64| {
        retry::until(&format!("the row of {pod} says {restarts}"), TIMEOUT, || {
            let status = &sandbox_health(node, pod)?["status"];
            ensure!(status["restarts"] == restarts, "{status}");
            Ok(())
        })
    };
    without_controllers(node, || {
        kill_pause(node, &once)?;
        kill_pause(node, &twice)?;
        row_says(&once, 1)?;
        row_says(&twice, 1)?;
        containers_restarted(node, &twice, 1)?;
        kill_pause(node, &twice)?;
        row_says(&twice, 2)?;
        for pod in [&once, &twice] {
            let told = events_of(node, pod, "SandboxRestarted")?;
            ensure!(told.is_empty(), "who told of it? {told:?}");
        }
        Ok(())
    })?;
    for (pod, restarts) in [(once, 1), (twice, 2)] {
        told_of(node, &pod, restarts)?;
        announced(node, &pod, restarts)?;
        delete(node, &pod)?;
    }
    Ok(())
}

/// Waits until the row says that so many restarts were told of.
fn announced(node: &Node, pod: &str, restarts: usize) -> Result<()> {
    retry::until("the row says that all is told", TIMEOUT, || {
        let status = &sandbox_health(node, pod)?["status"];
        ensure!(status["announcedRestarts"] == restarts, "{status}");
        Ok(())
    })
}

/// Of what no agent saw the number of sandboxes is not known: one restart is counted, and marked where the restart counts of
/// the containers say that there may have been more. They may say so of a single one, too: it happens that the kubelet tries to
/// start a container in the sandbox that is going, and counts that.
pub(super) fn kills_while_no_agent_runs(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // What was seen and counted must not be mistaken for what was not.
    let (again, _) = healthy(node, "unseen-again")?;
    kill_pause(node, &again)?;
    told_of(node, &again, 1)?;
    containers_restarted(node, &again, 1)?;
    let (once, _) = healthy(node, "unseen-once")?;
    let (twice, twice_uid) = healthy(node, "unseen-twice")?;
    let pods = [again, once, twice];
    let mut uids = Vec::new();
    for pod in &pods {
        uids.push(uid_of(node, pod)?);
    }
    let before = without_agents(node, || {
        let mut before = Vec::new();
        for (pod, uid) in pods.iter().zip(&uids) {
            let said = sandbox_health(node, pod)?["status"]["containerRestarts"].as_u64();
            before.push(said.context("the row does not say how often containers were started anew")?);
            replace_pause(uid)?;
        }
        for (pod, before) in pods.iter().zip(&before) {
            containers_restarted(node, pod, before + 1)?;
        }
        replace_pause(&twice_uid)?;
        containers_restarted(node, &pods[2], before[2] + 2)?;
        Ok(before)
    })?;
    let mut told = Vec::new();
    for (pod, restarts) in pods.iter().zip([2, 1, 1]) {
        told.extend(told_of(node, pod, restarts)?.pop());
        let status = &sandbox_health(node, pod)?["status"];
        ensure!(status["lastRestart"]["reason"] == "Replaced", "{status}");
    }
    ensure!(told.iter().all(|note| note.contains("while no agent watched")), "{told:?}");
    marked(node, &pods[2], true)?;
    // Who is marked has been marked by now.
    for (pod, before) in pods.iter().zip(before) {
        let restarted = container_restarts(&node.get(&["pod", pod])?).context("no restart count")? - before;
        marked(node, pod, restarted > 1)?;
    }
    ensure!(told[2].contains("at least"), "the Event does not say that it may be more: {told:?}");
    for pod in &pods {
        delete(node, pod)?;
    }
    Ok(())
}

/// Waits until a row is marked, or sees that it is not.
fn marked(node: &Node, pod: &str, expected: bool) -> Result<()> {
    let patience = if expected { TIMEOUT } else { Duration::ZERO };
    retry::until("the row says whether it may be more", patience, || {
        let status = &sandbox_health(node, pod)?["status"];
        let message = status["lastRestart"]["message"].as_str().unwrap_or_default();
        let marks = (status["restartsAtLeast"] == true, message.contains("at least"));
        ensure!(marks == (expected, expected), "{pod}: {status}");
        Ok(())
    })
}

pub(super) fn the_end_of_a_job_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut template = pod("done", &[]);
    template["spec"]["restartPolicy"] = json!("Never");
    template["spec"]["containers"][0]["command"] = json!(["sleep", "5"]);
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
    health_of(node, &pod, "Unknown", "PodFinished")?;
    nothing_came_of_it(node, &pod)?;
    node.kubectl(["delete", "job", "done", "--wait"]).map(drop)
}

/// No restart is told of a pod, also when all that came before has been looked at.
fn nothing_came_of_it(node: &Node, pod: &str) -> Result<()> {
    let (witness, _) = healthy(node, "witness")?;
    kill_pause(node, &witness)?;
    told_of(node, &witness, 1)?;
    delete(node, &witness)?;
    let status = &sandbox_health(node, pod)?["status"];
    ensure!(status["restarts"] == 0 && status["history"].is_null(), "{status}");
    let told = events_of(node, pod, "SandboxRestarted")?;
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

/// How often the network fails before the sandbox lives.
const FAILURES: u32 = 20;

pub(super) fn a_network_that_fails_at_first_is_no_restart(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.break_network(FAILURES)?;
    let outcome = behind_a_failing_network(node);
    node.mend_network()?;
    let pod = outcome?;
    nothing_came_of_it(node, &pod)?;
    delete(node, &pod)
}

fn behind_a_failing_network(node: &Node) -> Result<String> {
    node.apply(&pod("unconnected", &[]))?;
    let mut touched = 0;
    // By itself the kubelet tries again every 10 s or so, and at once when the pod has changed.
    retry::until("the network has failed often enough", TIMEOUT * 2, || {
        touched += 1;
        let touch = format!("touched={touched}");
        node.kubectl(["annotate", "pod", "unconnected", "--overwrite", &touch])?;
        let asked = node.network_additions()?;
        ensure!(asked > FAILURES as usize, "it was asked {asked} times");
        Ok(())
    })?;
    node.kubectl(["wait", "--for=condition=Ready", "pod/unconnected", "--timeout=120s"])?;
    let object = health_of(node, "unconnected", "True", "AllWell")?;
    let name = object["spec"]["podName"].as_str().context("no name")?;
    Ok(name.to_owned())
}
