//! The Helm chart as Helm renders it: what it asks of a cluster, what it refuses, and what it says. No cluster is needed;
//! without Helm and without Go to build it, the tests that need Helm are reported as ignored, never as passed.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::binaries::Binaries;
use e2e::cache;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

/// Not the chart's name, so that a name that should hold the release's is seen to do so.
const RELEASE: &str = "blue";
const NAMESPACE: &str = "watch";
const FULLNAME: &str = "blue-sandbox-health";

fn main() -> ExitCode {
    let tests = vec![
        without_helm("readme_lists_every_value_with_its_default", readme_lists_every_value_with_its_default),
        without_helm("schema_is_closed_and_has_the_keys_of_the_values", schema_is_closed),
        with_helm("strict_lint_passes", strict_lint_passes),
        with_helm("every_object_has_the_standard_labels", every_object_has_the_standard_labels),
        with_helm("nothing_but_the_listed_objects_is_installed", nothing_but_the_listed_objects_is_installed),
        with_helm("agent_sees_the_processes_of_its_node_and_has_no_other_privilege", agent_privileges),
        with_helm("controller_has_no_privilege", controller_privileges),
        with_helm("agent_runs_on_every_linux_node_and_says_why_it_needs_hostpid", agent_runs_on_every_node),
        with_helm("probes_and_the_scrape_annotations_name_the_port", probes_and_annotations_name_the_port),
        with_helm("every_flag_is_one_that_the_program_knows", every_flag_is_known),
        with_helm("values_reach_the_flags", values_reach_the_flags),
        with_helm("a_digest_wins_over_a_tag", a_digest_wins_over_a_tag),
        with_helm("rbac_gives_these_verbs_and_no_others", rbac_gives_these_verbs),
        with_helm("each_role_is_bound_to_its_own_account", each_role_is_bound_to_its_own_account),
        with_helm("lease_is_empty_and_named_alike_in_flag_and_role", lease_is_named_alike),
        with_helm("disruption_budget_comes_with_the_second_replica", budget_comes_with_the_second_replica),
        with_helm("labels_of_a_user_cannot_break_the_selectors", user_labels_cannot_break_the_selectors),
        with_helm("a_long_release_name_leaves_names_valid", a_long_release_name_leaves_names_valid),
        with_helm("crd_is_the_generated_one_but_for_its_metadata", crd_is_the_generated_one),
        with_helm("crd_is_kept_only_if_wanted", crd_is_kept_only_if_wanted),
        with_helm("crd_is_rendered_only_if_wanted", crd_is_rendered_only_if_wanted),
        with_helm("an_unknown_value_is_refused_by_name", an_unknown_value_is_refused_by_name),
        with_helm("a_bad_value_is_refused_by_name", a_bad_value_is_refused_by_name),
        with_helm("a_kubernetes_that_is_too_old_is_refused", an_old_kubernetes_is_refused),
        with_helm("notes_tell_the_pod_security_label_and_the_switch", notes_tell_the_label_and_the_switch),
        with_helm("notes_tell_what_an_uninstall_leaves", notes_tell_what_an_uninstall_leaves),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn without_helm(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(failed))
}

fn with_helm(name: &str, test: fn(&Helm) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || match Helm::find().map_err(failed)? {
        Some(helm) => test(&helm).map(|()| Completion::Completed).map_err(failed),
        None => Ok(Completion::ignored_with("neither Helm in the cache nor Go to build it")),
    })
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// The chart's folder.
fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sandbox-health")
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(chart().join(file)).with_context(|| format!("reading {file}"))
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// A Helm that can be run.
struct Helm(PathBuf);

impl Helm {
    /// The one in the cache; where there is none, all programs are built, which `Binaries` does once.
    fn find() -> Result<Option<Self>> {
        static BUILDING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helm) = cached()? {
            return Ok(Some(Self(helm)));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        if !env::split_paths(&path).any(|folder| folder.join("go").is_file()) {
            return Ok(None);
        }
        Binaries::ensure()?;
        cached()?.context("Helm was built and is not in the cache").map(|helm| Some(Self(helm)))
    }

    /// Runs it away from the user's configuration and cluster.
    fn run(&self, args: &[&str], set: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.0);
        command.args(args).arg(chart());
        for value in set {
            command.args(["--set", value]);
        }
        let nowhere = "/nonexistent";
        command.env("KUBECONFIG", nowhere).env("HELM_CONFIG_HOME", nowhere).env("HELM_PLUGINS", nowhere);
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", self.0.display()))
    }

    fn succeed(&self, args: &[&str], set: &[&str]) -> Result<String> {
        let ran = self.run(args, set)?;
        let (said, complained) = (text(&ran.stdout), text(&ran.stderr));
        ensure!(ran.status.success(), "helm {args:?} {set:?}: {}\n{said}{complained}", ran.status);
        Ok(said)
    }

    /// What Helm complains of; it must fail.
    fn refuse(&self, args: &[&str], set: &[&str]) -> Result<String> {
        let ran = self.run(args, set)?;
        ensure!(!ran.status.success(), "helm {args:?} {set:?} succeeded");
        Ok(text(&ran.stderr))
    }

    fn render(&self, set: &[&str]) -> Result<Rendered> {
        self.render_as(RELEASE, set)
    }

    fn render_as(&self, release: &str, set: &[&str]) -> Result<Rendered> {
        let said = self.succeed(&["template", release, "--namespace", NAMESPACE], set)?;
        Ok(Rendered(serde_saphyr::from_multiple(&said).context("parsing what helm rendered")?))
    }

    fn notes(&self, set: &[&str]) -> Result<String> {
        let said = self.succeed(&["install", RELEASE, "--namespace", NAMESPACE, "--dry-run=client"], set)?;
        said.split_once("NOTES:").map(|(_, notes)| notes.into()).context("helm printed no notes")
    }
}

