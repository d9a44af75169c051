//! Without the API server, with an older CRD, without the CRD and without permissions agent and controller wait, report it on /readyz, and
//! continue by themselves.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use e2e::build::project_file;
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, delete, events_of, http_get, install_chart, pod, pods_of, sandbox_health, wait_for_health,
};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 4] = [
    ("api_outage_makes_components_unready", api_outage_makes_components_unready),
    ("missing_write_permission_makes_agent_unready", missing_write_permission_makes_agent_unready),
    ("older_crd_makes_agent_unready", older_crd_makes_agent_unready),
    ("missing_crd_makes_components_unready", missing_crd_makes_components_unready),
];

/// The addresses of all pods of the release.
fn addresses(node: &Node) -> Result<Vec<String>> {
    let selector = "app.kubernetes.io/name=sandbox-health";
    let path = "jsonpath={.items[*].status.podIP}";
    let output = node.kubectl(["-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", path])?;
    Ok(output.split_whitespace().map(str::to_owned).collect())
}

fn wait_for_readyz(node: &Node, address: &str, code: &str, reason: &str) -> Result<()> {
    retry::until(&format!("{address} is {code}"), TIMEOUT, || {
        let answer = http_get(node, address, "/readyz")?;
        let first = answer.lines().next().unwrap_or_default();
        ensure!(first.contains(code) && answer.contains(reason), "/readyz answers {answer}");
        Ok(())
    })
}

fn api_outage_makes_components_unready(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("patient", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let addresses = addresses(node)?;
    ensure!(addresses.len() == 3, "{addresses:?}");
    node.stop_component(Component::Apiserver)?;
    let unready = addresses
        .iter()
        .try_for_each(|address| wait_for_readyz(node, address, "503", "API server: no response"));
    // A component that waits is live: the kubelet must not restart it.
    let live = addresses.iter().try_for_each(|address| {
        let answer = http_get(node, address, "/healthz")?;
        ensure!(answer.contains("200"), "/healthz answers {answer}");
        Ok(())
    });
    node.start_component(Component::Apiserver)?;
    retry::until("the API server is back", TIMEOUT, || node.kubectl(["get", "--raw", "/readyz"]))?;
    unready?;
    live?;
    for address in &addresses {
        wait_for_readyz(node, address, "200", "")?;
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
        log.contains("not ready part=\"API server\"") && log.contains(" ready part=\"API server\""),
        "{log}"
    );
    ensure!(sandbox_health(node, &pod)?["status"]["restarts"] == 0);
    ensure!(events_of(node, &pod, "SandboxRestarted")?.is_empty());
    delete(node, &pod)
}

const CRD: &str = "sandboxhealths.sandboxhealth.dev";
/// A field of the first report of a pod.
const FIELD: &str =
    "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/sandbox/properties/bootID";

fn older_crd_makes_agent_unready(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let known = create(node, &pod("known", &[]))?;
    wait_for_health(node, &known, "True", "SandboxHealthy")?;
    let agents = pods_of(node, "agent")?;
    let address = agents[0]["status"]["podIP"].as_str().context("an agent without an address")?;
    let crd = node.get(&["crd", CRD])?;
    let schema = crd.pointer(FIELD).context("the CRD has no such field")?;
    change_crd(node, &json!([{"op": "remove", "path": FIELD}]))?;
    let outcome = while_it_is_older(node, &known, address);
    change_crd(node, &json!([{"op": "add", "path": FIELD, "value": schema}]))?;
    outcome?;
    wait_for_readyz(node, address, "200", "")?;
    wait_for_health(node, "outdated", "True", "SandboxHealthy")?;
    delete(node, "outdated")?;
    delete(node, &known)
}

fn while_it_is_older(node: &Node, known: &str, address: &str) -> Result<()> {
    let status = json!({"sandbox": {"id": "a", "startedAt": "2027-01-15T08:00:00Z", "bootID": "b"}});
    let object = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": known, "namespace": "default"}, "status": status,
    });
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), object.to_string())?;
    let path = file.path().display().to_string();
    retry::until("the API server uses the older CRD", TIMEOUT, || {
        let apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=false"];
        let applied = node.kubectl(apply.into_iter().chain(["--subresource=status", "-f", &path]));
        let output = applied.map_or_else(|error| format!("{error:#}"), |_| "it accepts the field".to_owned());
        ensure!(output.contains("field not declared in schema"), "{output}");
        Ok(())
    })?;
    node.apply(&pod("outdated", &[]))?;
    wait_for_readyz(
        node,
        address,
        "503",
        "CRD: the CRD sandboxhealths.sandboxhealth.dev is older than this program",
    )
}

fn change_crd(node: &Node, patch: &Value) -> Result<()> {
    node.kubectl(["patch", "crd", CRD, "--type=json", "-p", &patch.to_string()]).map(drop)
}

fn missing_crd_makes_components_unready(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["delete", "crd", CRD])?;
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pods", "--all", "--wait"])?;
    let waiting = retry::until("new pods run", TIMEOUT, || {
        let found = addresses(node)?;
        ensure!(found.len() == 3, "{found:?}");
        Ok(found)
    })?;
    // The standby does not need the CRD yet.
    retry::until("the agent and the leader report it", TIMEOUT, || {
        let mut answers = Vec::new();
        for address in &waiting {
            answers.push(http_get(node, address, "/readyz")?);
        }
        let missing = "the CRD sandboxhealths.sandboxhealth.dev is not installed";
        let reporting = answers.iter().filter(|answer| answer.contains("503") && answer.contains(missing));
        ensure!(reporting.count() == 2, "{answers:?}");
        Ok(())
    })?;
    node.kubectl(["apply", "-f", &project_file("charts/sandbox-health/generated/crd.yaml")?])?;
    for address in &waiting {
        wait_for_readyz(node, address, "200", "")?;
    }
    let pod = create(node, &pod("late", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    delete(node, &pod)?;
    // Helm adopts no CRD that it did not create.
    node.kubectl(["delete", "crd", CRD])?;
    install_chart(node).map(drop)
}

fn missing_write_permission_makes_agent_unready(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let agents = pods_of(node, "agent")?;
    let address = agents[0]["status"]["podIP"].as_str().context("an agent without an address")?;
    wait_for_readyz(node, address, "200", "")?;
    let role = node.get(&["clusterrole", "sandbox-health-agent"])?;
    let rules = role["rules"].as_array().context("a role without rules")?;
    let writes = |rule: &&Value| rule["resources"] == json!(["sandboxhealths/status"]);
    let fewer: Vec<_> = rules.iter().filter(|rule| !writes(rule)).collect();
    ensure!(fewer.len() + 1 == rules.len(), "{role}");
    set_rules(node, &json!(fewer))?;
    node.apply(&pod("unreported", &[]))?;
    let outcome = wait_for_readyz(node, address, "503", "writes: the API server refuses them");
    set_rules(node, &json!(rules))?;
    outcome?;
    wait_for_readyz(node, address, "200", "")?;
    wait_for_health(node, "unreported", "True", "SandboxHealthy")?;
    delete(node, "unreported")
}

fn set_rules(node: &Node, rules: &Value) -> Result<()> {
    let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
    let patch = ["--type=json", "-p", &patch];
    node.kubectl(["patch", "clusterrole", "sandbox-health-agent"].into_iter().chain(patch)).map(drop)
}
