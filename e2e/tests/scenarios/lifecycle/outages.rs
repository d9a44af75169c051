//! What agent and controller need may be away, or older than they are: they wait, say so, and go on by themselves.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use e2e::build::project_file;
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, install_chart, pod, sandbox_health};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::{Value, json};

use super::Cluster;
use e2e::kube::{create, delete, http_get, pods_of};

/// The addresses of all pods of the release.
fn addresses(node: &Node) -> Result<Vec<String>> {
    let selector = "app.kubernetes.io/name=sandbox-health";
    let path = "jsonpath={.items[*].status.podIP}";
    let said = node.kubectl(["-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", path])?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

fn ready_says(node: &Node, address: &str, code: &str, reason: &str) -> Result<()> {
    retry::until(&format!("{address} is {code}"), TIMEOUT, || {
        let answer = http_get(node, address, "/readyz")?;
        let first = answer.lines().next().unwrap_or_default();
        ensure!(first.contains(code) && answer.contains(reason), "/readyz says {answer}");
        Ok(())
    })
}

pub(super) fn without_the_api_server(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("patient", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    let addresses = addresses(node)?;
    ensure!(addresses.len() == 3, "{addresses:?}");
    node.stop_component(Component::Apiserver)?;
    let said = addresses
        .iter()
        .try_for_each(|address| ready_says(node, address, "503", "API server: it does not answer"));
    // A part that waits is alive: it must not be restarted for it.
    let alive = addresses.iter().try_for_each(|address| {
        let answer = http_get(node, address, "/healthz")?;
        ensure!(answer.contains("200"), "/healthz says {answer}");
        Ok(())
    });
    node.start_component(Component::Apiserver)?;
    retry::until("the API server is back", TIMEOUT, || node.kubectl(["get", "--raw", "/readyz"]))?;
    said?;
    alive?;
    for address in &addresses {
        ready_says(node, address, "200", "")?;
    }
    let log = node.kubectl([
        "-n",
        RELEASE_NAMESPACE,
        "logs",
        "-l",
        "app.kubernetes.io/component=agent",
        "--tail=-1",
    ])?;
    ensure!(
        log.contains("waiting part=\"API server\"") && log.contains("going on part=\"API server\""),
        "{log}"
    );
    ensure!(sandbox_health(node, &pod)?["status"]["restarts"] == 0);
    ensure!(events_of(node, &pod, "SandboxRestarted")?.is_empty());
    delete(node, &pod)
}

const CRD: &str = "sandboxhealths.sandboxhealth.dev";
/// What each agent writes first of a pod.
const FIELD: &str =
    "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/sandbox/properties/bootID";

pub(super) fn with_an_older_crd(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let known = create(node, &pod("known", &[]))?;
    health_of(node, &known, "True", "AllWell")?;
    let agents = pods_of(node, "agent")?;
    let address = agents[0]["status"]["podIP"].as_str().context("an agent without an address")?;
    let crd = node.get(&["crd", CRD])?;
    let schema = crd.pointer(FIELD).context("the CRD has no such field")?;
    change_crd(node, &json!([{"op": "remove", "path": FIELD}]))?;
    let said = while_it_is_older(node, &known, address);
    change_crd(node, &json!([{"op": "add", "path": FIELD, "value": schema}]))?;
    said?;
    ready_says(node, address, "200", "")?;
    health_of(node, "outdated", "True", "AllWell")?;
    delete(node, "outdated")?;
    delete(node, &known)
}

fn while_it_is_older(node: &Node, known: &str, address: &str) -> Result<()> {
    let status = json!({"sandbox": {"id": "a", "startedAt": "2027-01-15T08:00:00Z", "bootID": "b"}});
    let row = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": known, "namespace": "default"}, "status": status,
    });
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), row.to_string())?;
    let path = file.path().display().to_string();
    retry::until("the API server goes by the older CRD", TIMEOUT, || {
        let apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=false"];
        let applied = node.kubectl(apply.into_iter().chain(["--subresource=status", "-f", &path]));
        let said = applied.map_or_else(|error| format!("{error:#}"), |_| "it takes the field".to_owned());
        ensure!(said.contains("field not declared in schema"), "{said}");
        Ok(())
    })?;
    node.apply(&pod("outdated", &[]))?;
    ready_says(
        node,
        address,
        "503",
        "CRD: the CRD sandboxhealths.sandboxhealth.dev is older than this program",
    )
}

fn change_crd(node: &Node, patch: &Value) -> Result<()> {
    node.kubectl(["patch", "crd", CRD, "--type=json", "-p", &patch.to_string()]).map(drop)
}

pub(super) fn without_the_crd(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["delete", "crd", CRD])?;
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pods", "--all", "--wait"])?;
    let waiting = retry::until("new pods run", TIMEOUT, || {
        let found = addresses(node)?;
        ensure!(found.len() == 3, "{found:?}");
        Ok(found)
    })?;
    // The replica that does not hold the Lease needs nothing yet.
    retry::until("the agent and the controller that works say so", TIMEOUT, || {
        let mut told = Vec::new();
        for address in &waiting {
            told.push(http_get(node, address, "/readyz")?);
        }
        let missing = "the CRD sandboxhealths.sandboxhealth.dev is not installed";
        let saying = told.iter().filter(|answer| answer.contains("503") && answer.contains(missing));
        ensure!(saying.count() == 2, "{told:?}");
        Ok(())
    })?;
    node.kubectl(["apply", "-f", &project_file("charts/sandbox-health/generated/crd.yaml")?])?;
    for address in &waiting {
        ready_says(node, address, "200", "")?;
    }
    let pod = create(node, &pod("late", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    delete(node, &pod)?;
    // Helm takes the CRD back that is its own.
    node.kubectl(["delete", "crd", CRD])?;
    install_chart(node).map(drop)
}

pub(super) fn without_the_right_to_write(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let agents = pods_of(node, "agent")?;
    let address = agents[0]["status"]["podIP"].as_str().context("an agent without an address")?;
    ready_says(node, address, "200", "")?;
    let role = node.get(&["clusterrole", "sandbox-health-agent"])?;
    let rules = role["rules"].as_array().context("a role without rules")?;
    let writes = |rule: &&Value| rule["resources"] == json!(["sandboxhealths/status"]);
    let fewer: Vec<_> = rules.iter().filter(|rule| !writes(rule)).collect();
    ensure!(fewer.len() + 1 == rules.len(), "{role}");
    set_rules(node, &json!(fewer))?;
    node.apply(&pod("unreported", &[]))?;
    let said = ready_says(node, address, "503", "writes: the API server refuses them");
    set_rules(node, &json!(rules))?;
    said?;
    ready_says(node, address, "200", "")?;
    health_of(node, "unreported", "True", "AllWell")?;
    delete(node, "unreported")
}

fn set_rules(node: &Node, rules: &Value) -> Result<()> {
    let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
    let patch = ["--type=json", "-p", &patch];
    node.kubectl(["patch", "clusterrole", "sandbox-health-agent"].into_iter().chain(patch)).map(drop)
}
