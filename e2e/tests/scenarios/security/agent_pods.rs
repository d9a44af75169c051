//! On which nodes agents are expected, and agents that admission refuses.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    controller_exposes, create, delete, in_release, install_chart, pod, sandbox_health,
    wait_for_controller_metric, wait_for_health, wait_for_rollout,
};
use serde_json::json;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 2] = [
    ("virtual_node_gets_no_agent_and_is_not_reported", virtual_node_gets_no_agent),
    ("refused_agents_are_reported_with_the_reason", refused_agents_are_reported),
];

const VIRTUAL: &str = "virtual";
/// The controller reports a node without an agent after a minute.
const SECONDS: u32 = 70;

/// A Node object without a kubelet, as virtual-kubelet registers it. This test keeps it ready.
fn virtual_node_gets_no_agent(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let labels =
        json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "type": "virtual-kubelet"});
    node.apply(
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": VIRTUAL, "labels": labels}}),
    )?;
    let outcome = while_virtual_node_is_ready(node).and_then(|()| of_fargate_until_it_has_no_label(node));
    node.kubectl(["delete", "node", VIRTUAL])?;
    // Its pod was never bound. The DaemonSet controller counts again only after the pod's deletion.
    let pending = "--field-selector=status.phase=Pending";
    in_release(node, &["delete", "pods", "-l", "app.kubernetes.io/component=agent", pending])?;
    wait_for_desired_agents(node, 1)?;
    outcome
}

fn of_fargate_until_it_has_no_label(node: &Node) -> Result<()> {
    const FARGATE: &str = "eks.amazonaws.com/compute-type";
    node.kubectl(["label", "node", VIRTUAL, "type-", &format!("{FARGATE}=fargate")])?;
    install_chart(node)?;
    wait_for_desired_agents(node, 1)?;
    // Without the label it is a node as any other.
    node.kubectl(["label", "node", VIRTUAL, &format!("{FARGATE}-")])?;
    wait_for_desired_agents(node, 2)
}

fn wait_for_desired_agents(node: &Node, agents: u32) -> Result<()> {
    retry::until("the DaemonSet has the number of agents", TIMEOUT, || {
        let desired = desired_agents(node)?;
        ensure!(desired == agents.to_string(), "{desired} agents, not {agents}");
        Ok(())
    })
}

fn desired_agents(node: &Node) -> Result<String> {
    let desired = "jsonpath={.status.desiredNumberScheduled}";
    in_release(node, &["get", "daemonset/sandbox-health-agent", "-o", desired])
}

fn while_virtual_node_is_ready(node: &Node) -> Result<()> {
    set_ready(node, 0)?;
    // It waits for all agents.
    install_chart(node)?;
    for second in (0..SECONDS).step_by(10) {
        set_ready(node, second)?;
        thread::sleep(Duration::from_secs(10));
    }
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let ready = node.kubectl(["get", "node", VIRTUAL, "-o", ready])?;
    ensure!(ready == "True", "the node is not ready: {ready}");
    let desired = desired_agents(node)?;
    ensure!(desired == "1", "{desired} agents");
    controller_exposes(node, "sandboxhealth_nodes{state=\"Ready\"} 1")?;
    ensure!(controller_exposes(node, ONE_AGENT_MISSING).is_err(), "an agent is reported as missing");
    Ok(())
}

/// Each heartbeat has another time, or the control plane finds the node lost.
fn set_ready(node: &Node, second: u32) -> Result<()> {
    let heartbeat = format!("2027-01-15T08:{:02}:{:02}Z", second / 60, second % 60);
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": heartbeat,
        "lastTransitionTime": "2027-01-15T08:00:00Z",
    });
    let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "0"});
    let status = json!({"conditions": [ready], "capacity": resources, "allocatable": resources});
    let patch = json!({ "status": status }).to_string();
    node.kubectl(["patch", "node", VIRTUAL, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

const ONE_AGENT_MISSING: &str = "sandboxhealth_nodes{state=\"AgentMissing\"} 1";
const CREATION_FAILING: &str = "sandboxhealth_agent_creation_failing 1";
const POLICY: &str = "no-host-pid";
const REFUSAL: &str = "the PID namespace of the node is forbidden here";

fn refused_agents_are_reported(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("without-agent", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]);
    let validation = json!({"expression": "!object.spec.?hostPID.orValue(false)", "message": REFUSAL});
    node.apply(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": POLICY},
        "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [validation]},
    }))?;
    node.apply(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    }))?;
    let outcome = while_host_pid_is_refused(node, &pod);
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        node.kubectl(["delete", kind, POLICY])?;
    }
    retry::until("the policy is gone", TIMEOUT, || create_in_host(node))?;
    // The DaemonSet controller retries at long intervals by now, and at once when its object changes.
    in_release(node, &["rollout", "restart", "daemonset/sandbox-health-agent"])?;
    wait_for_rollout(node, "agent")?;
    outcome?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    retry::until("the metric is 0 again", TIMEOUT, || {
        ensure!(controller_exposes(node, CREATION_FAILING).is_err());
        Ok(())
    })?;
    delete(node, &pod)
}

/// A dry run.
fn create_in_host(node: &Node) -> Result<String> {
    let host = "--overrides={\"spec\":{\"hostPID\":true}}";
    node.kubectl(["run", "in-host", "--image=none", "--dry-run=server", host])
}

fn while_host_pid_is_refused(node: &Node, pod: &str) -> Result<()> {
    retry::until("the policy is in force", TIMEOUT, || {
        let error = create_in_host(node).err().context("the pod is accepted")?;
        ensure!(format!("{error:#}").contains(REFUSAL), "{error:#}");
        Ok(())
    })?;
    in_release(node, &["delete", "pods", "-l", "app.kubernetes.io/component=agent", "--wait"])?;
    wait_for_health(node, pod, "Unknown", "AgentMissing")?;
    retry::until("the refusal's message is shown", TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        let message = object["status"]["conditions"][0]["message"].as_str().context("no message")?;
        ensure!(message.contains("agents cannot be created: ") && message.contains(REFUSAL), "{message}");
        // It does not change with each attempt.
        ensure!(message.contains("'sandbox-health-agent'"), "{message}");
        Ok(())
    })?;
    wait_for_controller_metric(node, CREATION_FAILING)?;
    controller_exposes(node, ONE_AGENT_MISSING)
}