/// The newest, should there be several versions.
fn cached() -> Result<Option<PathBuf>> {
    let Ok(folders) = fs::read_dir(cache::root()?.join("binaries")) else {
        return Ok(None);
    };
    let helm = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("helm")))
        .filter_map(|file| Some((file.metadata().ok().filter(|it| it.is_file())?.modified().ok()?, file)))
        .max();
    Ok(helm.map(|(_, file)| file))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The objects of a release.
struct Rendered(Vec<Value>);

impl Rendered {
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        self.of_kind(kind)
            .find(|object| object["metadata"]["name"] == name)
            .with_context(|| format!("no {kind} {name}"))
    }

    fn agent(&self) -> Result<&Value> {
        self.of_kind("DaemonSet").next().context("no DaemonSet")
    }

    fn controller(&self) -> Result<&Value> {
        self.of_kind("Deployment").next().context("no Deployment")
    }

    fn crd(&self) -> Option<&Value> {
        self.of_kind("CustomResourceDefinition").next()
    }

    fn workloads(&self) -> Result<[&Value; 2]> {
        Ok([self.agent()?, self.controller()?])
    }
}

/// The pod that a workload makes.
fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

/// Its one container.
fn container(workload: &Value) -> Result<&Value> {
    match list(&pod(workload)["containers"]) {
        [one] => Ok(one),
        several => bail!("{} containers", several.len()),
    }
}

fn args(workload: &Value) -> Result<Vec<&str>> {
    list(&container(workload)?["args"])
        .iter()
        .map(|arg| arg.as_str().context("an arg is no string"))
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strict_lint_passes(helm: &Helm) -> Result<()> {
    helm.succeed(&["lint", "--strict"], &[]).map(drop)
}

fn every_object_has_the_standard_labels(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let templates = rendered.workloads()?.map(|workload| &workload["spec"]["template"]);
    for object in rendered.0.iter().chain(templates) {
        let labels = &object["metadata"]["labels"];
        for (label, value) in [
            ("app.kubernetes.io/name", "sandbox-health"),
            ("app.kubernetes.io/instance", RELEASE),
            ("app.kubernetes.io/version", "0.1.0"),
            ("app.kubernetes.io/managed-by", "Helm"),
            ("helm.sh/chart", "sandbox-health-0.1.0"),
        ] {
            ensure!(labels[label] == value, "{label} of {object}");
        }
        ensure!(labels["app.kubernetes.io/component"].is_string(), "component of {object}");
    }
    Ok(())
}

fn nothing_but_the_listed_objects_is_installed(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let cluster_wide = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"];
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
        "Lease controller",
        "PodDisruptionBudget controller",
        "Role controller",
        "RoleBinding controller",
        "ServiceAccount agent",
        "ServiceAccount controller",
    ];
    let expected: BTreeSet<_> = expected.map(String::from).into();
    ensure!(found == expected, "{found:#?}");
    ensure!(rendered.0.len() == expected.len(), "an object is there twice");
    Ok(())
}

