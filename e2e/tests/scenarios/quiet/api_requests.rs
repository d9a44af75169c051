//! Writes of agent and controller in the API server's audit log: not more than docs/reference/api-requests.md documents, and none without a
//! cause. Writes are selected by their times in the log: those of an event end 20 s after it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::audit_log::writes;
use e2e::kube::{
    create, create_healthy, delete, has_sandbox_health, kill_pause, leave_zombies, object_uid, pod,
    sandbox_health, shell, wait_for_health, wait_for_restarts,
};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

/// In the order in which they share the time of the cluster.
pub(super) const SCENARIOS: [Scenario; 4] = [
    ("restart_and_zombies_take_few_writes", restart_and_zombies_take_few_writes),
    ("quiet_five_minutes_have_no_writes", quiet_five_minutes_have_no_writes),
    ("deleted_object_is_recreated_with_its_counts", deleted_object_is_recreated_with_its_counts),
    ("restarted_sandbox_becomes_stable_with_one_write", restarted_sandbox_becomes_stable_with_one_write),
];

/// The writes that follow from an event are done when pause has scanned again (10 s) and the agent has read that (5 s).
const SETTLED: Duration = Duration::from_secs(20);
/// From a restart until the sandbox counts as stable.
const STABLE_AFTER: Duration = Duration::from_secs(600);
const QUIET: Duration = Duration::from_secs(300);

/// A pod that is restarted by the first test and left alone from then on.
const STABLE: &str = "stable-again";

/// The number of writes to the object of a pod, and of Events created for the pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Writes {
    agent: usize,
    controller: usize,
    events: usize,
}

/// Since this time of the audit log.
fn writes_for(node: &Node, pod: &str, since: &str) -> Result<Writes> {
    let mut found = Writes::default();
    for call in writes(node)?.iter().filter(|call| call.at.as_str() >= since) {
        if call.resource == "events" && call.name.starts_with(&format!("{pod}.")) {
            found.events += 1;
        } else if call.name == pod && call.component == "agent" {
            found.agent += 1;
        } else if call.name == pod {
            found.controller += 1;
        }
    }
    Ok(found)
}

/// How often a replica of the controller became leader since then. On a machine that stands still for longer than a Lease, leadership is
/// lost, and the next term emits the Events of the last hour again (409).
fn terms_since(node: &Node, time: &str) -> Result<usize> {
    let (selector, since) = ("app.kubernetes.io/component=controller", format!("--since-time={time}"));
    let log = node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "-l", selector, "--tail=-1", &since])?;
    Ok(log.matches("became leader").count())
}

/// The time of the API server's last write in the audit log: later writes are caused by later actions.
fn now(node: &Node) -> Result<String> {
    // A write of the test: without it the last one could be old.
    node.kubectl([
        "annotate",
        "namespace",
        "default",
        "--overwrite",
        &format!("e2e/now={:?}", Instant::now()),
    ])?;
    let log = node.audit_log()?;
    let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let line = complete.lines().next_back().context("the audit log is empty")?;
    let event: Value = serde_json::from_str(line)?;
    Ok(event["requestReceivedTimestamp"].as_str().context("no time")?.to_owned())
}

fn restart_and_zombies_take_few_writes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [_, onset] = create_healthy(node, [STABLE, "onset"])?;
    thread::sleep(SETTLED);
    let before = now(node)?;
    restart_stable(node)?;
    leave_zombies(node, &onset, 12)?;
    wait_for_health(node, &onset, "False", "ZombiesAccumulating")?;
    thread::sleep(SETTLED);
    let expected = Writes { agent: 1, controller: 1, events: 1 };
    let found = writes_for(node, &onset, &before)?;
    ensure!(found == expected, "for the onset of zombies {found:?}");
    let found = writes_for(node, STABLE, &before)?;
    ensure!(found == expected, "for a restart {found:?}");
    delete(node, &onset)
}

fn restart_stable(node: &Node) -> Result<()> {
    kill_pause(node, STABLE)?;
    wait_for_restarts(node, STABLE, 1).map(drop)
}

