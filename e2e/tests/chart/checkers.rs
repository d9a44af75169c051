//! External checkers of the chart: helm-unittest runs the tests beside the templates, kube-score looks for common problems of workloads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::build::go;
use serde_json::Value;

use crate::helm::{Helm, NAMESPACE, RELEASE, chart};
use crate::rendered::list;

pub(super) fn template_unit_tests_pass(_: &Helm) -> Result<()> {
    // helm-unittest creates a directory beside the tests, so it gets a copy.
    let directory = tempfile::tempdir()?;
    let copied = Command::new("cp").arg("-r").args([chart(), directory.path().join("chart")]).status()?;
    ensure!(copied.success(), "cp: {copied}");
    let ran = Command::new(go::helm_unittest()?)
        .args(["--strict", "--color=false", "--file", "tests/*_test.yaml"])
        .arg(directory.path().join("chart"))
        .env("KUBECONFIG", "/nonexistent")
        .stdin(Stdio::null())
        .output()?;
    let output = String::from_utf8_lossy(&ran.stdout);
    ensure!(ran.status.success(), "{output}{}", String::from_utf8_lossy(&ran.stderr));
    // It also succeeds if it finds no test.
    let suites = fs::read_dir(chart().join("tests"))?.count();
    ensure!(output.contains(&format!("Test Suites: {suites} passed, {suites} total")), "{output}");
    Ok(())
}

pub(super) fn every_template_has_unit_tests(_: &Helm) -> Result<()> {
    let templates = names(&chart().join("templates"))?;
    let suites: BTreeSet<_> =
        names(&chart().join("tests"))?.iter().map(|name| name.trim_end_matches("_test").to_owned()).collect();
    let templates: BTreeSet<_> = templates.into_iter().filter(|name| !name.starts_with('_')).collect();
    ensure!(templates == suites, "templates: {templates:?}, and suites: {suites:?}");
    Ok(())
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let files = fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    let stem = |file: &Path| Some(file.file_stem()?.to_str()?.to_owned());
    files.iter().map(|file| stem(file).context("a file without a name")).collect()
}

/// Findings of kube-score that are intended, and why.
const EXPLAINED: [&str; 4] = [
    // Of the CPU only: throttling would delay the report of a restart, and the request gives the fair share.
    "CPU limit is not set",
    // Tags are not moved, and a digest cannot be: if each start queried the registry, its outage could stop an agent.
    "ImagePullPolicy is not set to Always",
    // The root is read-only and there is no volume. Only logs use storage, which the kubelet rotates; with a limit an agent could be
    // evicted from the very node whose trouble it reports.
    "Ephemeral Storage request is not set",
    "Ephemeral Storage limit is not set",
];

/// The controller has topologySpreadConstraints, which do the same and leave room for more replicas than nodes.
const IGNORED: &str = "deployment-has-host-podantiaffinity";

pub(super) fn kube_score(helm: &Helm) -> Result<()> {
    // Objects that are off by default are checked, too.
    let off_by_default = ["networkPolicy.enabled=true", "pause.preload.enabled=true"];
    let rendered = helm.succeed(&["template", RELEASE, "--namespace", NAMESPACE], &off_by_default)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rendered.yaml");
    fs::write(&file, rendered)?;
    let ran = Command::new(go::kube_score()?)
        .args(["score", "--output-format=json", "--kubernetes-version=v1.33", "--ignore-test", IGNORED])
        .args([
            "--enable-optional-test=container-seccomp-profile",
            "--enable-optional-test=container-ports-check",
        ])
        .arg(&file)
        .stdin(Stdio::null())
        .output()?;
    let objects: Value = serde_json::from_slice(&ran.stdout)
        .with_context(|| format!("kube-score printed {}", String::from_utf8_lossy(&ran.stderr)))?;
    let (mut seen, mut unexplained) = (BTreeSet::new(), vec![]);
    for object in list(&objects) {
        let perfect = |check: &&Value| check["skipped"] == true || check["grade"] == 10;
        let checks = list(&object["checks"]).iter().filter(|check| !perfect(check));
        for comment in checks.flat_map(|check| list(&check["comments"])) {
            let found = comment["summary"].as_str().unwrap_or_default();
            match EXPLAINED.iter().find(|explained| **explained == found) {
                Some(explained) => drop(seen.insert(*explained)),
                None => unexplained.push(format!("{}: {comment}", object["object_name"])),
            }
        }
    }
    ensure!(unexplained.is_empty(), "{unexplained:#?}");
    ensure!(seen == BTreeSet::from(EXPLAINED), "an explained problem is not found any more; found: {seen:?}");
    Ok(())
}
