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
use e2e::kube::{create, delete, install_chart, object_uid, pod, sandbox_health, wait_for_health};
use e2e::names::{RELEASE, RELEASE_NAMESPACE, SANDBOX_HEALTH};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 8] = [
    ("rendered_manifests_are_accepted_by_api_server", rendered_manifests_are_accepted),
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
    let (succeeded, said) = outcome_of(node.command("helm").args(arguments))?;
    ensure!(!succeeded, "helm {arguments:?} succeeded: {said}");
    Ok(said)
}

fn rendered_manifests_are_accepted(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let chart = project_file("charts/sandbox-health")?;
    let everything = project_file("e2e/tests/chart/golden/everything.values.yaml")?;
    let directory = tempfile::tempdir()?;
    // The Prometheus Operator does not run, but its kinds are installed.
    let kinds = prometheus_operator::crds()?;
    let files = || kinds.iter().flat_map(|file| [Path::new("-f"), file]);
    node.kubectl(["apply", "--server-side"].map(Path::new).into_iter().chain(files()))?;
    node.kubectl(
        ["wait", "--for=condition=Established", "--timeout=60s"].map(Path::new).into_iter().chain(files()),
    )?;
    for (release, values) in [("plain", vec![]), ("everything", vec!["--values", &everything])] {
        let rendered =
            node.helm([&["template", release, &chart, "--namespace=default"], &values[..]].concat())?;
        // A pod is admitted only if its account exists; that of `helm test` is created in another scenario.
        let documents = rendered.split_inclusive("\n---\n");
        let manifest: String = documents.filter(|document| !document.contains("\nkind: Pod\n")).collect();
        let file = directory.path().join("rendered.yaml");
        fs::write(&file, &manifest)?;
        // An unknown field is an error.
        let dry =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f"];
        let (succeeded, said) = outcome_of(node.command("kubectl").args(dry).arg(&file))?;
        ensure!(succeeded && !said.contains("Warning"), "{release}: {said}");
        let objects = manifest.matches("\nkind: ").count();
        ensure!(said.matches("(server dry run)").count() == objects, "{release}: {objects} objects, {said}");
    }
    node.kubectl(["delete", "--wait"].map(Path::new).into_iter().chain(files())).map(drop)
}

/// Warnings of the API server if the namespace enforced the highest level.
fn pod_security_warns_of_host_pid_only(cluster: &Cluster) -> Result<()> {
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    let mut label = cluster.node.command("kubectl");
    label.args(["label", "--dry-run=server", "--overwrite", "namespace", RELEASE_NAMESPACE, enforce]);
    let (succeeded, said) = outcome_of(&mut label)?;
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("Warning: ")).collect();
    let [_, agent] = warnings[..] else { anyhow::bail!("not one pod: {said}") };
    let found = agent.strip_prefix("Warning: sandbox-health-agent-").and_then(|rest| rest.split_once(": "));
    ensure!(succeeded && found.is_some_and(|(_, found)| found == "host namespaces"), "{said}");
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
    let agents = ["pods", "-n", RELEASE_NAMESPACE, "-l", "app.kubernetes.io/component=agent"];
    let agents = node.get(&agents)?;
    let found = &agents["items"][0]["spec"]["priorityClassName"];
    ensure!(found == class, "the agents have the class {found}");
    Ok(())
}

fn namespace_that_rejects_agents_is_refused(cluster: &Cluster) -> Result<()> {
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

fn second_release_is_refused(cluster: &Cluster) -> Result<()> {
    let chart = project_file("charts/sandbox-health")?;
    let complaint = refusal_of_helm(&cluster.node, &["install", "other", &chart, "--namespace", "default"])?;
    let first = format!("as the release {RELEASE} in the namespace {RELEASE_NAMESPACE}");
    ensure!(complaint.contains(&first), "{complaint}");
    Ok(())
}

fn helm_test_passes_or_reports_unready_agents(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let test = ["test", RELEASE, "--namespace", RELEASE_NAMESPACE, "--logs"];
    let passed = node.helm(test)?;
    ensure!(passed.contains("1 agents are ready, and the SandboxHealth of this pod is reported"), "{passed}");
    let left = "pods,serviceaccounts,roles,rolebindings";
    let selector = "app.kubernetes.io/component=test";
    retry::until("the pod is left, and no permission", TIMEOUT, || {
        let left = node.kubectl(["-n", RELEASE_NAMESPACE, "get", left, "-l", selector, "-o", "name"])?;
        ensure!(left.trim() == "pod/sandbox-health-test", "{left}");
        Ok(())
    })?;
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
    // An uninstall would leave it.
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pod", "-l", selector]).map(drop)
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
    let (repository, tag) = SANDBOX_HEALTH.rsplit_once(':').context("the image has no tag")?;
    let image = format!("image.repository={repository},image.tag={tag}");
    let install = [&install[..], &["--set", &image]].concat();
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
