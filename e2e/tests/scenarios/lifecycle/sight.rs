//! What the agent sees and what it cannot see: pods of any user, a /proc that hides processes, a sandbox without a process named
//! pause, a node that was rebooted, one without an agent, and one that is not ready. What nobody sees is `Unknown`, with the reason.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pause_in_cgroup_of, pod, sandbox_health, shell};
use e2e::names::RELEASE_NAMESPACE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Cluster, Scenario};
use e2e::kube::{
    controller_shows, create, delete, edit_restarts, kill_pause, never_waits, on_node, read_errors, told_of,
    with_sandbox_image,
};

pub(super) const STORIES: [Scenario; 6] = [
    ("pods_of_any_user_are_read_without_privilege", pods_of_any_user_are_read),
    ("what_hidepid_hides_is_unknown_and_never_healthy", what_hidepid_hides_is_unknown),
    ("a_sandbox_without_a_pause_process_is_unknown", a_sandbox_without_a_pause_process),
    ("a_reboot_is_the_cause_of_new_sandboxes_and_of_nothing_else", a_reboot_is_the_cause),
    ("without_an_agent_restarts_are_counted_from_the_pod", without_an_agent),
    ("of_a_node_that_is_not_ready_nothing_is_known", a_node_that_is_not_ready),
];

const AGENT: &str = "daemonset/sandbox-health-agent";
/// Of the agent, as the chart has it.
const AGENT_USER: u32 = 64535;
/// Root, an ordinary one, the agent's, pause's own, and the largest that the API takes.
const USERS: [u32; 5] = [0, 1000, AGENT_USER, 65535, 2_147_483_647];

fn of_user(name: &str, user: u32) -> Value {
    let mut pod = pod(name, &[]);
    pod["spec"]["securityContext"] = json!({"runAsUser": user, "runAsGroup": user});
    pod
}

fn pods_of_any_user_are_read(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    for user in USERS {
        node.apply(&of_user(&format!("user-{user}"), user))?;
    }
    for user in USERS {
        let pod = format!("user-{user}");
        let object = health_of(node, &pod, "True", "AllWell")?;
        let status = &object["status"];
        ensure!(status["source"] == "PauseStatusFile", "{status}");
        // Whose the sandbox's process is, or this would be about one user.
        let pause = pause_in_cgroup_of(status["sandbox"]["id"].as_str().context("no sandbox")?)?;
        let whose = fs::read_to_string(format!("/proc/{pause}/status"))?;
        ensure!(whose.contains(&format!("\nUid:\t{user}\t")), "{whose}");
        never_waits(node, &pod, 7)?;
    }
    for user in USERS {
        let pod = format!("user-{user}");
        let object = health_of(node, &pod, "False", "ZombiesAccumulating")?;
        ensure!(object["status"]["processes"]["zombies"] == 7, "{object}");
        delete(node, &pod)?;
    }
    Ok(())
}

/// The pods of the agents as the DaemonSet makes them.
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

