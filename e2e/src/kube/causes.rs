//! Causes of the end of a sandbox, provoked on a real node, and the text of the Event for each: the table of docs/reference/events.md. The
//! node must be left as it was.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::events::wait_for_restarts;
use super::pods::{create_all, delete, pod, shell};
use super::sandbox_health::{sandbox_health, wait_for_health};
use crate::build::go;
use crate::cluster::{Component, Node};
use crate::host::command;

/// A node on which the causes are provoked.
pub trait CauseNode {
    /// Its cluster.
    fn cluster(&self) -> &Node;

    /// A pod that runs on it.
    fn pod(&self, name: &str) -> Value;

    /// The output of a shell script that root runs there.
    ///
    /// # Errors
    ///
    /// When it fails.
    fn run(&self, script: &str) -> Result<String>;

    /// Stops containerd. Sandboxes stay.
    ///
    /// # Errors
    ///
    /// When it does not end.
    fn stop_containerd(&self) -> Result<()>;

    /// Starts containerd again.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    fn start_containerd(&self) -> Result<()>;

    /// Makes the container runtime stop a sandbox.
    ///
    /// # Errors
    ///
    /// When it does not.
    fn stop_sandbox(&self, id: &str) -> Result<()>;

    /// The CNI configuration file, which names the network plugin.
    fn network_configuration(&self) -> String;
}

impl CauseNode for Node {
    fn cluster(&self) -> &Node {
        self
    }

    fn pod(&self, name: &str) -> Value {
        pod(name, &[])
    }

    fn run(&self, script: &str) -> Result<String> {
        command::output(self.command("sh").args(["-ec", script]))
    }

    fn stop_containerd(&self) -> Result<()> {
        self.stop_component(Component::Containerd)
    }

    fn start_containerd(&self) -> Result<()> {
        self.start_component(Component::Containerd)
    }

    fn stop_sandbox(&self, id: &str) -> Result<()> {
        let crictl = go::crictl_directory()?.join("crictl");
        // Its default timeout is 2 s, which a busy machine exceeds.
        command::output(self.command(crictl).args(["--timeout=60s", "stopp", id])).map(drop)
    }

    fn network_configuration(&self) -> String {
        Node::network_configuration(self).display().to_string()
    }
}

/// A pod's sandbox before it ends.
struct Sandbox<'a> {
    pod: &'a str,
    id: String,
    /// PID of its pause on the node.
    pause: String,
}

