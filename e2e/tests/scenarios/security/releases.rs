//! The release as Helm keeps it: whether it can be tested, what an API server says of its objects, where it refuses to be
//! installed, and what of the rows an upgrade, a rollback and an uninstall leave.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::build::{project_file, prometheus_operator};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{health_of, install_chart, pod, sandbox_health};
use e2e::names::{RELEASE, RELEASE_NAMESPACE, SANDBOX_HEALTH};
use serde_json::Value;

use super::{Cluster, Scenario};
use e2e::kube::{create, delete};

pub(super) const STORIES: [Scenario; 8] = [
    ("all_that_can_be_rendered_is_taken_by_the_api_server", all_that_can_be_rendered),
    ("pod_security_finds_the_agents_hostpid_and_nothing_else", pod_security),
    ("agents_have_a_system_class_where_only_a_quota_admits_it", agents_have_a_system_class),
    ("a_namespace_that_refuses_the_agents_is_refused", a_namespace_that_refuses_the_agents),
    ("a_second_release_is_refused", a_second_release),
    ("helm_test_passes_and_names_an_agent_that_does_not_work", helm_test),
    ("an_upgrade_updates_the_crd_and_a_rollback_takes_it_back", upgrade_and_rollback),
    ("rows_outlive_a_release_and_another_takes_them_over", rows_outlive_a_release),
];

const CRD: &str = "sandboxhealths.sandboxhealth.dev";

/// What a program says on both streams, and whether it succeeded.
fn said(command: &mut Command) -> Result<(bool, String)> {
    let ran = command.stdin(Stdio::null()).output()?;
    let text = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn refusal_of_helm(node: &Node, arguments: &[&str]) -> Result<String> {
    let (succeeded, said) = said(node.command("helm").args(arguments))?;
    ensure!(!succeeded, "helm {arguments:?} succeeded: {said}");
    Ok(said)
}

fn uid(object: &Value) -> Result<String> {
    object["metadata"]["uid"].as_str().map(str::to_owned).context("no uid")
}

fn all_that_can_be_rendered(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let chart = project_file("charts/sandbox-health")?;
    let everything = project_file("e2e/tests/chart/golden/everything.values.yaml")?;
    let folder = tempfile::tempdir()?;
    // The Prometheus Operator is not there, but its kinds are.
    let kinds = prometheus_operator::crds()?;
    let files = || kinds.iter().flat_map(|file| [Path::new("-f"), file]);
    node.kubectl(["apply", "--server-side"].map(Path::new).into_iter().chain(files()))?;
    node.kubectl(
        ["wait", "--for=condition=Established", "--timeout=60s"].map(Path::new).into_iter().chain(files()),
    )?;
    for (release, values) in [("plain", vec![]), ("everything", vec!["--values", &everything])] {
        let rendered =
            node.helm([&["template", release, &chart, "--namespace=default"], &values[..]].concat())?;
        // A pod is admitted only if its account is there; that of `helm test` is made for real in another story.
        let documents = rendered.split_inclusive("\n---\n");
        let manifest: String = documents.filter(|document| !document.contains("\nkind: Pod\n")).collect();
        let file = folder.path().join("rendered.yaml");
        fs::write(&file, &manifest)?;
        // A field that is not known is an error.
        let dry =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f"];
        let (succeeded, said) = said(node.command("kubectl").args(dry).arg(&file))?;
        ensure!(succeeded && !said.contains("Warning"), "{release}: {said}");
        let objects = manifest.matches("\nkind: ").count();
        ensure!(said.matches("(server dry run)").count() == objects, "{release}: {objects} objects, {said}");
    }
    node.kubectl(["delete", "--wait"].map(Path::new).into_iter().chain(files())).map(drop)
}

/// What the API server says of all that runs, were the namespace to enforce the highest level.
fn pod_security(cluster: &Cluster) -> Result<()> {
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    let mut label = cluster.node.command("kubectl");
    label.args(["label", "--dry-run=server", "--overwrite", "namespace", RELEASE_NAMESPACE, enforce]);
    let (succeeded, said) = said(&mut label)?;
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("Warning: ")).collect();
    let [_, agent] = warnings[..] else { anyhow::bail!("not one pod: {said}") };
    let found = agent.strip_prefix("Warning: sandbox-health-agent-").and_then(|rest| rest.split_once(": "));
    ensure!(succeeded && found.is_some_and(|(_, found)| found == "host namespaces"), "{said}");
    Ok(())
}