/// An agent that reads another proc(5): one that is mounted at this folder of the node.
fn that_reads(template: &Value, folder: &str) -> Value {
    let mut template = template.clone();
    let pod = &mut template["spec"];
    add(&mut pod["volumes"], json!({"name": "other-proc", "hostPath": {"path": folder}}));
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

/// Takes the agent away: without a node to run on, the DaemonSet has no pod.
fn no_agent(node: &Node, template: &Value) -> Result<()> {
    let mut nowhere = template.clone();
    nowhere["spec"]["nodeSelector"] = json!({"no": "where"});
    use_agent_template(node, &nowhere)?;
    let selector = "app.kubernetes.io/component=agent";
    let gone = ["wait", "--for=delete", "pod", "-l", selector, "--timeout=120s"];
    node.kubectl(["-n", RELEASE_NAMESPACE].into_iter().chain(gone)).map(drop)
}

/// Calls `story` with the agents' template, which it may replace, and puts it back.
fn with_other_agent(node: &Node, story: impl FnOnce(&Value) -> Result<()>) -> Result<()> {
    let template = agent_template(node)?;
    let outcome = story(&template);
    use_agent_template(node, &template)?;
    agent_is_ready(node)?;
    outcome
}

fn what_hidepid_hides_is_unknown(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // Pause runs as the pod's user. One of the agent's own user stays visible to it, and if that says nothing of the pod's
    // processes, to count those that can be seen would be to count none.
    let hidden = create(node, &of_user("hidden", 1000))?;
    let visible = "visible".to_owned();
    with_sandbox_image(node, Image::OtherPause, || create(node, &of_user(&visible, AGENT_USER)).map(drop))?;
    let before = health_of(node, &hidden, "True", "AllWell")?;
    never_waits(node, &visible, 7)?;
    health_of(node, &visible, "False", "ZombiesAccumulating")?;
    on_node(node, "mkdir -p /run/hiding && mount -t proc -o hidepid=2 proc /run/hiding")?;
    let outcome = with_other_agent(node, |template| {
        use_agent_template(node, &that_reads(template, "/run/hiding"))?;
        agent_is_ready(node)?;
        health_of(node, &visible, "Unknown", "ProcHidden")?;
        let object = health_of(node, &hidden, "Unknown", "ProcHidden")?;
        let failure = &object["status"]["readFailure"];
        ensure!(failure["message"].as_str().is_some_and(|message| message.contains("hidepid")), "{failure}");
        ensure!(read_errors(node, "ProcHidden")? > 0, "it is not counted");
        // It stays so: what is not seen is not healthy, and nothing of it is 0.
        for _ in 0..10 {
            let object = health_of(node, &hidden, "Unknown", "ProcHidden")?;
            ensure!(object["status"]["processes"].is_null(), "{object}");
            let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
            let unknown = conditions.iter().all(|condition| condition["status"] == "Unknown");
            ensure!(unknown, "somebody is said to see something: {conditions:?}");
            let object = health_of(node, &visible, "Unknown", "ProcHidden")?;
            ensure!(object["status"]["processes"].is_null(), "{object}");
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    });
    on_node(node, "umount --lazy /run/hiding")?;
    outcome?;
    let after = health_of(node, &hidden, "True", "AllWell")?;
    ensure!(after["status"]["restarts"] == 0, "{after}");
    ensure!(after["status"]["sandbox"] == before["status"]["sandbox"], "{before} became {after}");
    health_of(node, &visible, "False", "ZombiesAccumulating")?;
    delete(node, &hidden)?;
    delete(node, &visible)
}

/// As where the runtime keeps the pod in a virtual machine or in a kernel of its own.
fn a_sandbox_without_a_pause_process(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_sandbox_image(node, Image::HostilePause, || {
        let pod = create(node, &pod("hostile-nameless", &[]))?;
        // So that a 0 would be wrong, too.
        never_waits(node, &pod, 7)?;
        let object = health_of(node, &pod, "Unknown", "SandboxNotFound")?;
        let status = &object["status"];
        ensure!(status["processes"].is_null() && status["source"].is_null(), "{status}");
        ensure!(status["restarts"] == 0, "{status}");
        delete(node, &pod)
    })
}

/// The machine cannot be booted, so the agent is shown a /proc whose boot id is another (docs/testing.md). A sandbox that is
/// killed meanwhile stands for those that a boot ends.
fn a_reboot_is_the_cause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let boot = "00000000-0000-4000-8000-00000000b007";
    let ended = create(node, &pod("ended", &[]))?;
    let kept = create(node, &pod("kept", &[]))?;
    for pod in [&ended, &kept] {
        let object = health_of(node, pod, "True", "AllWell")?;
        let running = on_node(node, "cat /proc/sys/kernel/random/boot_id")?;
        ensure!(object["status"]["sandbox"]["bootID"] == running.trim(), "{object}");
    }
    // Without an end to sharing, what is mounted over the copy would be mounted over /proc, too.
    on_node(
        node,
        &format!(
            "set -e; mkdir -p /run/rebooted/proc; cd /run/rebooted; mount --rbind /proc proc; \
             mount --make-rprivate proc; echo {boot} > boot_id; mount --bind boot_id proc/sys/kernel/random/boot_id"
        ),
    )?;
    let outcome = with_other_agent(node, |template| {
        no_agent(node, template)?;
        kill_pause(node, &ended)?;
        use_agent_template(node, &that_reads(template, "/run/rebooted/proc"))?;
        let told = told_of(node, &ended, 1)?;
        ensure!(told[0].contains("rebooted"), "{told:?}");
        let status = sandbox_health(node, &ended)?["status"].take();
        ensure!(status["lastRestart"]["reason"] == "NodeRebooted", "{status}");
        ensure!(status["sandbox"]["bootID"] == boot, "{status}");
        agent_is_ready(node)
    });
    on_node(node, "umount --lazy --recursive /run/rebooted/proc")?;
    outcome?;
    // Another boot id is no restart where the sandbox is the same; nor is the one from before, which comes back.
    let witness = create(node, &pod("witness", &[]))?;
    health_of(node, &witness, "True", "AllWell")?;
    told_of(node, &ended, 1)?;
    let object = health_of(node, &kept, "True", "AllWell")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    ensure!(events_of(node, &kept, "SandboxRestarted")?.is_empty());
    for pod in [&ended, &kept, &witness] {
        delete(node, pod)?;
    }
    Ok(())
}

fn without_an_agent(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let orphaned = create(node, &pod("orphaned", &[]))?;
    let quiet = create(node, &pod("quiet", &[]))?;
    for pod in [&orphaned, &quiet] {
        health_of(node, pod, "True", "AllWell")?;
    }
    let outcome = with_other_agent(node, |template| {
        no_agent(node, template)?;
        for pod in [&orphaned, &quiet] {
            health_of(node, pod, "Unknown", "AgentMissing")?;
        }
        controller_shows(node, "sandbox_health_nodes{state=\"AgentMissing\"} 1")?;
        let name = node.kubectl(["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
        let unseen = format!("sandbox_health_node_unseen{{node=\"{name}\",reason=\"AgentMissing\"}} 1");
        controller_shows(node, &unseen)?;
        // The row names no sandbox any more.
        let uid = node.kubectl(["get", "pod", &orphaned, "-o", "jsonpath={.metadata.uid}"])?;
        kill(Pid::from_raw(pause_in_cgroup_of(&uid)?.cast_signed()), Signal::SIGKILL)?;
        told_of(node, &orphaned, 1)?;
        retry::until("the row says where it comes from", TIMEOUT, || {
            let status = sandbox_health(node, &orphaned)?["status"].take();
            ensure!(status["source"] == "PodConditions", "{status}");
            ensure!(
                status["lastRestart"]["reason"] == "Replaced" && status["processes"].is_null(),
                "{status}"
            );
            Ok(())
        })?;
        edit_restarts(node, &orphaned)?;
        retry::until("the row is right again", TIMEOUT, || {
            let status = sandbox_health(node, &orphaned)?["status"].take();
            ensure!(status["restarts"] == 1 && status["source"] == "PodConditions", "{status}");
            Ok(())
        })
    });
    outcome?;
    retry::until("the agent reports again", TIMEOUT, || {
        let status = sandbox_health(node, &orphaned)?["status"].take();
        ensure!(status["source"] == "PauseStatusFile" && status["sandbox"]["id"].is_string(), "{status}");
        Ok(())
    })?;
    health_of(node, &quiet, "True", "AllWell")?;
    // What the controller counted, the agent does not count again; and both have seen all there is by now.
    shell(node, &orphaned, "true")?;
    told_of(node, &orphaned, 1)?;
    ensure!(sandbox_health(node, &quiet)?["status"]["restarts"] == 0);
    delete(node, &orphaned)?;
    delete(node, &quiet)
}

/// Its kubelet is gone, as far as the cluster can tell. What runs there goes on, and so does a pod that was asked to go.
fn a_node_that_is_not_ready(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let (stranded, leaving) = (create(node, &pod("stranded", &[]))?, create(node, &pod("leaving", &[]))?);
    for pod in [&stranded, &leaving] {
        health_of(node, pod, "True", "AllWell")?;
    }
    node.stop_component(Component::Kubelet)?;
    let outcome = while_it_is_not_ready(node, &stranded, &leaving);
    node.start_component(Component::Kubelet)?;
    outcome?;
    node.kubectl(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"])?;
    let object = health_of(node, &stranded, "True", "AllWell")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    let gone = ["wait", "--for=delete", "sandboxhealth", &leaving, "--timeout=120s"];
    node.kubectl(gone)?;
    delete(node, &stranded)
}

fn while_it_is_not_ready(node: &Node, stranded: &str, leaving: &str) -> Result<()> {
    node.kubectl(["delete", "pod", leaving, "--wait=false"])?;
    node.kubectl(["wait", "--for=condition=Ready=Unknown", "nodes", "--all", "--timeout=120s"])?;
    health_of(node, leaving, "Unknown", "PodTerminating")?;
    let object = health_of(node, stranded, "Unknown", "NodeNotReady")?;
    ensure!(object["status"]["processes"]["zombies"] == 0, "what was known last is not there: {object}");
    Ok(())
}
