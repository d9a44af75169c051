//! A pod from its start to the kill of its pause: with our pause, with a third-party one, in a user namespace, and on two kernels.

use anyhow::{Context as _, Result, ensure};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, create_all, delete, delete_and_wait, events_of, leave_zombies, pod, sandbox_health, shell,
    wait_for_health, wait_for_restarts, wait_for_zombies, with_slow_api_server,
};
use e2e::names::{OTHER_PAUSE, PAUSE};
use e2e::vm::{Kernel, Runtime};
use serde_json::{Value, json};

use super::RealNode;

const ORPHANS: u64 = 20;
const ZOMBIES: u32 = 7;
/// Stops of etcd, each of 5 s: twice the duration of a Lease.
const SLOW_STOPS: u32 = 6;
/// The first Linux that tells other processes than the parent how a process ended.
const EXIT_STATUS_SINCE: (u32, u32) = (6, 15);
const STEADY: [&str; 5] = ["steady-1", "steady-2", "steady-3", "steady-4", "steady-5"];

/// A pod for the Debian node.
pub(super) fn on_debian(real: &RealNode, name: &str) -> Value {
    let mut pod = pod(name, &[]);
    pod["spec"]["nodeName"] = json!(real.vm.name());
    // By default pods are evicted after 300 s. A node that is powered off and boots beside other lanes may need longer.
    pod["spec"]["tolerations"] = json!([{"operator": "Exists", "effect": "NoExecute"}]);
    pod
}

/// Kills a pod's pause by its PID on the machine. In its sandbox's cgroup is nothing else; CRI-O's conmon has a cgroup `crio-conmon-…`.
fn kill_pause(real: &RealNode, pod: &str) -> Result<()> {
    let object = sandbox_health(real.node(), pod)?;
    let sandbox = object["status"]["sandbox"]["id"].as_str().context("the object names no sandbox")?;
    real.vm
        .ssh(&format!(
            "kill -9 $(grep -Els '/(cri-containerd|crio)-{sandbox}' /proc/[0-9]*/cgroup | cut -d/ -f3 | head -1)"
        ))
        .map(drop)
}

/// Zombies, their parent, and the end of both.
fn zombies_and_their_parent_are_reported(real: &RealNode, pod: &str) -> Result<()> {
    let node = real.node();
    let parent = leave_zombies(node, pod, ZOMBIES)?;
    wait_for_zombies(node, pod, ZOMBIES.into())?;
    let object = retry::until("the object names their parent", TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        ensure!(object["status"]["zombieParents"][0]["zombies"] == ZOMBIES, "{object}");
        Ok(object)
    })?;
    let culprit = &object["status"]["zombieParents"][0];
    let expected = [json!("shell"), json!("sleep"), json!(ZOMBIES), json!(parent.parse::<i64>()?)];
    ensure!(
        [&culprit["container"], &culprit["command"], &culprit["zombies"], &culprit["pid"]]
            .into_iter()
            .eq(&expected),
        "{culprit}"
    );
    let event = retry::until("there is an Event", TIMEOUT, || {
        events_of(node, pod, "ZombiesAccumulating")?.pop().context("none")
    })?;
    ensure!(event.contains(&format!("PID {parent} \"sleep\" in container \"shell\"")), "{event}");
    shell(node, pod, &format!("kill {parent}"))?;
    wait_for_health(node, pod, "True", "SandboxHealthy").map(drop)
}

/// Kills the pod's pause; the message of the one restart.
fn kill_is_one_restart(real: &RealNode, pod: &str) -> Result<String> {
    kill_pause(real, pod)?;
    wait_for_restarts(real.node(), pod, 1)?;
    let object = sandbox_health(real.node(), pod)?;
    let last = &object["status"]["lastRestart"];
    ensure!(last["reason"] == "PauseExited", "{last}");
    Ok(last["message"].as_str().unwrap_or_default().to_owned())
}

pub(super) fn pod_with_our_pause(real: &RealNode) -> Result<()> {
    let node = real.node();
    let pod = create(node, &on_debian(real, "our-pause"))?;
    let status = wait_for_health(node, &pod, "True", "SandboxHealthy")?["status"].take();
    ensure!(status["source"] == "PauseStatusFile", "{status}");
    ensure!(status["sandbox"]["pauseVersion"] == env!("CARGO_PKG_VERSION"), "{status}");
    shell(node, &pod, &format!("for i in $(seq {ORPHANS}); do (sleep 0.2 &) ; done"))?;
    retry::until("pause has reaped the orphans", TIMEOUT, || {
        let status = shell(node, &pod, "tr '\\0' '\\n' < /proc/1/cmdline")?;
        let reaped = status.lines().find_map(|line| line.strip_prefix("reaped=")).context("no status")?;
        ensure!(reaped.parse::<u64>()? >= ORPHANS, "it has reaped {reaped}");
        Ok(())
    })?;
    zombies_and_their_parent_are_reported(real, &pod)?;
    let reaped = sandbox_health(node, &pod)?["status"]["processes"]["reapedTotal"].as_u64();
    ensure!(reaped >= Some(ORPHANS), "the object shows {reaped:?} reaped");
    let message = kill_is_one_restart(real, &pod)?;
    let is_reported = kernel(real)? >= EXIT_STATUS_SINCE;
    ensure!(message.contains("SIGKILL") == is_reported, "{message}");
    ensure!(message.contains("exit status unavailable") != is_reported, "{message}");
    delete(node, &pod)
}

