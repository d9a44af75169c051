//! Any pause image and any pod: zombies are counted in /proc where pause shows no status, and the processes that don't wait for
//! their children are named, whatever they call themselves.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, process_in_cgroup_of, sandbox_health, shell, zombies_of};
use e2e::names::{BUSYBOX, RELEASE_NAMESPACE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::hostile::{hostile, posing_alone};
use super::{Cluster, Scenario};
use e2e::kube::{
    agent_metrics, create, delete, kill_pause, never_waits, told_of, unwatched_row_goes, with_sandbox_image,
    with_values,
};

pub(super) const STORIES: [Scenario; 5] = [
    ("behind_a_foreign_pause_zombies_and_restarts_are_counted", behind_a_foreign_pause),
    ("of_pods_that_share_no_pids_those_with_zombies_get_rows", of_pods_that_share_no_pids),
    ("parents_of_zombies_are_named_whatever_they_call_themselves", parents_of_zombies_are_named),
    ("parents_that_come_and_go_leave_nothing_wrong", parents_that_come_and_go),
    ("zombies_outside_of_pods_are_the_node_s", zombies_outside_of_pods),
];

fn behind_a_foreign_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_sandbox_image(node, Image::OtherPause, || {
        let mut manifest = pod("foreign", &[]);
        // Of another user than the agent's.
        manifest["spec"]["securityContext"] = json!({"runAsUser": 1000});
        let pod = create(node, &manifest)?;
        let object = health_of(node, &pod, "True", "AllWell")?;
        let status = &object["status"];
        ensure!(status["source"] == "ProcScan" && status["processes"]["zombies"] == 0, "{status}");
        ensure!(status["processes"]["reapedTotal"].is_null(), "nobody counts what it reaps: {status}");
        ensure!(status["sandbox"]["pauseVersion"].is_null(), "{status}");
        let parent = never_waits(node, &pod, 7)?;
        health_of(node, &pod, "False", "ZombiesAccumulating")?;
        ensure!(zombies_of(node, &pod)? == 7, "the row says {}", zombies_of(node, &pod)?);
        shell(node, &pod, &format!("kill {parent}"))?;
        health_of(node, &pod, "True", "AllWell")?;
        for restarts in 1..=2 {
            kill_pause(node, &pod)?;
            told_of(node, &pod, restarts)?;
        }
        let status = sandbox_health(node, &pod)?["status"].take();
        ensure!(status["lastRestart"]["reason"] == "PauseExited", "{status}");
        delete(node, &pod)
    })
}

fn of_pods_that_share_no_pids(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // Both are there before anybody watches all pods, and after.
    node.apply(&solitary("solitary"))?;
    with_values(node, "watch.pods=All", || {
        of_a_solitary_pod(node, "solitary")?;
        node.apply(&solitary("solitary-later"))?;
        of_a_solitary_pod(node, "solitary-later")?;
        posing_alone(node, "hostile-lies-to-all", &[])?;
        // Where the sandbox has no process named pause, a container that is named so is still none.
        with_sandbox_image(node, Image::HostilePause, || {
            posing_alone(node, "hostile-nameless-alone", &["crowd", "0"])
        })?;
        node.apply(&solitary("solitary-left"))?;
        careless_from_now_on(node, "solitary-left")
    })?;
    // Nobody watches it any more, and no row may go on saying what was.
    unwatched_row_goes(node, "solitary-left")?;
    delete(node, "solitary-left")
}

/// A pod whose container `careless` is its own PID 1, and leaves zombies once it is told to.
fn solitary(name: &str) -> Value {
    let script = "while [ ! -e /tmp/go ]; do sleep 1; done; for i in 1 2 3 4 5 6 7; do true & done; exec sleep 1000001";
    let careless = json!({"name": "careless", "image": BUSYBOX, "command": ["sh", "-c", script]});
    let mut pod = pod(name, &[careless]);
    pod["spec"]["shareProcessNamespace"] = json!(false);
    pod
}

