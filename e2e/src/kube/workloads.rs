//! The chart's workloads: install, restart, kill and remove them. A removed workload is restored whether or not the test in between
//! succeeds, because other tests follow.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::processes;
use crate::build::{Image, project_file};
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};
use crate::names::{IMAGE_VALUES, RELEASE, RELEASE_NAMESPACE};

const DAEMONSET: &str = "daemonset/sandbox-health-agent";
const DEPLOYMENT: &str = "deployment/sandbox-health-controller";

/// Installs the chart, or upgrades it, and waits until agent and controller are ready.
///
/// # Errors
///
/// When Helm fails.
pub fn install_chart(node: &Node) -> Result<String> {
    let chart = project_file("charts/sandbox-health")?;
    node.helm([
        "upgrade",
        "--install",
        RELEASE,
        &chart,
        "--namespace",
        RELEASE_NAMESPACE,
        "--create-namespace",
        "--set",
        IMAGE_VALUES,
        "--wait",
    ])
}

/// kubectl in the namespace of the release.
///
/// # Errors
///
/// When kubectl fails.
pub fn in_release(node: &Node, arguments: &[&str]) -> Result<String> {
    node.kubectl([&["-n", RELEASE_NAMESPACE], arguments].concat())
}

fn selector(component: &str) -> String {
    format!("app.kubernetes.io/component={component}")
}

/// Waits until every pod of a component is ready.
///
/// # Errors
///
/// When it takes more than two minutes.
pub fn wait_for_rollout(node: &Node, component: &str) -> Result<()> {
    let workload = if component == "agent" { DAEMONSET } else { DEPLOYMENT };
    in_release(node, &["rollout", "status", workload, "--timeout=120s"]).map(drop)
}

/// Deletes the pods of a component and waits until their replacements are ready.
pub fn restart(node: &Node, component: &str) -> Result<()> {
    in_release(node, &["delete", "pods", "-l", &selector(component), "--wait"])?;
    wait_for_rollout(node, component)
}

/// The pods of a component that are not being deleted.
pub fn pods_of(node: &Node, component: &str) -> Result<Vec<Value>> {
    let selector = selector(component).replace('/', "%2F").replace('=', "%3D");
    let list = node.read(&format!("/api/v1/namespaces/{RELEASE_NAMESPACE}/pods?labelSelector={selector}"))?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// Kills the process of a component in the pod with this UID and waits until it has ended. The kubelet restarts its container.
pub fn kill_in_pod(component: &str, pod_uid: &str) -> Result<()> {
    let found = processes::all()?;
    let process = found.iter().find(|process| process.is_part(component) && process.is_of(pod_uid));
    let process = process.with_context(|| format!("no {component} runs in {pod_uid}"))?;
    process.signal(Signal::SIGKILL)?;
    retry::until("it has ended", TIMEOUT, || {
        let runs =
            processes::all()?.iter().any(|now| (now.pid, now.started) == (process.pid, process.started));
        ensure!(!runs, "{process:?} runs");
        Ok(())
    })
}

/// Calls `act` while there is no agent.
pub fn without_agents<T>(node: &Node, act: impl FnOnce() -> Result<T>) -> Result<T> {
    // A node selector that matches no node leaves the DaemonSet without pods.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"no":"where"}}}}}"#;
    in_release(node, &["patch", DAEMONSET, "-p", nowhere])?;
    let gone = ["wait", "--for=delete", "pod", "-l", &selector("agent"), "--timeout=120s"];
    let outcome = in_release(node, &gone).and_then(|_| act());
    let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/no"}]"#;
    in_release(node, &["patch", DAEMONSET, "--type=json", "-p", back])?;
    wait_for_rollout(node, "agent")?;
    outcome
}

/// Calls `act` while there is no controller.
pub fn without_controllers<T>(node: &Node, act: impl FnOnce() -> Result<T>) -> Result<T> {
    in_release(node, &["scale", DEPLOYMENT, "--replicas=0"])?;
    let gone = ["wait", "--for=delete", "pod", "-l", &selector("controller"), "--timeout=120s"];
    let outcome = in_release(node, &gone).and_then(|_| act());
    in_release(node, &["scale", DEPLOYMENT, "--replicas=2"])?;
    wait_for_rollout(node, "controller")?;
    outcome
}

/// Calls `act` while the chart has other values, in the syntax of `--set`.
pub fn with_values<T>(node: &Node, values: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    // kubectl owns the fields that another test has patched and restored (node_visibility.rs: the agent's template).
    let outcome = upgrade_chart(node, values, &["--wait", "--force-conflicts"]).and_then(|()| act());
    install_chart(node)?;
    outcome
}

/// Upgrades the chart with further values, in the syntax of `--set`.
///
/// # Errors
///
/// When Helm fails.
pub fn upgrade_chart(node: &Node, values: &str, options: &[&str]) -> Result<()> {
    let chart = project_file("charts/sandbox-health")?;
    let upgrade = ["upgrade", RELEASE, &chart, "--namespace", RELEASE_NAMESPACE, "--reuse-values", "--set"];
    node.helm([&upgrade[..], &[values], options].concat()).map(drop)
}

/// Calls `act` while new sandboxes get another pause image.
pub fn with_sandbox_image(node: &Node, image: Image, act: impl FnOnce() -> Result<()>) -> Result<()> {
    node.use_sandbox_image(image)?;
    let outcome = act();
    node.use_sandbox_image(Image::Pause)?;
    outcome
}
