//! Any pause image and any pod: without a status of pause zombies are counted in /proc, and the parents that do not reap their children are
//! named.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    agent_metrics, create, create_all, delete, events_of, has_sandbox_health, kill_pause, leave_zombies,
    on_node, pid_in_cgroup, pod, sandbox_health, shell, wait_for_health, wait_for_restarts, wait_for_zombies,
    wait_until_object_deleted, with_sandbox_image, with_values, zombies_of,
};
use e2e::names::{BUSYBOX, RELEASE_NAMESPACE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::hostile_pods::{hostile, unshared_poser_is_not_trusted};
use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 8] = [
    ("zombies_are_left_outside_of_pods", zombies_are_left_outside_of_pods),
    ("third_party_pause_image_is_supported", third_party_pause_image_is_supported),
    ("unshared_pods_with_zombies_get_objects", unshared_pods_with_zombies_get_objects),
    ("zombies_outside_of_pods_are_counted_per_node", zombies_outside_of_pods_are_counted_per_node),
    ("zombies_of_exec_probes_are_counted_per_node", zombies_of_exec_probes_are_counted_per_node),
    ("pod_that_opts_out_has_no_object", pod_that_opts_out_has_no_object),
    ("zombie_parents_with_any_name_are_reported", zombie_parents_with_any_name_are_reported),
    ("short_lived_zombie_parents_are_not_misattributed", short_lived_zombie_parents),
];

/// Numbers that changed without a change of meaning are written this often.
const REFRESH: Duration = Duration::from_secs(300);

fn third_party_pause_image_is_supported(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_sandbox_image(node, Image::OtherPause, || {
        let mut manifest = pod("third-party", &[]);
        // Of another user than the agent's.
        manifest["spec"]["securityContext"] = json!({"runAsUser": 1000});
        let pod = create(node, &manifest)?;
        let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
        let status = &object["status"];
        ensure!(status["source"] == "ProcScan" && status["processes"]["zombies"] == 0, "{status}");
        ensure!(
            status["processes"]["reapedTotal"].is_null(),
            "a count of reaped processes without a status: {status}"
        );
        ensure!(status["sandbox"]["pauseVersion"].is_null(), "{status}");
        let parent = leave_zombies(node, &pod, 7)?;
        wait_for_health(node, &pod, "False", "ZombiesAccumulating")?;
        ensure!(zombies_of(node, &pod)? == 7, "the object has {}", zombies_of(node, &pod)?);
        shell(node, &pod, &format!("kill {parent}"))?;
        wait_for_health(node, &pod, "True", "SandboxHealthy")?;
        for restarts in 1..=2 {
            kill_pause(node, &pod)?;
            wait_for_restarts(node, &pod, restarts)?;
        }
        let status = sandbox_health(node, &pod)?["status"].take();
        ensure!(status["lastRestart"]["reason"] == "PauseExited", "{status}");
        delete(node, &pod)
    })
}

fn unshared_pods_with_zombies_get_objects(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // One exists before all pods are watched, the others are created afterwards.
    node.apply(&unshared("unshared-before"))?;
    with_values(node, "watch.pods=All", || {
        let pods = ["unshared-before", "unshared-after", "unshared-at-the-end"];
        create_all(node, &[unshared(pods[1]), unshared(pods[2])])?;
        node.kubectl(["wait", "--for=condition=Ready", "pod/unshared-before", "--timeout=120s"])?;
        // Meanwhile the agent reads the others several times.
        unshared_poser_is_not_trusted(node, "hostile-lies-to-all", &[])?;
        for pod in pods {
            ensure!(!has_sandbox_health(node, pod)?, "the healthy pod {pod} has an object");
        }
        for pod in &pods[..2] {
            leaves_zombies_from_now_on(node, pod)?;
        }
        for pod in &pods[..2] {
            unshared_pod_is_reported(node, pod)?;
        }
        // A container whose process is named pause is not trusted either where that of the sandbox has another name.
        with_sandbox_image(node, Image::HostilePause, || {
            unshared_poser_is_not_trusted(node, "hostile-nameless-unshared", &["crowd", "0"])
        })?;
        leaves_zombies_from_now_on(node, pods[2])?;
        wait_for_health(node, pods[2], "False", "ZombiesAccumulating").map(drop)
    })?;
    // It is not watched any more, so its object would never be updated.
    wait_until_object_deleted(node, "unshared-at-the-end")?;
    delete(node, "unshared-at-the-end")
}

