//! The limits of an agent's observation: pods of any user, a /proc that hides processes, a pause of any name, a sandbox that is not
//! created, a rebooted node, a node without an agent, and one that is not ready. What is not observed is `Unknown`, with the reason.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    controller_exposes, create, create_all, create_healthy, delete, events_of, in_release, kill_pause,
    leave_zombies, on_node, pause_pid_in_cgroup, pid_in_cgroup, pod, read_errors, sandbox_health, uid_of,
    wait_for_container_restarts, wait_for_controller_metric, wait_for_health, wait_for_restarts,
    wait_for_zombies, with_sandbox_image,
};
use e2e::names::RELEASE_NAMESPACE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 7] = [
    ("pods_of_any_user_are_read_without_privilege", pods_of_any_user_are_read),
    ("processes_hidden_by_hidepid_are_unknown", processes_hidden_by_hidepid_are_unknown),
    ("pause_of_any_name_is_observed", pause_of_any_name_is_observed),
    ("sandbox_that_cannot_be_created_is_unknown", sandbox_that_cannot_be_created_is_unknown),
    ("reboot_is_cause_of_new_sandboxes_only", reboot_is_cause_of_new_sandboxes_only),
    ("pods_without_agent_are_unknown", pods_without_agent_are_unknown),
    ("not_ready_node_reports_unknown", not_ready_node_reports_unknown),
];

const AGENT: &str = "daemonset/sandbox-health-agent";
/// The UID of the agent in the chart.
const AGENT_USER: u32 = 64535;
/// Root, an ordinary user, the agent's, pause's own, and the highest UID that the API accepts.
const USERS: [u32; 5] = [0, 1000, AGENT_USER, 65535, 2_147_483_647];

fn of_user(name: &str, user: u32) -> Value {
    let mut pod = pod(name, &[]);
    pod["spec"]["securityContext"] = json!({"runAsUser": user, "runAsGroup": user});
    pod
}

fn pods_of_any_user_are_read(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create_all(node, &USERS.map(|user| of_user(&format!("user-{user}"), user)))?;
    for user in USERS {
        let pod = format!("user-{user}");
        let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
        let status = &object["status"];
        ensure!(status["source"] == "PauseStatusFile", "{status}");
        // The owner of pause, or this would test one user only.
        let pause = pause_pid_in_cgroup(status["sandbox"]["id"].as_str().context("no sandbox")?)?;
        let process_status = fs::read_to_string(format!("/proc/{pause}/status"))?;
        ensure!(process_status.contains(&format!("\nUid:\t{user}\t")), "{process_status}");
        leave_zombies(node, &pod, 7)?;
    }
    for user in USERS {
        let pod = format!("user-{user}");
        wait_for_zombies(node, &pod, 7)?;
        delete(node, &pod)?;
    }
    Ok(())
}

/// The pod template of the DaemonSet.
fn agent_template(node: &Node) -> Result<Value> {
    Ok(node.get(&["-n", RELEASE_NAMESPACE, AGENT])?["spec"]["template"].take())
}

fn use_agent_template(node: &Node, template: &Value) -> Result<()> {
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]).to_string();
    node.kubectl(["-n", RELEASE_NAMESPACE, "patch", AGENT, "--type=json", "-p", &patch]).map(drop)
}

fn agent_is_ready(node: &Node) -> Result<()> {
    node.kubectl(["-n", RELEASE_NAMESPACE, "rollout", "status", AGENT, "--timeout=120s"]).map(drop)
}

/// The template of an agent that reads another proc(5), mounted at this directory of the node.
fn with_proc(template: &Value, directory: &str) -> Value {
    let mut template = template.clone();
    let pod = &mut template["spec"];
    add(&mut pod["volumes"], json!({"name": "other-proc", "hostPath": {"path": directory}}));
    let container = &mut pod["containers"][0];
    let mount = json!({"name": "other-proc", "mountPath": "/other-proc", "readOnly": true});
    add(&mut container["volumeMounts"], mount);
    add(&mut container["args"], json!("--proc=/other-proc"));
    template
}

fn add(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(present) => present.push(item),
        None => *list = json!([item]),
    }
}

/// Removes the agent: without a node that matches, the DaemonSet has no pod.
fn remove_agent(node: &Node, template: &Value) -> Result<()> {
    let mut nowhere = template.clone();
    nowhere["spec"]["nodeSelector"] = json!({"no": "where"});
    use_agent_template(node, &nowhere)?;
    let selector = "app.kubernetes.io/component=agent";
    let gone = ["wait", "--for=delete", "pod", "-l", selector, "--timeout=120s"];
    node.kubectl(["-n", RELEASE_NAMESPACE].into_iter().chain(gone)).map(drop)
}

/// Calls `act` with the agents' template, which it may replace, and restores the template.
fn with_other_agent(node: &Node, act: impl FnOnce(&Value) -> Result<()>) -> Result<()> {
    let template = agent_template(node)?;
    let outcome = act(&template);
    use_agent_template(node, &template)?;
    agent_is_ready(node)?;
    outcome
}

