//! The Helm release: `helm test`, validation of its objects by the API server, refused installations, and SandboxHealth objects after an
//! upgrade, a rollback and an uninstall.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::build::registry::Registry;
use e2e::build::release::VERSION;
use e2e::build::{project_file, prometheus_operator};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, delete, install_chart, object_uid, pod, pods_of, sandbox_health, wait_for_health, with_values,
};
use e2e::names::{IMAGE_VALUES, RELEASE, RELEASE_NAMESPACE};
use serde_json::Value;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 8] = [
    ("rendered_manifests_are_stored_as_sent", rendered_manifests_are_stored_as_sent),
    ("pod_security_warns_of_host_pid_only", pod_security_warns_of_host_pid_only),
    ("agents_get_system_class_where_quota_admits_it", agents_get_system_class),
    ("namespace_that_rejects_agents_is_refused", namespace_that_rejects_agents_is_refused),
    ("second_release_is_refused", second_release_is_refused),
    ("helm_test_passes_or_reports_unready_agents", helm_test_passes_or_reports_unready_agents),
    ("upgrade_updates_crd_and_rollback_reverts_it", upgrade_updates_crd_and_rollback_reverts_it),
    ("objects_outlive_release_and_next_adopts_them", objects_outlive_release_and_next_adopts_them),
];

const CRD: &str = "sandboxhealths.sandboxhealth.dev";

/// Whether a command succeeded, and its output on both streams.
fn outcome_of(command: &mut Command) -> Result<(bool, String)> {
    let ran = command.stdin(Stdio::null()).output()?;
    let text = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn refusal_of_helm(node: &Node, arguments: &[&str]) -> Result<String> {
    let (succeeded, output) = outcome_of(node.command("helm").args(arguments))?;
    ensure!(!succeeded, "helm {arguments:?} succeeded: {output}");
    Ok(output)
}

fn rendered_manifests_are_stored_as_sent(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // The Prometheus Operator does not run, but its kinds are installed.
    let kinds = prometheus_operator::crds()?;
    let files = || kinds.iter().flat_map(|file| [Path::new("-f"), file]);
    node.kubectl(["apply", "--server-side"].map(Path::new).into_iter().chain(files()))?;
    let established = ["wait", "--for=condition=Established", "--timeout=60s"].map(Path::new);
    let everything = project_file("e2e/tests/chart/golden/everything.values.yaml")?;
    let service_monitor = ["--set", "podMonitor.enabled=false,serviceMonitor.enabled=true"];
    let outcome = node.kubectl(established.into_iter().chain(files())).and_then(|_| {
        is_stored_as_sent(node, "plain", &[])?;
        is_stored_as_sent(node, "everything", &["--values", &everything])?;
        is_stored_as_sent(node, "services", &[&["--values", &everything][..], &service_monitor].concat())
    });
    node.kubectl(["delete", "--wait"].map(Path::new).into_iter().chain(files()))?;
    outcome
}

/// An unknown field is an error, and a field that the API server adds is a difference for a GitOps tool.
fn is_stored_as_sent(node: &Node, release: &str, values: &[&str]) -> Result<()> {
    let chart = project_file("charts/sandbox-health")?;
    let template = ["template", release, &chart, "--namespace=default", "--no-hooks", "--set", IMAGE_VALUES];
    let manifest = node.helm([&template[..], values].concat())?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rendered.yaml");
    fs::write(&file, &manifest)?;
    let dry = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts"];
    let mut apply = node.command("kubectl");
    let ran = apply.args(dry).args(["-o", "json", "-f"]).arg(&file).stdin(Stdio::null()).output()?;
    let complaint = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success() && complaint.is_empty(), "{release}: {complaint}");
    let stored: Value = serde_json::from_slice(&ran.stdout)?;
    let stored = stored["items"].as_array().context("no list")?;
    let sent: Vec<Value> = serde_saphyr::from_multiple(&manifest)?;
    ensure!(sent.len() == stored.len(), "{release}: {} of {} objects", stored.len(), sent.len());
    for (sent, stored) in sent.iter().zip(stored) {
        let name = &stored["metadata"]["name"];
        ensure!(sent["metadata"]["name"] == *name, "another order: {}, {name}", sent["metadata"]["name"]);
        let mut stored = stored["spec"].clone();
        if sent["kind"] == "Service" {
            // The cluster's addresses.
            let fields = stored.as_object_mut().context("no spec")?;
            fields.retain(|key, _| !["clusterIPs", "ipFamilies", "ipFamilyPolicy"].contains(&key.as_str()));
        }
        let mut differ = vec![];
        differences("spec", &sent["spec"], &stored, &mut differ);
        ensure!(differ.is_empty(), "{release}: {} {name}: {differ:#?}", sent["kind"]);
    }
    Ok(())
}

