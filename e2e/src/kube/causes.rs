//! What ends a sandbox, provoked on a real node, and the text by which an Event names it: the table of docs/reference/events.md. It must leave the
//! node as it was.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::events::wait_for_restarts;
use super::pods::{create_all, delete, pod, shell};
use super::sandbox_health::{sandbox_health, wait_for_health};
use crate::build::go;
use crate::cluster::{Component, Node};
use crate::host::command;

/// A node on which sandboxes end.
pub trait Ground {
    /// Its cluster.
    fn cluster(&self) -> &Node;

    /// A pod for it.
    fn pod(&self, name: &str) -> Value;

    /// What a shell script prints that root runs there.
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

    /// Has the container runtime stop a sandbox.
    ///
    /// # Errors
    ///
    /// When it does not.
    fn stop_sandbox(&self, id: &str) -> Result<()>;

    /// The file that names the network plugin.
    fn network_configuration(&self) -> String;
}

impl Ground for Node {
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
        let crictl = go::crictl_folder()?.join("crictl");
        // Its own limit is 2 s, which a busy machine exceeds.
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
    provoke: fn(&dyn Ground, &Sandbox<'_>) -> Result<()>,
    /// What Linux provides from 6.15 on.
    fact: &'static str,
    /// What the agent infers on every kernel.
    likely: &'static str,
}

const BEFORE_LINUX_6_15: &str = "pause exited; exit status unavailable (requires Linux 6.15)";
const KILLED: &str = "pause was killed by SIGKILL";
const OUTSIDE: &str = "pause was terminated by SIGTERM or SIGINT from outside the pod";
const INSIDE: &str = "pause was terminated by SIGTERM from a process of the pod";
const SHIM: &str = "; likely cause: the shim of the container runtime exited first";
const OOM: &str = "; likely cause: the OOM killer (it killed a process on the node at that moment)";
const CONTAINERD: &str = "; likely cause: containerd was restarted at that moment";

/// In an order in which none is a hint to the next: that of an OOM kill lasts for seconds, that of a restart of containerd for a minute.
const CAUSES: [Cause; 8] = [
    Cause { pod: "cause-sigkill", provoke: sigkill, fact: KILLED, likely: "" },
    Cause { pod: "cause-sigterm", provoke: sigterm, fact: OUTSIDE, likely: "" },
    Cause { pod: "cause-kill-1", provoke: kill_from_inside, fact: INSIDE, likely: "" },
    Cause {
        pod: "cause-stopp",
        provoke: |ground, sandbox| ground.stop_sandbox(&sandbox.id),
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
/// With all that differ.
pub fn causes_are_named(ground: &dyn Ground) -> Result<()> {
    let node = ground.cluster();
    let provides_status = kernel(ground)? >= (6, 15);
    create_all(node, &CAUSES.each_ref().map(|cause| ground.pod(cause.pod)))?;
    let mut differ = Vec::new();
    for Cause { pod, provoke, fact, likely } in CAUSES {
        provoke(ground, &sandbox(ground, pod)?).context(pod)?;
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

fn kernel(ground: &dyn Ground) -> Result<(u32, u32)> {
    let release = ground.run("uname -r")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).with_context(|| release.clone());
    Ok((next()?, next()?))
}

fn sandbox<'a>(ground: &dyn Ground, pod: &'a str) -> Result<Sandbox<'a>> {
    let object = wait_for_health(ground.cluster(), pod, "True", "SandboxHealthy")?;
    let id = object["status"]["sandbox"]["id"].as_str().context("the object names no sandbox")?.to_owned();
    let pause = ground.run(&format!(
        "for file in $(grep -ls {id} /proc/[0-9]*/cgroup); do
           process=${{file%/cgroup}}
           if [ \"$(cat $process/comm)\" = pause ]; then echo ${{process#/proc/}}; fi
         done"
    ))?;
    let pause = pause.trim().to_owned();
    ensure!(pause.parse::<u32>().is_ok(), "not one pause: {pause:?}");
    Ok(Sandbox { pod, id, pause })
}

fn sigkill(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    ground.run(&format!("kill -KILL {}", sandbox.pause)).map(drop)
}

fn sigterm(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    ground.run(&format!("kill -TERM {}", sandbox.pause)).map(drop)
}

fn kill_from_inside(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    // The shell is killed with the PID namespace.
    let _killed = shell(ground.cluster(), sandbox.pod, "kill 1");
    Ok(())
}

fn kill_shim(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    ground.run(&format!("kill -KILL $(sed -n 's/^PPid:[^0-9]*//p' /proc/{}/status)", sandbox.pause)).map(drop)
}

/// A process in the cgroup of the sandbox fills its memory with a file, which adds nothing to the score of that process: pause is the first
/// victim of the OOM killer.
fn oom_kill(ground: &dyn Ground, Sandbox { id, pause, .. }: &Sandbox<'_>) -> Result<()> {
    ground
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

fn containerd_restart(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    ground.stop_containerd()?;
    let killed = sigkill(ground, sandbox);
    ground.start_containerd()?;
    killed
}

/// Sandboxes stay while the network plugin fails. One that ends is replaced once the plugin works.
fn failing_network(ground: &dyn Ground, sandbox: &Sandbox<'_>) -> Result<()> {
    let file = ground.network_configuration();
    let switch = |from: &str, to: &str| {
        ground.run(&format!("sed -i 's/\"type\": \"{from}\"/\"type\": \"{to}\"/' {file}"))
    };
    switch("bridge", "missing")?;
    // The kubelet retries to remove the old sandbox from the network, and emits no Event about it.
    let failed = sigkill(ground, sandbox)
        .and_then(|()| wait_for_health(ground.cluster(), sandbox.pod, "Unknown", "SandboxNotCreated"));
    switch("missing", "bridge")?;
    failed.map(drop)
}
