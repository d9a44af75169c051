//! Agent and controller restarted, killed and taken away, and pods made by the dozen: what the tests of exactness have in
//! common. What was taken away is brought back whatever comes of it, for other tests follow.

use anyhow::{Context as _, Result, ensure};
use e2e::node::Node;
use e2e::story::{PATIENCE, RELEASE, RELEASE_NAMESPACE, health_of, install_chart, pod, project_file};
use e2e::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::processes;
use super::rows::http_get;

const DAEMONSET: &str = "daemonset/sandbox-health-agent";
const DEPLOYMENT: &str = "deployment/sandbox-health-controller";

pub(super) fn in_release(node: &Node, arguments: &[&str]) -> Result<String> {
    node.kubectl([&["-n", RELEASE_NAMESPACE], arguments].concat())
}

fn selector(component: &str) -> String {
    format!("app.kubernetes.io/component={component}")
}

pub(super) fn rolled_out(node: &Node, component: &str) -> Result<()> {
    let workload = if component == "agent" { DAEMONSET } else { DEPLOYMENT };
    in_release(node, &["rollout", "status", workload, "--timeout=120s"]).map(drop)
}

/// Deletes the pods of a component and waits for those that take their place.
pub(super) fn restart(node: &Node, component: &str) -> Result<()> {
    in_release(node, &["delete", "pods", "-l", &selector(component), "--wait"])?;
    rolled_out(node, component)
}

/// The pods of a component that are not being deleted.
pub(super) fn pods_of(node: &Node, component: &str) -> Result<Vec<Value>> {
    let list = node.get(&["-n", RELEASE_NAMESPACE, "pods", "-l", &selector(component)])?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// Whether the controller that works shows this series to Prometheus.
pub(super) fn controller_shows(node: &Node, series: &str) -> Result<()> {
    wait::until(&format!("a controller shows {series}"), PATIENCE, || {
        for pod in pods_of(node, "controller")? {
            let address = pod["status"]["podIP"].as_str().context("a pod without an address")?;
            if http_get(node, address, "/metrics")?.lines().any(|line| line == series) {
                return Ok(());
            }
        }
        anyhow::bail!("none does")
    })
}

/// Kills the process of a component in the pod with this UID, so that it can neither write nor say anything any more. The
/// kubelet starts its container again.
pub(super) fn kill_in_pod(component: &str, pod_uid: &str) -> Result<()> {
    let found = processes::all()?;
    let process = found.iter().find(|process| process.is_part(component) && process.is_of(pod_uid));
    let process = process.with_context(|| format!("no {component} runs in {pod_uid}"))?;
    process.signal(Signal::SIGKILL)?;
    wait::until("it has ended", PATIENCE, || {
        let runs =
            processes::all()?.iter().any(|now| (now.pid, now.started) == (process.pid, process.started));
        ensure!(!runs, "{process:?} runs");
        Ok(())
    })
}

/// Does something while there is no agent.
pub(super) fn without_agents<T>(node: &Node, act: impl FnOnce() -> Result<T>) -> Result<T> {
    // Without a node to run on, the DaemonSet has no pod.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"no":"where"}}}}}"#;
    in_release(node, &["patch", DAEMONSET, "-p", nowhere])?;
    let gone = ["wait", "--for=delete", "pod", "-l", &selector("agent"), "--timeout=120s"];
    let outcome = in_release(node, &gone).and_then(|_| act());
    let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/no"}]"#;
    in_release(node, &["patch", DAEMONSET, "--type=json", "-p", back])?;
    rolled_out(node, "agent")?;
    outcome
}

/// Does something while there is no controller.
pub(super) fn without_controllers<T>(node: &Node, act: impl FnOnce() -> Result<T>) -> Result<T> {
    in_release(node, &["scale", DEPLOYMENT, "--replicas=0"])?;
    let gone = ["wait", "--for=delete", "pod", "-l", &selector("controller"), "--timeout=120s"];
    let outcome = in_release(node, &gone).and_then(|_| act());
    in_release(node, &["scale", DEPLOYMENT, "--replicas=2"])?;
    rolled_out(node, "controller")?;
    outcome
}

/// Does something while the chart has other values, as `--set` takes them.
pub(super) fn with_values<T>(node: &Node, values: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let chart = project_file("charts/sandbox-health")?;
    let upgrade = ["upgrade", RELEASE, &chart, "--namespace", RELEASE_NAMESPACE];
    // What another story changed by hand and back is kubectl's in the eyes of the API server (sight.rs: the agent's flags).
    let others = ["--reuse-values", "--set", values, "--wait", "--force-conflicts"];
    let outcome = node.helm(upgrade.into_iter().chain(others)).and_then(|_| act());
    install_chart(node)?;
    outcome
}

/// A pod of a fleet, with its UID.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) uid: String,
}

/// So many pods at once, each of them healthy.
pub(super) fn create_fleet(node: &Node, fleet: &str, size: usize) -> Result<Vec<Member>> {
    let pods: Vec<_> = (1..=size)
        .map(|number| {
            let mut pod = pod(&format!("{fleet}-{number}"), &[]);
            pod["metadata"]["labels"] = json!({"fleet": fleet});
            pod
        })
        .collect();
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    let label = format!("fleet={fleet}");
    node.kubectl(["wait", "--for=condition=Ready", "pods", "-l", &label, "--timeout=300s"])?;
    let list = node.get(&["pods", "-l", &label])?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let members =
        list["items"].as_array().context("no list")?.iter().map(|pod| {
            Ok(Member { name: text(&pod["metadata"]["name"])?, uid: text(&pod["metadata"]["uid"])? })
        });
    let members: Vec<_> = members.collect::<Result<_>>()?;
    ensure!(members.len() == size, "{members:?}");
    for member in &members {
        health_of(node, &member.name, "True", "AllWell")?;
    }
    Ok(members)
}

pub(super) fn delete_fleet(node: &Node, fleet: &str) -> Result<()> {
    node.kubectl(["delete", "pods", "-l", &format!("fleet={fleet}"), "--wait"]).map(drop)
}

/// How often the kubelet says that the containers of a pod were started anew; the least of them.
pub(super) fn container_restarts(pod: &Value) -> Option<u64> {
    pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .map(|status| status["restartCount"].as_u64())
        .min()?
}

/// Waits until the kubelet says that a pod's containers were started anew so often, or more: now and then it tries to start one
/// in a sandbox that is going, and counts that, too.
pub(super) fn containers_restarted(node: &Node, pod: &str, times: u64) -> Result<()> {
    wait::until(&format!("{pod} was started anew {times} times"), PATIENCE, || {
        let said = container_restarts(&node.get(&["pod", pod])?);
        ensure!(said >= Some(times), "its containers were started anew {said:?} times");
        Ok(())
    })
}