/// A pod whose container `unreaping` is its own PID 1, and leaves zombies once a file exists.
fn unshared(name: &str) -> Value {
    let script = "while [ ! -e /tmp/go ]; do sleep 1; done; for i in 1 2 3 4 5 6 7; do true & done; exec sleep 1000001";
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1000});
    let unreaping = json!({"name": "unreaping", "image": BUSYBOX, "command": ["sh", "-c", script], "livenessProbe": probe});
    let mut pod = pod(name, &[unreaping]);
    pod["spec"]["shareProcessNamespace"] = json!(false);
    pod
}

fn unshared_pod_is_reported(node: &Node, pod: &str) -> Result<()> {
    wait_for_zombies(node, pod, 7)?;
    let object = object_with_parents(node, pod, 7)?;
    let status = &object["status"];
    ensure!(status["source"] == "ProcScan", "{status}");
    let parents = status["zombieParents"].as_array().cloned().unwrap_or_default();
    let [parent] = &parents[..] else { anyhow::bail!("it has not one parent: {status}") };
    let expected = json!({"pid": 1, "command": "sleep", "container": "unreaping", "zombies": 7});
    ensure!(without_age(parent) == expected, "{parent}");
    retry::until("there is an Event", TIMEOUT, || {
        let messages = events_of(node, pod, "ZombiesAccumulating")?;
        let fix = "set shareProcessNamespace: true";
        let all = [fix, "The exec probes of \"unreaping\" may leave them."];
        ensure!(messages.len() == 1 && all.iter().all(|part| messages[0].contains(part)), "{messages:?}");
        Ok(())
    })?;
    // No signal from inside ends PID 1. From the node SIGKILL does, and its PID namespace ends with it.
    let uid = object["spec"]["podUID"].as_str().context("no UID")?;
    let first = pid_in_cgroup(uid, "cmdline", "sleep\x001000001\0")?;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL)?;
    let object = wait_for_health(node, pod, "True", "SandboxHealthy")?;
    ensure!(object["status"]["restarts"] == 0 && object["status"]["zombieParents"].is_null(), "{object}");
    // The killed process is a zombie itself until its shim has reaped it. If the agent has seen that, it writes the next number with its
    // next refresh.
    retry::until("no zombie is left", REFRESH + TIMEOUT, || {
        ensure!(zombies_of(node, pod)? == 0, "{} are", zombies_of(node, pod)?);
        Ok(())
    })?;
    delete(node, pod)
}

fn leaves_zombies_from_now_on(node: &Node, pod: &str) -> Result<()> {
    node.kubectl(["exec", pod, "-c", "unreaping", "--", "touch", "/tmp/go"]).map(drop)
}

/// The object of a pod that names parents of all its zombies.
fn object_with_parents(node: &Node, pod: &str, zombies: i64) -> Result<Value> {
    retry::until(&format!("the object names the parents of {zombies} zombies"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        let parents = object["status"]["zombieParents"].as_array().cloned().unwrap_or_default();
        let children: i64 = parents.iter().filter_map(|parent| parent["zombies"].as_i64()).sum();
        ensure!(children == zombies, "{object}");
        Ok(object)
    })
}

/// A reported parent without the age of its zombies.
fn without_age(parent: &Value) -> Value {
    let mut parent = parent.clone();
    parent.as_object_mut().map(|fields| fields.remove("oldestSeconds"));
    parent
}

