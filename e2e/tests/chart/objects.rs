//! The rendered objects: their kinds, names and labels, and the CRD.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::helm::{FULLNAME, Helm, NAMESPACE, RELEASE, chart, read, yaml};
use crate::rendered::list;

pub(super) fn strict_lint_passes(helm: &Helm) -> Result<()> {
    helm.succeed(&["lint", "--strict"], &[]).map(drop)
}

/// A user of a released package has the chart's directory only, so a reference to another file must name the source.
pub(super) fn references_outside_package_name_source() -> Result<()> {
    let mut directories = vec![chart()];
    let mut found = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            for line in
                text.lines().filter(|line| ["docs/", "e2e/", "../"].iter().any(|of| line.contains(of)))
            {
                found += 1;
                ensure!(line.contains("source"), "{}: {line}", path.display());
            }
        }
    }
    ensure!(found > 0, "the chart has no such reference");
    Ok(())
}

pub(super) fn every_object_has_standard_labels(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let templates = rendered.workloads()?.map(|workload| &workload["spec"]["template"]);
    for object in rendered.0.iter().chain(templates) {
        let labels = &object["metadata"]["labels"];
        for (label, value) in [
            ("app.kubernetes.io/name", "sandbox-health"),
            ("app.kubernetes.io/instance", RELEASE),
            ("app.kubernetes.io/part-of", "sandbox-health"),
            ("app.kubernetes.io/version", "0.1.0"),
            ("app.kubernetes.io/managed-by", "Helm"),
        ] {
            ensure!(labels[label] == value, "{label} of {object}");
        }
        // A pod template has no kind. With the chart's version in it, a newer chart with the same image would restart every pod.
        let chart = if object["kind"].is_null() { Value::Null } else { "sandbox-health-0.1.0".into() };
        ensure!(labels["helm.sh/chart"] == chart, "helm.sh/chart of {object}");
        ensure!(labels["app.kubernetes.io/component"].is_string(), "component of {object}");
    }
    Ok(())
}

pub(super) fn only_listed_objects_are_rendered(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let cluster_wide = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    let mut found = BTreeSet::new();
    for object in &rendered.0 {
        let (kind, metadata) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        found.insert(format!("{kind} {}", name.trim_start_matches(FULLNAME).trim_start_matches('-')));
        let namespace = if cluster_wide.contains(&kind) { Value::Null } else { NAMESPACE.into() };
        ensure!(metadata["namespace"] == namespace, "namespace of {kind} {name}");
    }
    let expected = [
        "ClusterRole agent",
        "ClusterRole controller",
        "ClusterRole view",
        "ClusterRoleBinding agent",
        "ClusterRoleBinding controller",
        "CustomResourceDefinition sandboxhealths.sandboxhealth.dev",
        "DaemonSet agent",
        "Deployment controller",
        "Pod test",
        "PodDisruptionBudget controller",
        "Role controller",
        "Role test",
        "RoleBinding controller",
        "RoleBinding test",
        "ServiceAccount agent",
        "ServiceAccount controller",
        "ServiceAccount test",
        "ValidatingAdmissionPolicy agent",
        "ValidatingAdmissionPolicy status",
        "ValidatingAdmissionPolicyBinding agent",
        "ValidatingAdmissionPolicyBinding status",
    ];
    let expected: BTreeSet<_> = expected.map(String::from).into();
    ensure!(found == expected, "{found:#?}");
    ensure!(rendered.0.len() == expected.len(), "an object is rendered twice");
    Ok(())
}

/// Comments are for readers of the source. The cluster and the release's Secret must not store them.
pub(super) fn rendered_objects_have_no_comments(helm: &Helm) -> Result<()> {
    let set = ["networkPolicy.enabled=true", "prometheusRule.enabled=true", "openshift.scc.create=true"];
    let rendered = helm.succeed(&["template", RELEASE], &set)?;
    let comments = rendered.lines().filter(|line| line.trim_start().starts_with('#'));
    let prose: Vec<_> = comments.filter(|line| !line.starts_with("# Source: ")).collect();
    ensure!(prose.is_empty(), "{prose:#?}");
    for object in &helm.render(&set)?.0 {
        let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
        for (key, value) in annotations {
            ensure!(value.as_str().is_some_and(|value| value.len() < 60), "{key}: {value}");
        }
    }
    Ok(())
}