fn of_a_solitary_pod(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=120s"])?;
    // Time enough to be looked at more than once.
    thread::sleep(Duration::from_secs(12));
    ensure!(sandbox_health(node, pod).is_err(), "there is a row of {pod}, with which nothing is wrong");
    careless_from_now_on(node, pod)?;
    let object = sandbox_with_parents(node, pod)?;
    let status = &object["status"];
    ensure!(status["source"] == "ProcScan" && status["processes"]["zombies"] == 7, "{status}");
    let parents = status["zombieParents"].as_array().cloned().unwrap_or_default();
    let [parent] = &parents[..] else { anyhow::bail!("it has not one parent: {status}") };
    let expected = json!({"pid": 1, "command": "sleep", "container": "careless", "zombies": 7});
    ensure!(without_age(parent) == expected, "{parent}");
    retry::until("an Event tells of it", TIMEOUT, || {
        let told = events_of(node, pod, "ZombiesAccumulating")?;
        ensure!(told.len() == 1 && told[0].contains("careless"), "{told:?}");
        Ok(())
    })?;
    // No signal from inside ends PID 1; from the node it does, and its namespace goes with it.
    let uid = object["spec"]["podUID"].as_str().context("no UID")?;
    let first = process_in_cgroup_of(uid, "cmdline", "sleep\x001000001\0")?;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL)?;
    let object = health_of(node, pod, "True", "AllWell")?;
    ensure!(object["status"]["processes"]["zombies"] == 0 && object["status"]["restarts"] == 0, "{object}");
    ensure!(object["status"]["zombieParents"].is_null(), "{object}");
    delete(node, pod)
}

fn careless_from_now_on(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=120s"])?;
    node.kubectl(["exec", pod, "-c", "careless", "--", "touch", "/tmp/go"])?;
    health_of(node, pod, "False", "ZombiesAccumulating").map(drop)
}

/// The row once it says who leaves the zombies.
fn sandbox_with_parents(node: &Node, pod: &str) -> Result<Value> {
    retry::until("the row names parents", TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        ensure!(object["status"]["zombieParents"].is_array(), "{object}");
        Ok(object)
    })
}

/// What is said of a parent, but for how old its zombies are.
fn without_age(parent: &Value) -> Value {
    let mut parent = parent.clone();
    parent.as_object_mut().map(|fields| fields.remove("oldestSeconds"));
    parent
}

/// Names as programs can give them to themselves, 15 bytes at most: a new line, quotes, what formats and terminals take for
/// theirs, a mark that turns the text around; and bytes that are no text.
const NAME_OF_ONE: &str = "a%0a\"'%25s{}%e2%80%ae%1b[7m";
const NAME_OF_TWO: &str = "%ff%fe%ed%a0%80%c3%ff%80%80%80%80%80%80%80%80";

fn parents_of_zombies_are_named(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let one = hostile("one", &["parent", "9", NAME_OF_ONE]);
    let two = hostile("two", &["parent", "6", NAME_OF_TWO]);
    let mut manifest = pod("guilty", &[one, two]);
    manifest["spec"]["restartPolicy"] = json!("Never");
    let pod = create(node, &manifest)?;
    health_of(node, &pod, "True", "AllWell")?;
    let pid_of = |container: &str| -> Result<i64> {
        Ok(node.kubectl(["logs", &pod, "-c", container])?.trim().parse()?)
    };
    let (one, two) = (pid_of("one")?, pid_of("two")?);
    shell(node, &pod, &format!("kill -USR1 {one} {two}"))?;
    health_of(node, &pod, "False", "ZombiesAccumulating")?;
    let object = sandbox_with_parents(node, &pod)?;
    ensure!(object["status"]["processes"]["zombies"] == 15, "{object}");
    let parents = object["status"]["zombieParents"].as_array().cloned().unwrap_or_default();
    let facts: Vec<_> =
        parents.iter().map(|parent| json!([parent["pid"], parent["container"], parent["zombies"]])).collect();
    ensure!(facts == [json!([one, "one", 9]), json!([two, "two", 6])], "{object}");
    for parent in &parents {
        let command = parent["command"].as_str().unwrap_or_default();
        ensure!(!command.is_empty() && is_plain(command), "{parent}");
        ensure!(command.chars().count() <= 15, "{parent}");
        let age = parent["oldestSeconds"].as_i64().context("no age")?;
        ensure!((0..=90).contains(&age), "{parent}");
    }
    // What can be printed is.
    let command = parents[0]["command"].as_str().unwrap_or_default();
    ensure!(command.starts_with('a') && command.contains("\"'%s{}") && command.ends_with("[7m"), "{command}");

    let told = retry::until("an Event tells of it", TIMEOUT, || {
        let told = events_of(node, &pod, "ZombiesAccumulating")?;
        ensure!(told.len() == 1, "{told:?}");
        Ok(told)
    })?;
    let note = &told[0];
    ensure!(note.starts_with("15 zombies") && is_plain(note), "{note:?}");
    for (pid, container, zombies) in [(one, "one", "9"), (two, "two", "6")] {
        ensure!([&pid.to_string(), container, zombies].iter().all(|part| note.contains(*part)), "{note:?}");
    }
    // In a sentence, marks that quote or bracket are not printed either.
    ensure!(note.contains(&format!("PID {one} (a???%s????[7m) in container ")), "{note:?}");
    // And so does what developers read.
    let described = node.kubectl(["describe", "pod", &pod])?;
    ensure!(!described.contains('\u{1b}'), "{described:?}");

    shell(node, &pod, &format!("kill {one} {two}"))?;
    let object = health_of(node, &pod, "True", "AllWell")?;
    ensure!(object["status"]["zombieParents"].is_null(), "{object}");
    delete(node, &pod)
}