/// Names that processes can choose, 15 bytes at most: a line break, quotes, format strings, terminal escapes, a right-to-left override;
/// and bytes that are not UTF-8.
const NAME_OF_ONE: &str = "a%0a\"'%25s{}%e2%80%ae%1b[7m";
const PRINTABLE_ONE: &str = "a??'%s{}??[7m";
const NAME_OF_TWO: &str = "%ff%fe%ed%a0%80%c3%ff%80%80%80%80%80%80%80%80";

fn zombie_parents_with_any_name_are_reported(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let one = hostile("one", &["parent", "9", NAME_OF_ONE]);
    let two = hostile("two", &["parent", "6", NAME_OF_TWO]);
    let mut manifest = pod("two-parents", &[one, two]);
    manifest["spec"]["restartPolicy"] = json!("Never");
    let pod = create(node, &manifest)?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let pid_of = |container: &str| -> Result<i64> {
        retry::until(&format!("{container} logs its PID"), TIMEOUT, || {
            let log = node.kubectl(["logs", &pod, "-c", container])?;
            log.trim().parse().with_context(|| format!("it logs {log:?}"))
        })
    };
    let (one, two) = (pid_of("one")?, pid_of("two")?);
    shell(node, &pod, &format!("kill -USR1 {one} {two}"))?;
    wait_for_zombies(node, &pod, 15)?;
    let object = object_with_parents(node, &pod, 15)?;
    let parents = object["status"]["zombieParents"].as_array().cloned().unwrap_or_default();
    let facts: Vec<_> =
        parents.iter().map(|parent| json!([parent["pid"], parent["container"], parent["zombies"]])).collect();
    ensure!(facts == [json!([one, "one", 9]), json!([two, "two", 6])], "{object}");
    for parent in &parents {
        let command = parent["command"].as_str().unwrap_or_default();
        ensure!(!command.is_empty() && is_plain(command), "{parent}");
        ensure!(command.chars().count() <= 15, "{parent}");
        // The age of zombies that the first scan found is unknown.
        let age = parent["oldestSeconds"].as_i64();
        ensure!(age.is_none_or(|age| (1..=90).contains(&age)), "{parent}");
    }
    // Printable characters are kept, but for the quote that would end the name in a sentence.
    ensure!(parents[0]["command"] == PRINTABLE_ONE, "{}", parents[0]);

    let messages = retry::until("there is an Event", TIMEOUT, || {
        let messages = events_of(node, &pod, "ZombiesAccumulating")?;
        ensure!(messages.len() == 1, "{messages:?}");
        Ok(messages)
    })?;
    let message = &messages[0];
    ensure!(message.starts_with("15 zombie processes") && is_plain(message), "{message:?}");
    for (pid, container, zombies) in [(one, "one", "9"), (two, "two", "6")] {
        ensure!(
            [&pid.to_string(), container, zombies].iter().all(|part| message.contains(*part)),
            "{message:?}"
        );
    }
    ensure!(message.contains(&format!("PID {one} \"{PRINTABLE_ONE}\" in container ")), "{message:?}");
    // So is the output that developers read.
    let described = node.kubectl(["describe", "pod", &pod])?;
    ensure!(!described.contains('\u{1b}'), "{described:?}");

    shell(node, &pod, &format!("kill {one} {two}"))?;
    let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    ensure!(object["status"]["zombieParents"].is_null(), "{object}");
    delete(node, &pod)
}

/// It has no control character and no right-to-left override.
fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| character.is_control() || character == '\u{202e}')
}