struct Cause {
    pod: &'static str,
    provoke: fn(&dyn CauseNode, &Sandbox<'_>) -> Result<()>,
    /// The exit status, which Linux 6.15 and later provide.
    fact: &'static str,
    /// The likely cause, which the agent infers on every kernel.
    likely: &'static str,
}

const BEFORE_LINUX_6_15: &str = "pause exited; exit status unavailable (requires Linux 6.15)";
const KILLED: &str = "pause was killed by SIGKILL";
const OUTSIDE: &str = "pause was terminated by SIGTERM or SIGINT from outside the pod";
const INSIDE: &str = "pause was terminated by SIGTERM from a process of the pod";
const SHIM: &str = "; likely cause: the shim of the container runtime exited first";
const OOM: &str = "; likely cause: the OOM killer (it killed a process on the node at that moment)";
const CONTAINERD: &str = "; likely cause: containerd was restarted at that moment";

/// Ordered so that no cause affects the next one: the hint of an OOM kill lasts for seconds, that of a restart of containerd for a minute.
const CAUSES: [Cause; 8] = [
    Cause { pod: "cause-sigkill", provoke: sigkill, fact: KILLED, likely: "" },
    Cause { pod: "cause-sigterm", provoke: sigterm, fact: OUTSIDE, likely: "" },
    Cause { pod: "cause-kill-1", provoke: kill_from_inside, fact: INSIDE, likely: "" },
    Cause {
        pod: "cause-stopp",
        provoke: |target, sandbox| target.stop_sandbox(&sandbox.id),
        fact: KILLED,
        likely: "",
    },
    Cause { pod: "cause-network", provoke: failing_network, fact: KILLED, likely: "" },
    Cause { pod: "cause-shim", provoke: kill_shim, fact: KILLED, likely: SHIM },
    Cause { pod: "cause-oom", provoke: oom_kill, fact: KILLED, likely: OOM },
    Cause { pod: "cause-containerd", provoke: containerd_restart, fact: KILLED, likely: CONTAINERD },
];

/// Provokes each cause, and compares the Event and the object with the table.
///
/// # Errors
///
/// Lists all causes that differ from the table.
pub fn causes_are_named(target: &dyn CauseNode) -> Result<()> {
    let node = target.cluster();
    let provides_status = kernel(target)? >= (6, 15);
    create_all(node, &CAUSES.each_ref().map(|cause| target.pod(cause.pod)))?;
    let mut differ = Vec::new();
    for Cause { pod, provoke, fact, likely } in CAUSES {
        provoke(target, &sandbox(target, pod)?).context(pod)?;
        let expected = format!("{}{likely}", if provides_status { fact } else { BEFORE_LINUX_6_15 });
        let events = wait_for_restarts(node, pod, 1)?;
        let message = sandbox_health(node, pod)?["status"]["lastRestart"]["message"].take();
        let event = format!(
            "Pod sandbox restarted (restart 1): {expected}. The kubelet is restarting all containers."
        );
        if message != expected || events != [event] {
            differ.push(format!("{pod}: {message} and {events:?}, not {expected:?}"));
        }
        delete(node, pod)?;
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    Ok(())
}

fn kernel(target: &dyn CauseNode) -> Result<(u32, u32)> {
    let release = target.run("uname -r")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).with_context(|| release.clone());
    Ok((next()?, next()?))
}

fn sandbox<'a>(target: &dyn CauseNode, pod: &'a str) -> Result<Sandbox<'a>> {
    let object = wait_for_health(target.cluster(), pod, "True", "SandboxHealthy")?;
    let id = object["status"]["sandbox"]["id"].as_str().context("the object names no sandbox")?.to_owned();
    let pause = target.run(&format!(
        "for file in $(grep -ls {id} /proc/[0-9]*/cgroup); do
           process=${{file%/cgroup}}
           if [ \"$(cat $process/comm)\" = pause ]; then echo ${{process#/proc/}}; fi
         done"
    ))?;
    let pause = pause.trim().to_owned();
    ensure!(pause.parse::<u32>().is_ok(), "not one pause: {pause:?}");
    Ok(Sandbox { pod, id, pause })
}

fn sigkill(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    target.run(&format!("kill -KILL {}", sandbox.pause)).map(drop)
}

fn sigterm(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    target.run(&format!("kill -TERM {}", sandbox.pause)).map(drop)
}

fn kill_from_inside(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    // The shell is killed with the PID namespace.
    let _killed = shell(target.cluster(), sandbox.pod, "kill 1");
    Ok(())
}

fn kill_shim(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    target.run(&format!("kill -KILL $(sed -n 's/^PPid:[^0-9]*//p' /proc/{}/status)", sandbox.pause)).map(drop)
}

/// A process in the cgroup of the sandbox fills its memory with a file, which adds nothing to the score of that process: pause is the first
/// victim of the OOM killer.
fn oom_kill(target: &dyn CauseNode, Sandbox { id, pause, .. }: &Sandbox<'_>) -> Result<()> {
    target
        .run(&format!(
            "limit=$(find /sys/fs/cgroup/ -path '*{id}*' \\( -name memory.max -o -name memory.limit_in_bytes \\) | head -n 1)
             echo 1000 > /proc/{pause}/oom_score_adj
             echo 16M > \"$limit\"
             fill='echo $$ > \"$0\" && head -c 64M /dev/zero > /dev/shm/fill'
             sh -c \"$fill\" \"${{limit%/*}}/cgroup.procs\" 2> /dev/null || true
             rm /dev/shm/fill"
        ))
        .map(drop)
}

fn containerd_restart(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    target.stop_containerd()?;
    let killed = sigkill(target, sandbox);
    target.start_containerd()?;
    killed
}

/// Running sandboxes stay while the network plugin fails. One that ends is replaced once the plugin works.
fn failing_network(target: &dyn CauseNode, sandbox: &Sandbox<'_>) -> Result<()> {
    let file = target.network_configuration();
    let switch = |from: &str, to: &str| {
        target.run(&format!("sed -i 's/\"type\": \"{from}\"/\"type\": \"{to}\"/' {file}"))
    };
    switch("bridge", "missing")?;
    // The kubelet retries to remove the old sandbox from the network, and emits no Event about it.
    let failed = sigkill(target, sandbox)
        .and_then(|()| wait_for_health(target.cluster(), sandbox.pod, "Unknown", "SandboxNotCreated"));
    switch("missing", "bridge")?;
    failed.map(drop)
}