/// The paths of fields that differ.
fn differences(path: &str, sent: &Value, stored: &Value, found: &mut Vec<String>) {
    match (sent, stored) {
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().chain(after.keys().filter(|key| !before.contains_key(*key))) {
                differences(&format!("{path}.{key}"), &sent[key], &stored[key], found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                differences(&format!("{path}[{index}]"), before, after, found);
            }
        }
        // Helm writes 0.0 as 0.
        (Value::Number(before), Value::Number(after)) if before.as_f64() == after.as_f64() => {}
        _ if sent == stored => {}
        _ => found.push(format!("{path}: sent {sent}, stored {stored}")),
    }
}

/// Warnings of the API server if the namespace enforced the highest level.
fn pod_security_warns_of_host_pid_only(cluster: &Cluster) -> Result<()> {
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    let mut label = cluster.node.command("kubectl");
    label.args(["label", "--dry-run=server", "--overwrite", "namespace", RELEASE_NAMESPACE, enforce]);
    let (succeeded, output) = outcome_of(&mut label)?;
    let warnings: Vec<_> = output.lines().filter(|line| line.starts_with("Warning: ")).collect();
    let [_, agent] = warnings[..] else {
        anyhow::bail!("there is not exactly one warning of a pod: {output}")
    };
    let found = agent.strip_prefix("Warning: sandbox-health-agent-").and_then(|rest| rest.split_once(": "));
    ensure!(succeeded && found.is_some_and(|(_, found)| found == "host namespaces"), "{output}");
    Ok(())
}

/// The cluster's API server admits the class only with a quota.
fn agents_get_system_class(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let class = "system-node-critical";
    let mut manifest = pod("critical", &[]);
    manifest["spec"]["priorityClassName"] = class.into();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("pod.json");
    fs::write(&file, manifest.to_string())?;
    let (created, complaint) =
        outcome_of(node.command("kubectl").args(["create", "--dry-run=server", "-f"]).arg(&file))?;
    ensure!(!created && complaint.contains("insufficient quota"), "{complaint}");
    let values = format!("agent.priorityClassName={class},priorityClassQuota.create=true");
    with_values(node, &values, || {
        let agents = pods_of(node, "agent")?;
        let found: Vec<_> = agents.iter().map(|agent| &agent["spec"]["priorityClassName"]).collect();
        ensure!(found == [class], "the agents have the classes {found:?}");
        Ok(())
    })
}

fn namespace_that_rejects_agents_is_refused(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let chart = project_file("charts/sandbox-health")?;
    node.kubectl(["create", "namespace", "strict"])?;
    for level in ["baseline", "restricted"] {
        let enforce = format!("pod-security.kubernetes.io/enforce={level}");
        node.kubectl(["label", "--overwrite", "namespace", "strict", &enforce])?;
        let install = ["install", "other", &chart, "--namespace", "strict", "--set", IMAGE_VALUES];
        let complaint = refusal_of_helm(node, &install)?;
        let remedy =
            "kubectl label --overwrite namespace strict pod-security.kubernetes.io/enforce=privileged";
        ensure!(complaint.contains(remedy) && complaint.contains(level), "{complaint}");
    }
    let left = node.helm(["list", "--namespace", "strict", "--short"])?;
    ensure!(left.is_empty(), "it left {left}");
    node.kubectl(["delete", "namespace", "strict"]).map(drop)
}

fn second_release_is_refused(cluster: &Cluster) -> Result<()> {
    let chart = project_file("charts/sandbox-health")?;
    let install = ["install", "other", &chart, "--namespace", "default", "--set", IMAGE_VALUES];
    let complaint = refusal_of_helm(&cluster.node, &install)?;
    let first = format!("belongs to the release {RELEASE} in the namespace {RELEASE_NAMESPACE}");
    ensure!(complaint.contains(&first), "{complaint}");
    Ok(())
}

fn helm_test_passes_or_reports_unready_agents(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let test = ["test", RELEASE, "--namespace", RELEASE_NAMESPACE, "--logs"];
    let passed = node.helm(test)?;
    ensure!(passed.contains("1 agents are ready, and the SandboxHealth of this pod is reported"), "{passed}");
    let kinds = "pods,serviceaccounts,roles,rolebindings";
    let selector = "app.kubernetes.io/component=test";
    let nothing_is_left = || {
        retry::until("nothing of the test is left", TIMEOUT, || {
            let left = node.kubectl(["-n", RELEASE_NAMESPACE, "get", kinds, "-l", selector, "-o", "name"])?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
    };
    nothing_is_left()?;
    // runAsNonRoot refuses root: the kubelet creates no container.
    let chart = project_file("charts/sandbox-health")?;
    let broken = "agent.securityContext.runAsUser=0,helmTest.timeout=10s";
    let upgrade = ["upgrade", RELEASE, &chart, "--namespace", RELEASE_NAMESPACE, "--reuse-values"];
    node.helm(upgrade.into_iter().chain(["--set", broken]))?;
    let outcome = retry::until("no agent is ready", TIMEOUT, || {
        let ready = "jsonpath={.status.numberReady}";
        let agents = ["-n", RELEASE_NAMESPACE, "get", "daemonset", "sandbox-health-agent", "-o", ready];
        ensure!(node.kubectl(agents)? == "0", "one is");
        Ok(())
    })
    .and_then(|()| {
        refusal_of_helm(node, &test)?;
        let log = node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "sandbox-health-test"])?;
        ensure!(log.contains("DaemonSet sandbox-health-agent: 0 of 1 agents are ready"), "{log}");
        let (_, command) = log.split_once("see `kubectl ").context("no command")?;
        let pods = node.kubectl(command.split('`').next().unwrap_or_default().split(' '))?;
        ensure!(pods.contains("CreateContainerConfigError"), "{pods}");
        Ok(())
    });
    install_chart(node)?;
    outcome?;
    // The failed pod does not prevent the next test.
    node.helm(test)?;
    nothing_is_left()
}