fn agent_privileges(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let agent = rendered.agent()?;
    ensure!(pod(agent)["hostPID"] == true, "no hostPID");
    unprivileged(agent)
}

fn controller_privileges(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let controller = rendered.controller()?;
    ensure!(pod(controller)["hostPID"].is_null(), "hostPID");
    unprivileged(controller)
}

/// What both have in common: the level `restricted` but for hostPID.
fn unprivileged(workload: &Value) -> Result<()> {
    let (pod, container) = (pod(workload), container(workload)?);
    for absent in
        ["hostNetwork", "hostIPC", "volumes", "initContainers", "securityContext", "shareProcessNamespace"]
    {
        ensure!(pod[absent].is_null(), "{absent}: {}", pod[absent]);
    }
    ensure!(container["volumeMounts"].is_null(), "volumeMounts");
    ensure!(pod["automountServiceAccountToken"] == true, "no token");
    let expected = json!({
        "runAsNonRoot": true,
        "runAsUser": 65535,
        "runAsGroup": 65535,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    ensure!(container["securityContext"] == expected, "{:#}", container["securityContext"]);
    ensure!(container["resources"]["requests"]["cpu"] == "10m", "{}", container["resources"]);
    ensure!(container["resources"]["limits"]["memory"].is_string(), "no memory limit");
    ensure!(container["resources"]["limits"]["cpu"].is_null(), "a CPU limit");
    Ok(())
}

fn agent_runs_on_every_node(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let agent = rendered.agent()?;
    ensure!(pod(agent)["tolerations"] == json!([{ "operator": "Exists" }]), "{}", pod(agent)["tolerations"]);
    ensure!(
        pod(agent)["nodeSelector"] == json!({ "kubernetes.io/os": "linux" }),
        "{}",
        pod(agent)["nodeSelector"]
    );
    ensure!(pod(agent)["priorityClassName"].is_null(), "a priority class that a quota may refuse");
    ensure!(agent["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "10%", "{}", agent["spec"]);
    let why = &agent["spec"]["template"]["metadata"]["annotations"]["sandboxhealth.dev/why-host-pid"];
    ensure!(why.as_str().is_some_and(|why| why.contains("/proc")), "{why}");
    Ok(())
}

fn probes_and_annotations_name_the_port(helm: &Helm) -> Result<()> {
    let (on, off) = (helm.render(&[])?, helm.render(&["metrics.annotations=false"])?);
    for workload in on.workloads()? {
        let container = container(workload)?;
        let ports = json!([{ "name": "http", "containerPort": 8080, "protocol": "TCP" }]);
        ensure!(container["ports"] == ports, "{}", container["ports"]);
        ensure!(args(workload)?.contains(&"--listen=0.0.0.0:8080"), "the port is not listened on");
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            ensure!(get == &json!({ "path": path, "port": "http" }), "{probe}: {get}");
        }
        let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
        for (key, value) in [("scrape", "true"), ("port", "8080"), ("path", "/metrics")] {
            ensure!(annotations[format!("prometheus.io/{key}")] == value, "{annotations}");
        }
    }
    for workload in off.workloads()? {
        let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
        ensure!(annotations["prometheus.io/scrape"].is_null(), "{annotations}");
    }
    let own = helm.render(&["podAnnotations.prometheus\\.io/path=/other"])?;
    for workload in own.workloads()? {
        let path = &workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"];
        ensure!(path == "/other", "{path}");
    }
    Ok(())
}

fn every_flag_is_known(helm: &Helm) -> Result<()> {
    let common = ["--listen", "--log-format", "--log-level"];
    let agent = ["--node-name", "--read-interval", "--zombie-threshold"];
    let controller = ["--lease-namespace", "--lease-name", "--identity"];
    let rendered = helm.render(&[])?;
    for (workload, subcommand, own) in
        [(rendered.agent()?, "agent", agent), (rendered.controller()?, "controller", controller)]
    {
        let args = args(workload)?;
        ensure!(args.first() == Some(&subcommand), "{args:?}");
        ensure!(container(workload)?["name"] == subcommand, "name of the container");
        let flags: Vec<_> = args.iter().skip(1).filter_map(|arg| Some(arg.split_once('=')?.0)).collect();
        ensure!(flags.len() == args.len() - 1, "a flag without a value: {args:?}");
        let (given, known): (BTreeSet<_>, BTreeSet<_>) =
            (flags.iter().copied().collect(), common.into_iter().chain(own).collect());
        ensure!(given == known, "{given:?}");
        ensure!(flags.len() == known.len(), "a flag is given twice: {args:?}");
        variables_are_defined(workload)?;
    }
    Ok(())
}

/// Each `$(NAME)` of the args is a variable of the container, taken from the field that it is called after.
fn variables_are_defined(workload: &Value) -> Result<()> {
    for arg in args(workload)? {
        let Some((_, name)) = arg.split_once("$(") else {
            continue;
        };
        let name = name.trim_end_matches(')');
        let field = match name {
            "NODE_NAME" => "spec.nodeName",
            "POD_NAME" => "metadata.name",
            "POD_NAMESPACE" => "metadata.namespace",
            _ => bail!("{arg}: no such variable"),
        };
        let variable = list(&container(workload)?["env"]).iter().find(|variable| variable["name"] == name);
        let from = variable.map(|variable| &variable["valueFrom"]["fieldRef"]["fieldPath"]);
        ensure!(from.is_some_and(|from| from == field), "{arg}: from {from:?}");
    }
    Ok(())
}

fn values_reach_the_flags(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[
        "agent.readInterval=2m",
        "agent.zombieThreshold=3000000",
        "log.format=json",
        "log.level=debug",
        "controller.replicas=3",
        "agent.priorityClassName=system-node-critical",
        "imagePullSecrets[0].name=pull",
    ])?;
    let (agent, controller) = (rendered.agent()?, rendered.controller()?);
    // Helm holds numbers as floats, which print as 3e+06.
    for flag in ["--read-interval=2m", "--zombie-threshold=3000000"] {
        ensure!(args(agent)?.contains(&flag), "{flag}: {:?}", args(agent)?);
    }
    ensure!(controller["spec"]["replicas"] == 3, "{}", controller["spec"]["replicas"]);
    ensure!(pod(agent)["priorityClassName"] == "system-node-critical", "no priority class");
    ensure!(pod(controller)["priorityClassName"].is_null(), "the agent's priority class");
    for workload in [agent, controller] {
        for flag in ["--log-format=json", "--log-level=debug"] {
            ensure!(args(workload)?.contains(&flag), "{flag}: {:?}", args(workload)?);
        }
        ensure!(pod(workload)["imagePullSecrets"] == json!([{ "name": "pull" }]), "no pull secret");
    }
    Ok(())
}

fn a_digest_wins_over_a_tag(helm: &Helm) -> Result<()> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let by_digest = format!("image.digest={digest}");
    for (set, expected) in [
        (vec![], "sandbox-health:0.1.0".into()),
        (vec!["image.repository=host.example:5000/a/b", "image.tag=x"], "host.example:5000/a/b:x".into()),
        (vec!["image.tag=x", &by_digest], format!("sandbox-health@{digest}")),
    ] {
        for workload in helm.render(&set)?.workloads()? {
            let image = &container(workload)?["image"];
            ensure!(image == &expected, "{set:?}: {image}");
        }
    }
    Ok(())
}

fn rbac_gives_these_verbs(helm: &Helm) -> Result<()> {
    let read = json!(["get", "list", "watch"]);
    let pods = |verbs: Value| json!({ "apiGroups": [""], "resources": ["pods"], "verbs": verbs });
    let nodes = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"] });
    let rows = |verbs: Value| json!({ "apiGroups": ["sandboxhealth.dev"], "resources": ["sandboxhealths"], "verbs": verbs });
    let status = json!({ "apiGroups": ["sandboxhealth.dev"], "resources": ["sandboxhealths/status"], "verbs": ["patch"] });
    let events = json!({ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] });
    let lease = json!({
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [format!("{FULLNAME}-controller")],
        "verbs": ["get", "update"],
    });
    let all_rows = rows(json!(["list", "watch", "create", "delete"]));
    let expected = [
        (
            "ClusterRole",
            "agent",
            json!([pods(json!(["list", "watch"])), rows(json!(["get", "list"])), status]),
        ),
        ("ClusterRole", "controller", json!([pods(read.clone()), nodes, all_rows, status, events])),
        ("ClusterRole", "view", json!([rows(read.clone())])),
        ("Role", "controller", json!([lease])),
    ];
    let rendered = helm.render(&[])?;
    for (kind, name, rules) in &expected {
        let role = rendered.get(kind, &format!("{FULLNAME}-{name}"))?;
        ensure!(&role["rules"] == rules, "{kind} {name}: {:#}", role["rules"]);
        let aggregated = &role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"];
        ensure!((aggregated == "true") == (*name == "view"), "{kind} {name}: aggregated {aggregated}");
    }
    let roles = rendered.of_kind("ClusterRole").count() + rendered.of_kind("Role").count();
    ensure!(roles == expected.len(), "{roles} roles");
    let without = helm.render(&["rbac.aggregateToView=false"])?;
    ensure!(without.get("ClusterRole", &format!("{FULLNAME}-view")).is_err(), "the view role is still there");
    Ok(())
}