/// The node's API server is told to admit the class only so.
fn agents_have_a_system_class(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let class = "system-node-critical";
    let mut manifest = pod("critical", &[]);
    manifest["spec"]["priorityClassName"] = class.into();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pod.json");
    fs::write(&file, manifest.to_string())?;
    let (created, complaint) =
        said(node.command("kubectl").args(["create", "--dry-run=server", "-f"]).arg(&file))?;
    ensure!(!created && complaint.contains("insufficient quota"), "{complaint}");
    let agents = ["pods", "-n", RELEASE_NAMESPACE, "-l", "app.kubernetes.io/component=agent"];
    let agents = node.get(&agents)?;
    let found = &agents["items"][0]["spec"]["priorityClassName"];
    ensure!(found == class, "the agents have the class {found}");
    Ok(())
}

fn a_namespace_that_refuses_the_agents(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let chart = project_file("charts/sandbox-health")?;
    node.kubectl(["create", "namespace", "strict"])?;
    for level in ["baseline", "restricted"] {
        let enforce = format!("pod-security.kubernetes.io/enforce={level}");
        node.kubectl(["label", "--overwrite", "namespace", "strict", &enforce])?;
        let complaint = refusal_of_helm(node, &["install", "other", &chart, "--namespace", "strict"])?;
        let remedy =
            "kubectl label --overwrite namespace strict pod-security.kubernetes.io/enforce=privileged";
        ensure!(complaint.contains(remedy) && complaint.contains(level), "{complaint}");
    }
    let left = node.helm(["list", "--namespace", "strict", "--short"])?;
    ensure!(left.is_empty(), "it left {left}");
    node.kubectl(["delete", "namespace", "strict"]).map(drop)
}

fn a_second_release(cluster: &Cluster) -> Result<()> {
    let chart = project_file("charts/sandbox-health")?;
    let complaint = refusal_of_helm(&cluster.node, &["install", "other", &chart, "--namespace", "default"])?;
    let first = format!("as the release {RELEASE} in the namespace {RELEASE_NAMESPACE}");
    ensure!(complaint.contains(&first), "{complaint}");
    Ok(())
}

fn helm_test(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let test = ["test", RELEASE, "--namespace", RELEASE_NAMESPACE, "--logs"];
    let passed = node.helm(test)?;
    ensure!(passed.contains("all 1 agents are ready; the SandboxHealth sandbox-health/"), "{passed}");
    let left = "pods,serviceaccounts,roles,rolebindings";
    let selector = "app.kubernetes.io/component=test";
    retry::until("the pod is left, and no right", TIMEOUT, || {
        let left = node.kubectl(["-n", RELEASE_NAMESPACE, "get", left, "-l", selector, "-o", "name"])?;
        ensure!(left.trim() == "pod/sandbox-health-test", "{left}");
        Ok(())
    })?;
    // Root is what runAsNonRoot refuses: the kubelet makes no container.
    let chart = project_file("charts/sandbox-health")?;
    let broken = "agent.securityContext.runAsUser=0,helmTest.timeout=10s";
    let upgrade = ["upgrade", RELEASE, &chart, "--namespace", RELEASE_NAMESPACE, "--reuse-values"];
    node.helm(upgrade.into_iter().chain(["--set", broken]))?;
    let outcome = retry::until("no agent works", TIMEOUT, || {
        let ready = "jsonpath={.status.numberReady}";
        let agents = ["-n", RELEASE_NAMESPACE, "get", "daemonset", "sandbox-health-agent", "-o", ready];
        ensure!(node.kubectl(agents)? == "0", "one does");
        Ok(())
    })
    .and_then(|()| {
        refusal_of_helm(node, &test)?;
        let log = node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "sandbox-health-test"])?;
        let named = format!("on the node {} is not ready: CreateContainerConfigError", node_name(node)?);
        ensure!(log.contains("the agent sandbox-health-agent-") && log.contains(&named), "{log}");
        Ok(())
    });
    install_chart(node)?;
    outcome?;
    // What failed is in nobody's way.
    node.helm(test)?;
    // An uninstall would leave it.
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pod", "-l", selector]).map(drop)
}