/// On an overloaded node each request took seconds: the Lease was lost again and again, and restarts stayed without Events.
pub(super) fn slow_api_server(real: &RealNode) -> Result<()> {
    let node = real.node();
    let pod = create(node, &on_debian(real, "slowly"))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    with_slow_api_server(node, SLOW_STOPS, || kill_is_one_restart(real, &pod))?;
    delete(node, &pod)
}

pub(super) fn pod_with_third_party_pause(real: &RealNode) -> Result<()> {
    let node = real.node();
    real.vm.use_sandbox_image(real.runtime(), OTHER_PAUSE)?;
    let pod = create(node, &on_debian(real, "third-party-pause"))?;
    let outcome = third_party(real, &pod);
    real.vm.use_sandbox_image(real.runtime(), PAUSE)?;
    outcome?;
    delete(node, &pod)
}

pub(super) fn third_party(real: &RealNode, pod: &str) -> Result<()> {
    let status = wait_for_health(real.node(), pod, "True", "SandboxHealthy")?["status"].take();
    ensure!(status["source"] == "ProcScan" && status["sandbox"]["pauseVersion"].is_null(), "{status}");
    zombies_and_their_parent_are_reported(real, pod)?;
    kill_is_one_restart(real, pod).map(drop)
}

pub(super) fn pod_in_a_user_namespace(real: &RealNode) -> Result<()> {
    let node = real.node();
    // runc has them from 1.2 on, which Debian's has not; crun has.
    real.use_runtime(Runtime::Containerd2)?;
    node.apply(&json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "crun"}, "handler": "crun",
    }))?;
    let mut pod = on_debian(real, "user-namespace");
    pod["spec"]["hostUsers"] = json!(false);
    pod["spec"]["runtimeClassName"] = json!("crun");
    let pod = create(node, &pod)?;
    let inside = shell(node, &pod, "cat /proc/self/uid_map")?;
    ensure!(!inside.trim_start().starts_with("0          0"), "it has no user namespace: {inside}");
    let status = wait_for_health(node, &pod, "True", "SandboxHealthy")?["status"].take();
    ensure!(status["source"] == "PauseStatusFile", "{status}");
    zombies_and_their_parent_are_reported(real, &pod)?;
    kill_is_one_restart(real, &pod)?;
    delete(node, &pod)
}

pub(super) fn exit_status_from_linux_6_15(real: &RealNode) -> Result<()> {
    if kernel(real)? < EXIT_STATUS_SINCE {
        // A power failure would leave images that were just imported incomplete.
        real.vm.ssh("sync")?;
        real.vm.power_off()?;
        real.vm.power_on(Kernel::Backports)?;
        real.vm.wait_until_ready()?;
    }
    ensure!(kernel(real)? >= EXIT_STATUS_SINCE, "this is another kernel");
    pod_with_our_pause(real)
}

fn kernel(real: &RealNode) -> Result<(u32, u32)> {
    let release = real.vm.ssh("uname -r")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).with_context(|| release.clone());
    Ok((next()?, next()?))
}

/// Five pods that stay for all scenarios that restart something below them, each with its restarts so far.
pub(super) fn steady_pods(real: &RealNode) -> Result<Vec<(&'static str, usize)>> {
    let node = real.node();
    let manifests: Vec<_> = STEADY.iter().map(|name| on_debian(real, name)).collect();
    create_all(node, &manifests)?;
    STEADY.iter().map(|name| Ok((*name, restarts_of(real, name)?))).collect()
}

/// Starts a pod and waits until it is observed. Kubelet, runtime and agent have then processed everything that was there before it.
pub(super) fn observe_new_pod(real: &RealNode) -> Result<()> {
    let pod = create(real.node(), &on_debian(real, "started-afterwards"))?;
    wait_for_health(real.node(), &pod, "True", "SandboxHealthy")?;
    delete_and_wait(real.node(), &pod)
}

/// The restarts of a pod, by its object; each must have an Event.
pub(super) fn restarts_of(real: &RealNode, pod: &str) -> Result<usize> {
    let object = retry::until(&format!("{pod} is observed"), TIMEOUT, || {
        let object = sandbox_health(real.node(), pod)?;
        ensure!(object["status"]["sandbox"]["id"].is_string(), "{}", object["status"]);
        Ok(object)
    })?;
    let restarts = object["status"]["restarts"].as_u64().context("no restarts")?;
    let restarts = usize::try_from(restarts)?;
    let events = events_of(real.node(), pod, "SandboxRestarted")?;
    ensure!(events.len() == restarts, "{restarts} restarts and {events:?}");
    Ok(restarts)
}