fn processes_hidden_by_hidepid_are_unknown(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // Pause runs as the pod's user. A pause of the agent's own user stays visible to it; with a pause image that has no status, the agent
    // would count only the visible processes of that pod: none.
    let hidden = create(node, &of_user("hidden", 1000))?;
    let visible = "visible".to_owned();
    with_sandbox_image(node, Image::OtherPause, || create(node, &of_user(&visible, AGENT_USER)).map(drop))?;
    let before = wait_for_health(node, &hidden, "True", "SandboxHealthy")?;
    leave_zombies(node, &visible, 7)?;
    wait_for_health(node, &visible, "False", "ZombiesAccumulating")?;
    on_node(node, "mkdir -p /run/hiding && mount -t proc -o hidepid=2 proc /run/hiding")?;
    let outcome = with_other_agent(node, |template| {
        use_agent_template(node, &with_proc(template, "/run/hiding"))?;
        agent_is_ready(node)?;
        wait_for_health(node, &visible, "Unknown", "ProcHidden")?;
        let object = wait_for_health(node, &hidden, "Unknown", "ProcHidden")?;
        let failure = &object["status"]["readFailure"];
        ensure!(failure["message"].as_str().is_some_and(|message| message.contains("hidepid")), "{failure}");
        ensure!(read_errors(node, "ProcHidden")? > 0, "it is not counted");
        // It stays so: a sandbox that is not observed is not healthy, and none of its numbers is 0.
        for _ in 0..10 {
            let object = wait_for_health(node, &hidden, "Unknown", "ProcHidden")?;
            ensure!(object["status"]["processes"].is_null(), "{object}");
            let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
            let unknown = conditions.iter().all(|condition| condition["status"] == "Unknown");
            ensure!(unknown, "a condition claims an observation: {conditions:?}");
            let object = wait_for_health(node, &visible, "Unknown", "ProcHidden")?;
            ensure!(object["status"]["processes"].is_null(), "{object}");
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    });
    on_node(node, "umount --lazy /run/hiding")?;
    outcome?;
    let after = wait_for_health(node, &hidden, "True", "SandboxHealthy")?;
    ensure!(after["status"]["restarts"] == 0, "{after}");
    ensure!(after["status"]["sandbox"] == before["status"]["sandbox"], "{before} became {after}");
    wait_for_health(node, &visible, "False", "ZombiesAccumulating")?;
    delete(node, &hidden)?;
    delete(node, &visible)
}

/// OpenShift's is called `pod`.
fn pause_of_any_name_is_observed(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_sandbox_image(node, Image::HostilePause, || {
        let pod = create(node, &pod("hostile-nameless", &[]))?;
        let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
        ensure!(object["status"]["source"] == "ProcScan", "{object}");
        leave_zombies(node, &pod, 7)?;
        wait_for_zombies(node, &pod, 7)?;
        let sandbox = object["status"]["sandbox"]["id"].as_str().context("no sandbox")?;
        let pause = pid_in_cgroup(sandbox, "comm", "pod\n")?;
        kill(Pid::from_raw(pause.cast_signed()), Signal::SIGKILL)?;
        wait_for_restarts(node, &pod, 1)?;
        delete(node, &pod)
    })
}

fn sandbox_that_cannot_be_created_is_unknown(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nowhere"}, "handler": "nowhere",
    });
    node.apply(&class)?;
    let mut pod = pod("without-sandbox", &[]);
    pod["spec"]["runtimeClassName"] = json!("nowhere");
    node.apply(&pod)?;
    wait_for_health(node, "without-sandbox", "Unknown", "SandboxNotCreated")?;
    retry::until("the kubelet's warning is shown", TIMEOUT, || {
        let object = wait_for_health(node, "without-sandbox", "Unknown", "SandboxNotCreated")?;
        let message = object["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        let is_shown =
            message.contains("; kubelet: Failed to create pod sandbox: ") && message.contains("nowhere");
        ensure!(is_shown, "{message}");
        Ok(())
    })?;
    delete(node, "without-sandbox")?;
    node.kubectl(["delete", "runtimeclass", "nowhere"]).map(drop)
}