fn each_role_is_bound_to_its_own_account(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    for (workload, component) in [(rendered.agent()?, "agent"), (rendered.controller()?, "controller")] {
        let name = format!("{FULLNAME}-{component}");
        ensure!(pod(workload)["serviceAccountName"] == *name, "{}", pod(workload)["serviceAccountName"]);
        let account = rendered.get("ServiceAccount", &name)?;
        ensure!(account["automountServiceAccountToken"] == false, "any pod gets the token of {name}");
    }
    for (kind, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for binding in rendered.of_kind(kind) {
            let name = &binding["metadata"]["name"];
            let subject = json!([{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }]);
            ensure!(binding["subjects"] == subject, "{kind} {name}: {}", binding["subjects"]);
            let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name });
            ensure!(binding["roleRef"] == role, "{kind} {name}: {}", binding["roleRef"]);
        }
    }
    Ok(())
}

fn lease_is_named_alike(helm: &Helm) -> Result<()> {
    for (set, name) in
        [(vec![], format!("{FULLNAME}-controller")), (vec!["fullnameOverride=x"], "x-controller".into())]
    {
        let rendered = helm.render(&set)?;
        let lease = rendered.get("Lease", &name)?;
        ensure!(
            lease["spec"].is_null(),
            "an upgrade would take the Lease from its holder: {}",
            lease["spec"]
        );
        let role = rendered.of_kind("Role").next().context("no Role")?;
        ensure!(role["rules"][0]["resourceNames"] == json!([name]), "{}", role["rules"]);
        let args = args(rendered.controller()?)?;
        ensure!(args.contains(&format!("--lease-name={name}").as_str()), "{args:?}");
        ensure!(args.contains(&"--lease-namespace=$(POD_NAMESPACE)"), "{args:?}");
    }
    Ok(())
}

