//! The chart as a GitOps tool installs it: rendered, and applied by server-side apply, without Helm in the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::build::project_file;
use e2e::cluster::Node;
use e2e::kube::{create, delete, in_release, install_chart, pod, wait_for_health, wait_for_rollout};
use e2e::names::{CONTROLLER, IMAGE_VALUES, RELEASE, RELEASE_NAMESPACE};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] = [("chart_works_without_helm", chart_works_without_helm)];

const CRD: &str = "sandboxhealths.sandboxhealth.dev";

fn chart_works_without_helm(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.helm(["uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait"])?;
    // Nothing of Helm's is left.
    node.kubectl(["delete", "crd", CRD])?;
    in_release(node, &["delete", "lease", CONTROLLER])?;
    let chart = project_file("charts/sandbox-health")?;
    let template = ["template", RELEASE, &chart, "--namespace", RELEASE_NAMESPACE, "--no-hooks"];
    let rendered = node.helm([&template[..], &["--set", IMAGE_VALUES]].concat())?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rendered.yaml");
    fs::write(&file, &rendered)?;
    let outcome = apply(node, &file).and_then(|()| {
        for component in ["agent", "controller"] {
            wait_for_rollout(node, component)?;
        }
        let watched = create(node, &pod("without-helm", &[]))?;
        wait_for_health(node, &watched, "True", "SandboxHealthy")?;
        let before = versions(node, &file)?;
        ensure!(before.len() == rendered.matches("\nkind: ").count(), "{before:?}");
        apply(node, &file)?;
        let after = versions(node, &file)?;
        ensure!(after == before, "the second apply changed an object: {before:#?}, {after:#?}");
        delete(node, &watched)
    });
    node.kubectl([Path::new("delete"), Path::new("--wait"), Path::new("-f"), &file])?;
    in_release(node, &["delete", "lease", CONTROLLER])?;
    install_chart(node)?;
    outcome
}

/// Without `--force-conflicts`: no other manager owns a field.
fn apply(node: &Node, file: &Path) -> Result<()> {
    node.kubectl([Path::new("apply"), Path::new("--server-side"), Path::new("-f"), file]).map(drop)
}

/// By kind and name, the field that changes with each change of an object. Writes to its status change the resourceVersion, but not the
/// generation.
fn versions(node: &Node, file: &Path) -> Result<BTreeMap<String, String>> {
    let objects =
        node.kubectl([Path::new("get"), Path::new("-o"), Path::new("json"), Path::new("-f"), file])?;
    let objects: serde_json::Value = serde_json::from_str(&objects)?;
    let objects = objects["items"].as_array().context("no list")?;
    let version = |object: &serde_json::Value| {
        let metadata = &object["metadata"];
        let field = if object["status"].is_null() { "resourceVersion" } else { "generation" };
        (format!("{} {}", object["kind"], metadata["name"]), format!("{field} {}", metadata[field]))
    };
    Ok(objects.iter().map(version).collect())
}
