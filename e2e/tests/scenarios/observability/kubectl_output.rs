//! The output of kubectl for the resource, read by people in a terminal.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::kube::{as_account, create, delete, pod, wait_for_health};
use e2e::names::CONTROLLER;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] =
    [("kubectl_output_fits_a_terminal", kubectl_output_fits_a_terminal)];

const TERMINAL: usize = 120;
/// A namespace with many objects.
const CROWD: &str = "crowd";
/// As long as the name of most Deployments' pods: 18 characters of the Deployment's, 17 of the controllers'.
const NAME: &str = "checkout-payments1-7c5ddbdf54-x2x9p";
/// The widest of the usual reasons is so much wider than the one in the output.
const WIDER: usize = "ZombiesAccumulating".len() - "SandboxHealthy".len();

fn kubectl_output_fits_a_terminal(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create(node, &pod(NAME, &[]))?;
    let timeout = "--timeout=90s";
    node.kubectl(["wait", "--for=condition=Healthy", &format!("sandboxhealth/{NAME}"), timeout])?;
    wait_for_health(node, NAME, "True", "SandboxHealthy")?;

    let list = node.kubectl(["get", "sbh", NAME])?;
    let header: Vec<_> = list.lines().next().context("no header")?.split_whitespace().collect();
    let columns = ["NAME", "HEALTHY", "REASON", "RESTARTS", "ZOMBIES", "REAPED", "LAST-RESTART", "AGE"];
    ensure!(header == columns, "{list}");
    let widest = list.lines().map(|line| line.trim_end().chars().count()).max().unwrap_or(0) + WIDER;
    ensure!(widest <= TERMINAL, "{widest} columns with the longest reason:\n{list}");
    let wide = node.kubectl(["get", "sbh", NAME, "-o", "wide"])?;
    let header: Vec<_> = wide.lines().next().context("no header")?.split_whitespace().collect();
    ensure!(
        header == [&columns[..], &["PROCESSES", "THREADS", "NODE", "SANDBOX", "SOURCE", "PAUSE"]].concat(),
        "{wide}"
    );

    let everything = node.kubectl(["get", "observability", "-o", "name"])?;
    let object = format!("sandboxhealth.sandboxhealth.dev/{NAME}");
    ensure!(everything.lines().any(|line| line == object), "the category has {everything}");
    let described = node.kubectl(["describe", "sandboxhealth", NAME])?;
    ensure!(described.contains("Reason:") && described.contains("SandboxHealthy"), "{described}");
    delete(node, NAME)?;
    thirty_objects_fit(node)?;
    fields_are_explained(cluster)
}

/// With each kind of problem. The objects have no pods, so that neither agent nor controller writes them.
fn thirty_objects_fit(node: &Node) -> Result<()> {
    node.kubectl(["create", "namespace", CROWD])?;
    let states = [
        ("True", "SandboxHealthy", 0, 0, "2026-11-20T00:00:00Z"),
        ("False", "ZombiesAccumulating", 1, 1024, "2026-01-01T00:00:00Z"),
        ("False", "PauseExited", 1000, 0, "2026-11-25T12:00:00Z"),
        ("Unknown", "StatusFormatUnknown", 12, 3, "2020-01-01T00:00:00Z"),
        ("Unknown", "AgentNotReady", 0, 0, "2026-11-25T23:59:00Z"),
    ];
    let objects = (0..30).zip(states.iter().cycle()).map(|(number, &(healthy, reason, restarts, zombies, time))| {
        let condition = json!({
            "type": "Healthy", "status": healthy, "reason": reason, "message": "", "lastTransitionTime": time,
        });
        let mut status = json!({
            "restarts": restarts,
            "processes": {
                "zombies": zombies, "zombiesPeak": zombies, "total": 2000, "reapedTotal": 1_234_567, "observedAt": time,
            },
            "conditions": [condition],
        });
        if restarts > 0 {
            status["lastRestart"] = json!({"time": time, "reason": "PauseExited", "message": ""});
        }
        object(&format!("{}{number:02}", &NAME[..NAME.len() - 2]), &status)
    });
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("objects.json");
    fs::write(
        &file,
        json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()}).to_string(),
    )?;
    let file = file.to_str().context("a path that is no UTF-8")?;
    node.kubectl(["create", "-f", file])?;
    let account = as_account(CONTROLLER);
    let apply =
        ["apply", "--server-side", "--subresource=status", "--field-manager=e2e", &account, "-f", file];
    node.kubectl(apply)?;
    let list = node.kubectl(["get", "sbh", "-n", CROWD])?;
    for (healthy, reason, ..) in states {
        let shown =
            list.lines().filter(|line| line.contains(&format!(" {healthy} ")) && line.contains(reason));
        ensure!(shown.count() == 6, "{healthy} for {reason}:\n{list}");
    }
    let long: Vec<_> = list.lines().filter(|line| line.trim_end().chars().count() > TERMINAL).collect();
    ensure!(list.lines().count() == 31 && long.is_empty(), "{list}");
    node.kubectl(["delete", "namespace", CROWD, "--wait=false"]).map(drop)
}

fn object(name: &str, status: &Value) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": name, "namespace": CROWD},
        "spec": {"podName": name, "podUID": "none", "nodeName": "elsewhere"},
        "status": status,
    })
}

/// `kubectl explain` has each field of the schema with its description, in lines that fit.
fn fields_are_explained(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let crd = node.get(&["crd", "sandboxhealths.sandboxhealth.dev"])?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    let explained = node.kubectl(["explain", "sandboxhealth.status"])?;
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let fields = schema["properties"].as_object().context("status has no fields")?;
    for (field, property) in fields {
        let description =
            property["description"].as_str().with_context(|| format!("{field} has no description"))?;
        ensure!(
            explained.lines().any(|line| line.trim_start().starts_with(&format!("{field}\t"))),
            "{field} is not in {explained}"
        );
        ensure!(words(&explained).contains(&words(description)), "{description:?} is not in {explained}");
    }
    let long: Vec<_> = explained.lines().filter(|line| line.chars().count() > TERMINAL).collect();
    ensure!(fields.len() > 10 && long.is_empty(), "{long:#?}");
    Ok(())
}