fn budget_comes_with_the_second_replica(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let (budget, controller) =
        (rendered.get("PodDisruptionBudget", &format!("{FULLNAME}-controller"))?, rendered.controller()?);
    ensure!(controller["spec"]["replicas"] == 2, "{}", controller["spec"]["replicas"]);
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
    ensure!(budget["spec"]["selector"] == controller["spec"]["selector"], "{}", budget["spec"]["selector"]);
    let spread = &pod(controller)["topologySpreadConstraints"][0];
    ensure!(spread["whenUnsatisfiable"] == "ScheduleAnyway", "one node would run one controller: {spread}");
    ensure!(spread["labelSelector"] == controller["spec"]["selector"], "{spread}");
    let single = helm.render(&["controller.replicas=1"])?;
    ensure!(single.of_kind("PodDisruptionBudget").count() == 0, "a single controller would block a drain");
    Ok(())
}

fn user_labels_cannot_break_the_selectors(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&["podLabels.team=a", "podLabels.app\\.kubernetes\\.io/name=other"])?;
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

fn a_long_release_name_leaves_names_valid(helm: &Helm) -> Result<()> {
    // Helm's own limit is 53.
    let rendered = helm.render_as(&"r".repeat(53), &[])?;
    for object in &rendered.0 {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(name.len() <= 63 && !name.contains("--"), "{name}");
    }
    Ok(())
}