fn upgrade_updates_crd_and_rollback_reverts_it(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("upgraded", &[]))?;
    let before = object_uid(&wait_for_health(node, &pod, "True", "SandboxHealthy")?)?;
    let directory = tempfile::tempdir()?;
    let newer = newer_chart(directory.path())?;
    let upgrade = ["upgrade", RELEASE, &newer, "--namespace", RELEASE_NAMESPACE, "--reuse-values", "--wait"];
    node.helm(upgrade)?;
    let outcome = crd_has_test_field(node, true);
    node.helm(["rollback", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait"])?;
    outcome?;
    crd_has_test_field(node, false)?;
    let after = object_uid(&wait_for_health(node, &pod, "True", "SandboxHealthy")?)?;
    ensure!(after == before, "the object was recreated");
    delete(node, &pod)
}

/// A copy of the chart with a higher version and one more field in the schema of SandboxHealth.
fn newer_chart(directory: &Path) -> Result<String> {
    let chart = directory.join("sandbox-health");
    let copied =
        Command::new("cp").args(["-r", &project_file("charts/sandbox-health")?]).arg(&chart).status()?;
    ensure!(copied.success(), "cp: {copied}");
    for (file, old, new) in [
        ("Chart.yaml", "\nversion: 0.1.0\n", "\nversion: 0.2.0\n"),
        (
            "generated/crd.yaml",
            "              restarts:\n",
            "              testField:\n                type: string\n              restarts:\n",
        ),
    ] {
        let text = fs::read_to_string(chart.join(file))?;
        ensure!(text.matches(old).count() == 1, "{file} has not one {old:?}");
        fs::write(chart.join(file), text.replace(old, new))?;
    }
    chart.to_str().map(str::to_owned).context("a path that is no UTF-8")
}

fn crd_has_test_field(node: &Node, expected: bool) -> Result<()> {
    let crd = node.get(&["crd", CRD])?;
    let status =
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
    ensure!(status["restarts"].is_object(), "{status}");
    ensure!(status["testField"].is_object() == expected, "the schema of the other version: {status}");
    Ok(())
}

/// The next is installed from a registry.
fn objects_outlive_release_and_next_adopts_them(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("survivor", &[]))?;
    let before = object_uid(&wait_for_health(node, &pod, "True", "SandboxHealthy")?)?;
    uninstall(node, RELEASE)?;
    ensure!(object_uid(&sandbox_health(node, &pod)?)? == before, "the object was recreated");
    let directory = tempfile::tempdir()?;
    let registry = Registry::start_by(node.command("setpriv"), &directory.path().join("registry"))?;
    let chart = push_chart(node, &registry, directory.path())?;
    let install = ["upgrade", "--install", "other", &chart, "--plain-http", "--wait"];
    let install = [&install[..], &["--version", VERSION, "--namespace", RELEASE_NAMESPACE]].concat();
    let install = [&install[..], &["--set", IMAGE_VALUES]].concat();
    let complaint = refusal_of_helm(node, &install)?;
    // It names the commands that let the release adopt the CRD, and they work.
    let commands: Vec<_> =
        complaint.lines().map(str::trim).filter(|line| line.starts_with("kubectl ")).collect();
    ensure!(commands.len() == 2, "{complaint}");
    for command in commands {
        node.kubectl(command.split(' ').skip(1))?;
    }
    let outcome = node.helm(&install).and_then(|_| {
        let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
        ensure!(object_uid(&object)? == before, "the object was recreated");
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

/// The reference of the chart in the registry.
fn push_chart(node: &Node, registry: &Registry, directory: &Path) -> Result<String> {
    let chart = project_file("charts/sandbox-health")?;
    let directory = directory.display().to_string();
    node.helm(["package", &chart, "--destination", &directory])?;
    let charts = format!("oci://{}/charts", registry.address());
    node.helm(["push", "--plain-http", &format!("{directory}/sandbox-health-{VERSION}.tgz"), &charts])?;
    Ok(format!("{charts}/sandbox-health"))
}

fn uninstall(node: &Node, release: &str) -> Result<()> {
    node.helm(["uninstall", release, "--namespace", RELEASE_NAMESPACE, "--wait"]).map(drop)
}