fn node_name(node: &Node) -> Result<String> {
    node.kubectl(["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])
}

fn upgrade_and_rollback(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("upgraded", &[]))?;
    let row = uid(&health_of(node, &pod, "True", "AllWell")?)?;
    let folder = tempfile::tempdir()?;
    let newer = newer_chart(folder.path())?;
    let upgrade = ["upgrade", RELEASE, &newer, "--namespace", RELEASE_NAMESPACE, "--reuse-values", "--wait"];
    node.helm(upgrade)?;
    let outcome = schema_knows_of_the_moon(node, true);
    node.helm(["rollback", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait"])?;
    outcome?;
    schema_knows_of_the_moon(node, false)?;
    let same = uid(&health_of(node, &pod, "True", "AllWell")?)?;
    ensure!(same == row, "the row was made anew");
    delete(node, &pod)
}

/// A copy of the chart with a version above its own, and one more field in the schema of a row.
fn newer_chart(folder: &Path) -> Result<String> {
    let chart = folder.join("sandbox-health");
    let copied =
        Command::new("cp").args(["-r", &project_file("charts/sandbox-health")?]).arg(&chart).status()?;
    ensure!(copied.success(), "cp: {copied}");
    for (file, old, new) in [
        ("Chart.yaml", "\nversion: 0.1.0\n", "\nversion: 0.2.0\n"),
        (
            "generated/crd.yaml",
            "              restarts:\n",
            "              moon:\n                type: string\n              restarts:\n",
        ),
    ] {
        let text = fs::read_to_string(chart.join(file))?;
        ensure!(text.matches(old).count() == 1, "{file} has not one {old:?}");
        fs::write(chart.join(file), text.replace(old, new))?;
    }
    chart.to_str().map(str::to_owned).context("a path that is no UTF-8")
}

fn schema_knows_of_the_moon(node: &Node, expected: bool) -> Result<()> {
    let crd = node.get(&["crd", CRD])?;
    let status =
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
    ensure!(status["restarts"].is_object(), "{status}");
    ensure!(status["moon"].is_object() == expected, "the schema of the other version: {status}");
    Ok(())
}

fn rows_outlive_a_release(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("survivor", &[]))?;
    let row = uid(&health_of(node, &pod, "True", "AllWell")?)?;
    uninstall(node, RELEASE)?;
    ensure!(uid(&sandbox_health(node, &pod)?)? == row, "the row was made anew");
    let chart = project_file("charts/sandbox-health")?;
    let install = ["upgrade", "--install", "other", &chart, "--namespace", RELEASE_NAMESPACE, "--wait"];
    let (repository, tag) = SANDBOX_HEALTH.rsplit_once(':').context("the image has no tag")?;
    let image = format!("image.repository={repository},image.tag={tag}");
    let install = [&install[..], &["--set", &image]].concat();
    let complaint = refusal_of_helm(node, &install)?;
    // It says how the CRD is taken over, and that works.
    let commands: Vec<_> =
        complaint.lines().map(str::trim).filter(|line| line.starts_with("kubectl ")).collect();
    ensure!(commands.len() == 2, "{complaint}");
    for command in commands {
        node.kubectl(command.split(' ').skip(1))?;
    }
    let outcome = node.helm(&install).and_then(|_| {
        let object = health_of(node, &pod, "True", "AllWell")?;
        ensure!(uid(&object)? == row, "the row was made anew");
        uninstall(node, "other")
    });
    for mark in [
        &["annotate", "--overwrite", "crd", CRD, "meta.helm.sh/release-name=sandbox-health"][..],
        &["label", "--overwrite", "crd", CRD, "app.kubernetes.io/managed-by=Helm"],
    ] {
        node.kubectl(mark)?;
    }
    install_chart(node)?;
    outcome?;
    delete(node, &pod)
}

fn uninstall(node: &Node, release: &str) -> Result<()> {
    node.helm(["uninstall", release, "--namespace", RELEASE_NAMESPACE, "--wait"]).map(drop)
}