/// Nothing is written, except for the pod that was restarted a short time ago, whose writes another test bounds.
fn quiet_five_minutes_have_no_writes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // One that runs, and one that has ended.
    let mut finished = pod("finished", &[]);
    finished["spec"]["restartPolicy"] = json!("Never");
    finished["spec"]["containers"][0]["command"] = json!(["sleep", "3"]);
    node.apply(&finished)?;
    let quiet = create(node, &pod("quiet", &[]))?;
    wait_for_health(node, &quiet, "True", "SandboxHealthy")?;
    let object = wait_for_health(node, "finished", "Unknown", "PodFinished")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    // Numbers that changed are written within five minutes. Zombies that appear and disappear cause a write at once.
    let parent = leave_zombies(node, &quiet, 8)?;
    wait_for_health(node, &quiet, "False", "ZombiesAccumulating")?;
    shell(node, &quiet, &format!("kill {parent}"))?;
    wait_for_health(node, &quiet, "True", "SandboxHealthy")?;
    thread::sleep(SETTLED);
    let before = now(node)?;
    // An audit log without any write would prove nothing.
    let earlier = writes(node)?;
    for component in ["agent", "controller"] {
        let is_there = earlier.iter().any(|call| call.component == component && call.name == quiet);
        ensure!(is_there, "no write by the {component}: {earlier:?}");
    }
    thread::sleep(QUIET);
    let is_of_stable = |name: &str| name == STABLE || name.starts_with(&format!("{STABLE}."));
    let found: Vec<_> = writes(node)?
        .into_iter()
        .filter(|call| call.at.as_str() >= before.as_str() && !is_of_stable(&call.name))
        .collect();
    ensure!(found.is_empty(), "in five quiet minutes: {found:?}");
    delete(node, "finished")?;
    delete(node, &quiet)
}

const DELETED: &str = "object-deleted";

fn deleted_object_is_recreated_with_its_counts(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create_healthy(node, [DELETED])?;
    kill_pause(node, DELETED)?;
    let first = wait_for_restarts(node, DELETED, 1)?;
    thread::sleep(SETTLED);
    let deleted_at = now(node)?;
    let before = object_uid(&sandbox_health(node, DELETED)?)?;
    node.kubectl(["delete", "sandboxhealth", DELETED])?;
    retry::until("there is an object again, with the restart", TIMEOUT, || {
        let object = sandbox_health(node, DELETED)?;
        ensure!(object_uid(&object)? != before, "it is the old one");
        let status = &object["status"];
        ensure!(status["restarts"] == 1 && status["history"].as_array().map(Vec::len) == Some(1), "{status}");
        Ok(())
    })?;
    thread::sleep(SETTLED);
    // The agent reports once; the controller creates the object, and writes its conditions before and after that.
    let found = writes_for(node, DELETED, &deleted_at)?;
    ensure!(found.agent == 1 && found.controller <= 3 && found.events == 0, "{found:?}");
    ensure!(wait_for_restarts(node, DELETED, 1)? == first, "an Event was repeated");
    delete(node, DELETED)
}

/// The last write for a restart comes ten minutes after it.
fn restarted_sandbox_becomes_stable_with_one_write(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    if !has_sandbox_health(node, STABLE)? {
        create_healthy(node, [STABLE])?;
        restart_stable(node)?;
    }
    let object = sandbox_health(node, STABLE)?;
    let time = object["status"]["lastRestart"]["time"].as_str().context("no restart")?;
    let since = time.trim_end_matches('Z');
    retry::until("it is stable again", STABLE_AFTER + TIMEOUT, || {
        let status = sandbox_health(node, STABLE)?["status"].clone();
        let conditions = status["conditions"].as_array().context("no conditions")?;
        let is_true = |type_: &str| {
            let condition = conditions.iter().find(|condition| condition["type"] == type_);
            condition.is_some_and(|condition| condition["status"] == "True")
        };
        ensure!(is_true("Healthy") && is_true("SandboxStable"), "{status}");
        Ok(())
    })?;
    thread::sleep(SETTLED);
    let found = writes_for(node, STABLE, since)?;
    // The agent's second write has numbers that changed after the first: pause was the only process of the new sandbox when the agent found
    // it.
    let terms = terms_since(node, time)?;
    ensure!(
        found.controller == 2 && found.events == 1 + terms && found.agent <= 2,
        "{found:?} and {terms} new terms"
    );
    delete(node, STABLE)
}