/// This node cannot be rebooted, so the agent gets a /proc with another boot ID (docs/development/testing.md). A sandbox that is killed meanwhile
/// stands for those that a reboot ends.
fn reboot_is_cause_of_new_sandboxes_only(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let boot = "00000000-0000-4000-8000-00000000b007";
    let [ended, kept] = create_healthy(node, ["ended", "kept"])?;
    for pod in [&ended, &kept] {
        let object = wait_for_health(node, pod, "True", "SandboxHealthy")?;
        let running = on_node(node, "cat /proc/sys/kernel/random/boot_id")?;
        ensure!(object["status"]["sandbox"]["bootID"] == running.trim(), "{object}");
    }
    // A mount below a shared copy would appear in /proc as well.
    on_node(
        node,
        &format!(
            "set -e; mkdir -p /run/rebooted/proc; cd /run/rebooted; mount --rbind /proc proc; \
             mount --make-rprivate proc; echo {boot} > boot_id; mount --bind boot_id proc/sys/kernel/random/boot_id"
        ),
    )?;
    let outcome = with_other_agent(node, |template| {
        remove_agent(node, template)?;
        kill_pause(node, &ended)?;
        use_agent_template(node, &with_proc(template, "/run/rebooted/proc"))?;
        let messages = wait_for_restarts(node, &ended, 1)?;
        ensure!(messages[0].contains("rebooted"), "{messages:?}");
        let status = sandbox_health(node, &ended)?["status"].take();
        ensure!(status["lastRestart"]["reason"] == "NodeRebooted", "{status}");
        ensure!(status["sandbox"]["bootID"] == boot, "{status}");
        agent_is_ready(node)
    });
    on_node(node, "umount --lazy --recursive /run/rebooted/proc")?;
    outcome?;
    // Neither another boot ID nor the return of the earlier one is a restart while the sandbox is the same.
    let witness = create(node, &pod("witness", &[]))?;
    wait_for_health(node, &witness, "True", "SandboxHealthy")?;
    wait_for_restarts(node, &ended, 1)?;
    let object = wait_for_health(node, &kept, "True", "SandboxHealthy")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    ensure!(events_of(node, &kept, "SandboxRestarted")?.is_empty());
    for pod in [&ended, &kept, &witness] {
        delete(node, pod)?;
    }
    Ok(())
}

const ONE_AGENT_MISSING: &str = "sandboxhealth_nodes{state=\"AgentMissing\"} 1";

/// Calls `act` while a quota lets no pod be created in the release's namespace.
fn while_pods_are_refused(node: &Node, act: impl FnOnce() -> Result<()>) -> Result<()> {
    in_release(node, &["create", "quota", "no-pods", "--hard=pods=0"])?;
    // Admission reads the quota's status.
    let is_enforced = ["wait", "--for=jsonpath={.status.hard.pods}=0", "quota/no-pods", "--timeout=60s"];
    let outcome = in_release(node, &is_enforced).and_then(|_| act());
    in_release(node, &["delete", "quota", "no-pods"])?;
    outcome
}

fn pods_without_agent_are_unknown(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [orphaned, quiet] = create_healthy(node, ["orphaned", "not-restarted"])?;
    let outcome = with_other_agent(node, |template| {
        remove_agent(node, template)?;
        for pod in [&orphaned, &quiet] {
            wait_for_health(node, pod, "Unknown", "AgentMissing")?;
        }
        // The DaemonSet wants no agent there.
        ensure!(controller_exposes(node, ONE_AGENT_MISSING).is_err(), "an agent is reported as missing");
        // Restarts are not counted meanwhile.
        let uid = uid_of(node, &orphaned)?;
        kill(Pid::from_raw(pause_pid_in_cgroup(&uid)?.cast_signed()), Signal::SIGKILL)?;
        wait_for_container_restarts(node, &orphaned, 1)?;
        ensure!(events_of(node, &orphaned, "SandboxRestarted")?.is_empty());
        while_pods_are_refused(node, || {
            use_agent_template(node, template)?;
            wait_for_controller_metric(node, ONE_AGENT_MISSING)
        })
    });
    outcome?;
    let messages = wait_for_restarts(node, &orphaned, 1)?;
    ensure!(messages[0].contains("at least"), "{messages:?}");
    let status = sandbox_health(node, &orphaned)?["status"].take();
    ensure!(status["lastRestart"]["reason"] == "Replaced" && status["restartsAtLeast"] == true, "{status}");
    wait_for_health(node, &quiet, "True", "SandboxHealthy")?;
    ensure!(sandbox_health(node, &quiet)?["status"]["restarts"] == 0);
    delete(node, &orphaned)?;
    delete(node, &quiet)
}

/// The kubelet is stopped. Containers continue to run, also those of a terminating pod.
fn not_ready_node_reports_unknown(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [stranded, terminating] = create_healthy(node, ["stranded", "terminating"])?;
    node.stop_component(Component::Kubelet)?;
    let outcome = while_not_ready(node, &stranded, &terminating);
    node.start_component(Component::Kubelet)?;
    outcome?;
    node.kubectl(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"])?;
    let object = wait_for_health(node, &stranded, "True", "SandboxHealthy")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    let gone = ["wait", "--for=delete", "sandboxhealth", &terminating, "--timeout=120s"];
    node.kubectl(gone)?;
    delete(node, &stranded)
}

fn while_not_ready(node: &Node, stranded: &str, terminating: &str) -> Result<()> {
    node.kubectl(["delete", "pod", terminating, "--wait=false"])?;
    node.kubectl(["wait", "--for=condition=Ready=Unknown", "nodes", "--all", "--timeout=120s"])?;
    wait_for_health(node, terminating, "Unknown", "PodTerminating")?;
    let object = wait_for_health(node, stranded, "Unknown", "NodeNotReady")?;
    ensure!(object["status"]["processes"]["zombies"] == 0, "the last known number is missing: {object}");
    Ok(())
}
