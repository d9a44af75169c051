//! The token of an agent is good for objects of its own node alone.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use e2e::build::Setup;
use e2e::cluster::VM_NODES;
use e2e::host::command;
use e2e::kube::{create, delete, pod, processes, wait_for_health};
use e2e::names::PAUSE;
use e2e::vm::{Kernel, Vm};
use serde_json::json;

use super::pods::on_debian;
use super::{RealNode, VM_IMAGES};

const TOKEN: &str = "root/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A node, the token of its agent, and a pod there.
struct Side {
    node: String,
    token: String,
    pod: String,
}

pub(super) fn between_the_control_plane_and_debian(real: &RealNode) -> Result<()> {
    let node = real.cluster.node.name().to_owned();
    let manifest = pod("token-control-plane", &[]);
    let control_plane = Side { token: token_here(real, &node)?, pod: create(real.node(), &manifest)?, node };
    compare(real, control_plane, debian(real, &real.vm)?)
}

pub(super) fn between_two_debian_nodes(real: &RealNode) -> Result<()> {
    let second =
        Vm::start(&real.cluster.node, VM_NODES[1], Kernel::Stable, &Setup::prepare(&VM_IMAGES)?, PAUSE)?;
    compare(real, debian(real, &real.vm)?, debian(real, &second)?)
}

fn debian(real: &RealNode, vm: &Vm) -> Result<Side> {
    let name = format!("token-{}", vm.name());
    let mut manifest = on_debian(real, &name);
    manifest["spec"]["nodeName"] = json!(vm.name());
    let pod = create(real.node(), &manifest)?;
    // The object is written only when the agent runs, and so is the token there.
    wait_for_health(real.node(), &pod, "True", "AllWell")?;
    let token = vm.ssh(&format!("cat /proc/$(pgrep -x sandbox-health | head -1)/{TOKEN}"))?;
    Ok(Side { node: vm.name().to_owned(), token, pod })
}

/// The agent that runs on the machine itself.
fn token_here(real: &RealNode, node: &str) -> Result<String> {
    let selector = ["-l", "app.kubernetes.io/component=agent", "--field-selector"];
    let of_node = format!("spec.nodeName={node}");
    let uid = real.node().kubectl(
        ["-n", e2e::names::RELEASE_NAMESPACE, "get", "pods"].into_iter().chain(selector).chain([
            of_node.as_str(),
            "-o",
            "jsonpath={.items[0].metadata.uid}",
        ]),
    )?;
    let all = processes::all()?;
    let agent = all.iter().find(|process| process.is_part("agent") && process.is_of(&uid));
    let agent = agent.with_context(|| format!("no agent of the pod {uid} runs"))?;
    fs::read_to_string(format!("/proc/{}/{TOKEN}", agent.pid)).context("reading the agent's token")
}

fn compare(real: &RealNode, one: Side, other: Side) -> Result<()> {
    for side in [&one, &other] {
        wait_for_health(real.node(), &side.pod, "True", "AllWell")?;
    }
    for (mine, theirs) in [(&one, &other), (&other, &one)] {
        write(real, &mine.token, &mine.pod).context("the status of an object of its own node")?;
        let refused = write(real, &mine.token, &theirs.pod).err().context("it was not refused")?;
        let expected = format!(
            "denied request: the SandboxHealth is of {}, and the token is of {}",
            theirs.node, mine.node
        );
        ensure!(format!("{refused:#}").contains(&expected), "{refused:#}");
    }
    [one, other].iter().try_for_each(|side| delete(real.node(), &side.pod))
}

/// Writes the status that is there already.
fn write(real: &RealNode, token: &str, pod: &str) -> Result<()> {
    let node = real.node();
    let uid = e2e::kube::uid_of(node, pod)?;
    let patch = json!({"status": {"podUID": uid}}).to_string();
    let mut kubectl = node.command("kubectl");
    kubectl.env("KUBECONFIG", "/dev/null").args(node.api_server_arguments()).args(["--token", token.trim()]);
    kubectl.args(["patch", "sandboxhealth", pod, "--subresource=status", "--type=merge", "-p", &patch]);
    command::run(&mut kubectl)
}