fn crd_is_the_generated_one(helm: &Helm) -> Result<()> {
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

/// Numbers as Helm prints them: 0.0 is written as 0.
fn whole(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(whole).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), whole(value))).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other.clone(),
    }
}

fn crd_is_kept_only_if_wanted(helm: &Helm) -> Result<()> {
    for (set, expected) in [(vec![], json!("keep")), (vec!["crds.keep=false"], Value::Null)] {
        let rendered = helm.render(&set)?;
        let policy = &rendered.crd().context("no CRD")?["metadata"]["annotations"]["helm.sh/resource-policy"];
        ensure!(policy == &expected, "{set:?}: {policy}");
    }
    Ok(())
}

fn crd_is_rendered_only_if_wanted(helm: &Helm) -> Result<()> {
    let (with, without) = (helm.render(&[])?, helm.render(&["crds.enabled=false"])?);
    ensure!(with.crd().is_some() && without.crd().is_none(), "crds.enabled has no effect");
    ensure!(with.0.len() == without.0.len() + 1, "crds.enabled changes more than the CRD");
    Ok(())
}

fn an_unknown_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, at) in [
        ("colour=red", "''"),
        ("agent.colour=red", "'/agent'"),
        ("controller.colour=red", "'/controller'"),
        ("image.colour=red", "'/image'"),
        ("imagePullSecrets[0].colour=red", "'/imagePullSecrets/0'"),
    ] {
        let error = helm.refuse(&["template", RELEASE], &[value])?;
        ensure!(error.contains("'colour' not allowed") && error.contains(at), "{value}: {error}");
    }
    Ok(())
}

fn a_bad_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, complaint) in [
        ("controller.replicas=two", "'/controller/replicas': got string, want integer"),
        ("controller.replicas=-1", "'/controller/replicas': minimum"),
        ("agent.zombieThreshold=0", "'/agent/zombieThreshold': minimum"),
        ("agent.zombieThreshold=many", "'/agent/zombieThreshold': got string, want integer"),
        ("agent.readInterval=5", "'/agent/readInterval': got number, want string"),
        ("agent.readInterval=5d", "'/agent/readInterval': '5d' does not match pattern"),
        ("agent.readInterval=0s", "'/agent/readInterval': '0s' does not match pattern"),
        ("agent.maxUnavailable=0%", "'/agent/maxUnavailable'"),
        ("agent.resources=none", "'/agent/resources': got string, want object"),
        ("log.format=xml", "'/log/format': value must be one of 'text', 'json'"),
        ("log.level=loud", "'/log/level': value must be one of"),
        ("image.pullPolicy=Sometimes", "'/image/pullPolicy': value must be one of"),
        ("image.repository=sandbox-health:1.0", "'/image/repository'"),
        ("image.digest=sha256:abc", "'/image/digest'"),
        ("crds.keep=perhaps", "'/crds/keep': got string, want boolean"),
        ("podLabels.port=1", "'/podLabels/port': got number, want string"),
        ("fullnameOverride=Upper", "'/fullnameOverride'"),
        (
            "fullnameOverride=a-name-of-more-than-52-characters-does-not-leave-room-for-it",
            "'/fullnameOverride'",
        ),
    ] {
        let error = helm.refuse(&["template", RELEASE], &[value])?;
        ensure!(error.contains(complaint), "{value}: {error}");
    }
    Ok(())
}

fn an_old_kubernetes_is_refused(helm: &Helm) -> Result<()> {
    let error = helm.refuse(&["template", RELEASE, "--kube-version=1.32.9"], &[])?;
    ensure!(error.contains("kubeVersion: >=1.33.0-0"), "{error}");
    for version in ["--kube-version=1.33.0", "--kube-version=1.33.1-vendor.2"] {
        helm.succeed(&["template", RELEASE, version], &[])?;
    }
    Ok(())
}