pub(super) fn user_labels_do_not_change_selectors(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[
        "commonLabels.app\\.kubernetes\\.io/instance=other",
        "commonLabels.app\\.kubernetes\\.io/component=other",
        "agent.podLabels.team=a",
        "agent.podLabels.app\\.kubernetes\\.io/name=other",
        "controller.podLabels.team=a",
        "controller.podLabels.app\\.kubernetes\\.io/name=other",
    ])?;
    for workload in rendered.workloads()? {
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        ensure!(labels["team"] == "a", "{labels}");
        let selector = workload["spec"]["selector"]["matchLabels"].as_object().context("no selector")?;
        ensure!(selector.len() == 3, "{selector:?}");
        ensure!(
            selector.iter().all(|(key, value)| &labels[key] == value),
            "{selector:?} does not select {labels}"
        );
    }
    let [agent, controller] = rendered.workloads()?;
    ensure!(agent["spec"]["selector"] != controller["spec"]["selector"], "both select the same pods");
    Ok(())
}

pub(super) fn long_release_name_gives_valid_names(helm: &Helm) -> Result<()> {
    // Helm's limit is 53.
    let rendered = helm.render_as(&"r".repeat(53), &[])?;
    for object in &rendered.0 {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(name.len() <= 63 && !name.contains("--"), "{name}");
    }
    Ok(())
}

pub(super) fn crd_equals_generated_crd(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let mut crd = whole(rendered.crd().context("no CRD")?);
    let mut generated = whole(&yaml(&read("generated/crd.yaml")?)?);
    ensure!(crd["metadata"]["name"] == generated["metadata"]["name"], "{}", crd["metadata"]);
    for crd in [&mut crd, &mut generated] {
        crd.as_object_mut().context("no object")?.remove("metadata");
    }
    ensure!(crd == generated, "the rendered CRD differs from generated/crd.yaml");
    Ok(())
}

/// Numbers as Helm prints them: 0.0 as 0.
fn whole(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(whole).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), whole(value))).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other.clone(),
    }
}

/// The annotations of Chart.yaml for Artifact Hub. Those for images and changes are omitted until a release has both.
pub(super) fn artifact_hub_annotations_match_chart() -> Result<()> {
    let (about, crd) = (yaml(&read("Chart.yaml")?)?, yaml(&read("generated/crd.yaml")?)?);
    let annotation = |key: &str| {
        let text = about["annotations"][format!("artifacthub.io/{key}")].as_str();
        yaml(text.with_context(|| format!("no artifacthub.io/{key}"))?)
    };
    let crds = annotation("crds")?;
    let [entry] = list(&crds) else { anyhow::bail!("Chart.yaml has not exactly one CRD: {crds}") };
    ensure!(
        entry["name"] == crd["metadata"]["name"] && entry["kind"] == crd["spec"]["names"]["kind"],
        "{entry}"
    );
    let versions: Vec<_> = list(&crd["spec"]["versions"]).iter().map(|version| &version["name"]).collect();
    ensure!(versions == [&entry["version"]], "{entry}, and the CRD has {versions:?}");
    let workspace = include_str!("../../../Cargo.toml");
    ensure!(
        workspace.contains(&format!("license = {}\n", annotation("license")?)),
        "Chart.yaml and Cargo.toml have different licences"
    );
    Ok(())
}

pub(super) fn crd_is_kept_only_if_enabled(helm: &Helm) -> Result<()> {
    for (set, expected) in [(vec![], json!("keep")), (vec!["crds.keep=false"], Value::Null)] {
        let rendered = helm.render(&set)?;
        let policy = &rendered.crd().context("no CRD")?["metadata"]["annotations"]["helm.sh/resource-policy"];
        ensure!(policy == &expected, "{set:?}: {policy}");
    }
    Ok(())
}

pub(super) fn crd_is_rendered_only_if_enabled(helm: &Helm) -> Result<()> {
    let (with, without) = (helm.render(&[])?, helm.render(&["crds.enabled=false"])?);
    ensure!(with.crd().is_some() && without.crd().is_none(), "crds.enabled has no effect");
    ensure!(with.0.len() == without.0.len() + 1, "crds.enabled changes more than the CRD");
    Ok(())
}
