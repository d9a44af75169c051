//! The token of an agent may write objects of its own node only.

use anyhow::{Context as _, Result, ensure};
use e2e::host::command;
use e2e::kube::{create, delete, pod, pods_of, uid_of, wait_for_health};
use e2e::names::RELEASE_NAMESPACE;
use e2e::vm::Vm;
use serde_json::{Value, json};

use super::RealNode;
use super::pods::on_debian;

/// A node, the token of its agent, and a pod there.
struct Side {
    node: String,
    token: String,
    pod: String,
}

pub(super) fn between_the_control_plane_and_debian(real: &RealNode) -> Result<()> {
    let node = real.cluster.node.name().to_owned();
    let manifest = pod("token-control-plane", &[]);
    let control_plane =
        Side { token: token_of_agent(real, &node)?, pod: create(real.node(), &manifest)?, node };
    compare(real, control_plane, debian(real, &real.vm)?)
}

pub(super) fn between_two_debian_nodes(real: &RealNode) -> Result<()> {
    compare(real, debian(real, &real.vm)?, debian(real, &real.crio()?.vm)?)
}

fn debian(real: &RealNode, vm: &Vm) -> Result<Side> {
    let name = format!("token-{}", vm.name());
    let mut manifest = on_debian(real, &name);
    manifest["spec"]["nodeName"] = json!(vm.name());
    let pod = create(real.node(), &manifest)?;
    let token = token_of_agent(real, vm.name())?;
    Ok(Side { node: vm.name().to_owned(), token, pod })
}

/// A token such as the kubelet requests for the agent's pod on this node: bound to the pod, and so to the node.
fn token_of_agent(real: &RealNode, node: &str) -> Result<String> {
    let agents = pods_of(real.node(), "agent")?;
    let agent = agents.iter().find(|agent| agent["spec"]["nodeName"] == node);
    let agent = &agent.with_context(|| format!("no agent runs on {node}"))?["metadata"];
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let (name, uid) = (text(&agent["name"])?, text(&agent["uid"])?);
    let request =
        ["-n", RELEASE_NAMESPACE, "create", "token", "sandbox-health-agent", "--bound-object-kind=Pod"];
    let bound_to = [format!("--bound-object-name={name}"), format!("--bound-object-uid={uid}")];
    real.node().kubectl(request.map(str::to_owned).into_iter().chain(bound_to))
}

fn compare(real: &RealNode, one: Side, other: Side) -> Result<()> {
    for side in [&one, &other] {
        wait_for_health(real.node(), &side.pod, "True", "SandboxHealthy")?;
    }
    for (own, foreign) in [(&one, &other), (&other, &one)] {
        write(real, &own.token, &own.pod).context("the status of an object of its own node")?;
        let refused = write(real, &own.token, &foreign.pod).err().context("it was not refused")?;
        let expected = format!(
            "denied request: the SandboxHealth belongs to node {}, and the token to node {}",
            foreign.node, own.node
        );
        ensure!(format!("{refused:#}").contains(&expected), "{refused:#}");
    }
    [one, other].iter().try_for_each(|side| delete(real.node(), &side.pod))
}

/// Writes the unchanged status as an agent writes it: by server-side apply, which needs no permission to read.
fn write(real: &RealNode, token: &str, pod: &str) -> Result<()> {
    let node = real.node();
    let manifest = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": pod, "namespace": "default"},
        "status": {"podUID": uid_of(node, pod)?},
    });
    let mut shell = node.command("sh");
    shell.env("KUBECONFIG", "/dev/null").args([
        "-c",
        "printf %s \"$0\" | kubectl \"$@\"",
        &manifest.to_string(),
    ]);
    shell.args(node.api_server_arguments()).args(["--token", token.trim(), "apply", "--server-side"]);
    shell.args(["--subresource=status", "--field-manager=token-test", "--validate=false", "-f", "-"]);
    command::run(&mut shell)
}