/// Nothing in it moves the cursor, ends the line or turns the text around.
fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| character.is_control() || character == '\u{202e}')
}

/// Parents that live for about as long as it takes to look at them twice: some are gone when they are to be named.
fn parents_that_come_and_go(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("fleeting", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    shell(
        node,
        &pod,
        "(for round in $(seq 12); do sh -c 'for i in 1 2 3 4 5 6 7; do true & done; exec sleep 3'; done) >/dev/null 2>&1 &",
    )?;
    let begun = Instant::now();
    let mut accumulated = false;
    while begun.elapsed() < Duration::from_secs(36) {
        let status = sandbox_health(node, &pod)?["status"].take();
        let zombies = status["processes"]["zombies"].as_i64().unwrap_or_default();
        accumulated |= zombies == 7;
        ensure!((0..=7).contains(&zombies), "{status}");
        for parent in status["zombieParents"].as_array().into_iter().flatten() {
            ensure!(parent["container"] == "shell", "{parent}");
            ensure!(["sh", "sleep"].iter().any(|name| parent["command"] == *name), "{parent}");
        }
        thread::sleep(Duration::from_millis(300));
    }
    ensure!(accumulated, "nobody saw a zombie");
    let object = health_of(node, &pod, "True", "AllWell")?;
    ensure!(object["status"]["zombieParents"].is_null() && object["status"]["restarts"] == 0, "{object}");
    let selector = "app.kubernetes.io/component=agent";
    let agents = node.get(&["-n", RELEASE_NAMESPACE, "pods", "-l", selector])?;
    let restarted = &agents["items"][0]["status"]["containerStatuses"][0]["restartCount"];
    ensure!(*restarted == 0, "the agent was restarted {restarted} times");
    delete(node, &pod)
}

fn zombies_outside_of_pods(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let are = |expected: std::ops::RangeInclusive<u32>| {
        retry::until(&format!("the node has {expected:?} zombies"), TIMEOUT, || {
            let metrics = agent_metrics(node)?;
            let name = "sandbox_node_zombie_processes ";
            let shown = metrics.lines().find_map(|line| line.strip_prefix(name));
            let shown: u32 = shown.with_context(|| format!("no {name}in\n{metrics}"))?.parse()?;
            ensure!(expected.contains(&shown), "it shows {shown}");
            Ok(())
        })
    };
    are(0..=0)?;
    // In the node's PID namespace, and in the cgroup of no pod; long enough for the agent's look once a minute.
    let script = "for i in 1 2 3 4 5 6 7; do true & done; exec sleep 80";
    let mut parent = node.command("sh").args(["-c", script]).spawn()?;
    let told = are(7..=7);
    parent.wait()?;
    told?;
    are(0..=0)
}