fn notes_tell_the_label_and_the_switch(helm: &Helm) -> Result<()> {
    let notes = helm.notes(&[])?;
    for line in [
        "kubectl label --overwrite namespace watch pod-security.kubernetes.io/enforce=privileged",
        "rollout status daemonset/blue-sandbox-health-agent",
        "kubectl get sandboxhealth -A",
        "systemctl restart containerd",
        "until it is created anew",
        "NoStatus",
    ] {
        ensure!(notes.contains(line), "the notes lack {line}:\n{notes}");
    }
    // The settings are those of the page about it, whose snippets for containerd 2 the e2e node is configured with.
    let page = include_str!("../../docs/pause.md").replace("REGISTRY/pause:0.1.0", "<pause image>");
    for setting in [
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"<pause image>\"\n",
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"<pause image>\"\n",
        "[crio.image]\npause_image = \"<pause image>\"\n",
    ] {
        for (text, whose) in [(notes.as_str(), "the notes"), (&page, "docs/pause.md")] {
            let flush_left: String = text.lines().flat_map(|line| [line.trim(), "\n"]).collect();
            ensure!(flush_left.contains(setting), "{whose} lack {setting}");
        }
    }
    Ok(())
}

fn notes_tell_what_an_uninstall_leaves(helm: &Helm) -> Result<()> {
    let delete = "kubectl delete crd sandboxhealths.sandboxhealth.dev";
    let (kept, gone, foreign) =
        (helm.notes(&[])?, helm.notes(&["crds.keep=false"])?, helm.notes(&["crds.enabled=false"])?);
    ensure!(kept.contains("The CRD stays") && kept.contains(delete), "{kept}");
    ensure!(gone.contains("The CRD goes") && !gone.contains(delete), "{gone}");
    ensure!(foreign.contains("is not part of this release") && !foreign.contains(delete), "{foreign}");
    Ok(())
}

fn readme_lists_every_value_with_its_default() -> Result<()> {
    let (readme, values, schema) = (read("README.md")?, yaml(&read("values.yaml")?)?, schema()?);
    let mut expected = BTreeSet::new();
    for (name, default) in leaves(&schema, &values, "")? {
        let row = format!("| `{name}` | `{default}` |");
        ensure!(readme.contains(&row), "README.md lacks {row}");
        expected.insert(name);
    }
    let rows = readme.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    let table: BTreeSet<_> = rows.map(String::from).collect();
    ensure!(table == expected, "README.md has values that are none: {:?}", table.difference(&expected));
    Ok(())
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&read("values.schema.json")?)?)
}

/// The values that are set one by one, with their defaults. A map without properties in the schema is one value.
fn leaves(schema: &Value, values: &Value, name: &str) -> Result<Vec<(String, Value)>> {
    let (Some(properties), Some(fields)) = (schema["properties"].as_object(), values.as_object()) else {
        return Ok(vec![(name.into(), values.clone())]);
    };
    let mut found = vec![];
    for (key, value) in fields {
        let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        let property = properties.get(key).with_context(|| format!("{full} is not in the schema"))?;
        found.extend(leaves(property, value, &full)?);
    }
    Ok(found)
}

fn schema_is_closed() -> Result<()> {
    let mut schema = schema()?;
    // Helm hands it to every chart below a parent; values.yaml has none.
    let global = schema["properties"].as_object_mut().and_then(|properties| properties.remove("global"));
    ensure!(global.is_some(), "a parent chart with global values could not use this one");
    closed(&schema, &yaml(&read("values.yaml")?)?, "values")
}

fn closed(schema: &Value, values: &Value, name: &str) -> Result<()> {
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    ensure!(schema["additionalProperties"] == false, "{name} takes unknown values");
    let fields = values.as_object().with_context(|| format!("{name} is no map in values.yaml"))?;
    let (known, given): (BTreeSet<_>, BTreeSet<_>) = (properties.keys().collect(), fields.keys().collect());
    ensure!(known == given, "{name}: the schema has {known:?}, values.yaml {given:?}");
    properties.iter().try_for_each(|(key, property)| closed(property, &values[key], &format!("{name}.{key}")))
}