/// Parents that live for about as long as the agent needs to read them twice: some have ended when they are to be named.
fn short_lived_zombie_parents(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("short-lived", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let rounds = 12;
    let parent = "sh -c 'for i in 1 2 3 4 5 6 7; do true & done; exec sleep 3'";
    shell(node, &pod, &format!("(for round in $(seq {rounds}); do {parent}; done) >/dev/null 2>&1 &"))?;
    let begun = Instant::now();
    let mut accumulated = false;
    while begun.elapsed() < Duration::from_secs(3) * rounds {
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
    ensure!(accumulated, "no zombie was counted");
    let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    ensure!(object["status"]["zombieParents"].is_null() && object["status"]["restarts"] == 0, "{object}");
    let selector = "app.kubernetes.io/component=agent";
    let agents = node.get(&["-n", RELEASE_NAMESPACE, "pods", "-l", selector])?;
    let restarted = &agents["items"][0]["status"]["containerStatuses"][0]["restartCount"];
    ensure!(*restarted == 0, "the agent was restarted {restarted} times");
    delete(node, &pod)
}

/// The command line of a parent in the node's PID namespace and in the cgroup of no pod.
const OUTSIDE: &str = "sleep 1000002 ";

/// The agent scans once a minute for them; other tests run meanwhile.
fn zombies_are_left_outside_of_pods(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node_has_zombies(node, 0)?;
    let script = format!("for i in 1 2 3 4 5 6 7; do true & done; exec {OUTSIDE}");
    node.command("sh").args(["-c", &script]).spawn()?;
    Ok(())
}

fn zombies_outside_of_pods_are_counted_per_node(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let search = format!(
        "for process in /proc/[0-9]*; do \
           [ \"$(tr '\\0' ' ' 2>/dev/null <\"$process/cmdline\")\" = '{OUTSIDE}' ] && echo \"${{process#/proc/}}\"; \
         done; true"
    );
    let parent = || on_node(node, &search).map(|output| output.trim().to_owned());
    if parent()?.is_empty() {
        zombies_are_left_outside_of_pods(cluster)?;
    }
    let counted = node_has_zombies(node, 7);
    on_node(node, &format!("kill {}", parent()?))?;
    counted?;
    node_has_zombies(node, 0)
}

/// With the default values: a program that is PID 1 of its container, and exec probes that leave orphans.
fn zombies_of_exec_probes_are_counted_per_node(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut manifest = pod("probe-zombies", &[]);
    manifest["spec"]["shareProcessNamespace"] = json!(false);
    let probe = json!({"exec": {"command": ["sh", "-c", "(sleep 1 &); exit 0"]}, "periodSeconds": 1});
    manifest["spec"]["containers"][0]["readinessProbe"] = probe;
    let pod = create(node, &manifest)?;
    retry::until("zombies of other pods are counted", TIMEOUT, || {
        let zombies = node_zombies(node, "other_pods")?;
        ensure!(zombies >= 5, "it exposes {zombies}");
        Ok(())
    })?;
    ensure!(!has_sandbox_health(node, &pod)?, "the unwatched pod has an object");
    delete(node, &pod)
}

fn pod_that_opts_out_has_no_object(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut manifest = pod("opted-out", &[]);
    manifest["metadata"]["labels"] = json!({"sandboxhealth.dev/watch": "false"});
    let pod = create(node, &manifest)?;
    leave_zombies(node, &pod, 7)?;
    retry::until("its zombies are counted with those of other pods", TIMEOUT, || {
        let zombies = node_zombies(node, "other_pods")?;
        ensure!(zombies >= 7, "it exposes {zombies}");
        Ok(())
    })?;
    ensure!(!has_sandbox_health(node, &pod)?, "it has an object");
    node.kubectl(["label", "pod", &pod, "sandboxhealth.dev/watch-"])?;
    wait_for_zombies(node, &pod, 7)?;
    delete(node, &pod)
}

fn node_has_zombies(node: &Node, expected: u32) -> Result<()> {
    retry::until(&format!("the node has {expected} zombies"), TIMEOUT, || {
        let zombies = node_zombies(node, "host")?;
        ensure!(zombies == expected, "it exposes {zombies}");
        Ok(())
    })
}

fn node_zombies(node: &Node, place: &str) -> Result<u32> {
    let metrics = agent_metrics(node)?;
    let name = format!("sandboxhealth_node_zombie_processes{{where=\"{place}\"}} ");
    let exposed = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(exposed.with_context(|| format!("no {name}in\n{metrics}"))?.parse()?)
}
