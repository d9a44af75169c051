//! The pods of agent and controller: privileges, placement, flags and probes.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::helm::{FULLNAME, Helm};
use crate::rendered::{args, container, list, pod};

pub(super) fn agent_privileges(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let agent = rendered.agent()?;
    ensure!(pod(agent)["hostPID"] == true, "no hostPID");
    unprivileged(agent)
}

pub(super) fn controller_privileges(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let controller = rendered.controller()?;
    ensure!(pod(controller)["hostPID"].is_null(), "hostPID");
    unprivileged(controller)
}

/// The container that pulls the pause image to a node.
pub(super) fn preloaded_pause_has_no_privilege(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&["pause.preload.enabled=true"])?;
    let agent = rendered.agent()?;
    let [first, pause] = list(&pod(agent)["containers"]) else { bail!("not two containers") };
    ensure!(pause["name"] == "pause", "{pause}");
    ensure!(pause["image"] == "registry.sandboxhealth.dev/pause:0.1.0", "{pause}");
    ensure!(pause["securityContext"] == restricted(), "{:#}", pause["securityContext"]);
    for absent in ["args", "command", "env", "envFrom", "ports", "volumeMounts", "livenessProbe"] {
        ensure!(pause[absent].is_null(), "{absent}: {}", pause[absent]);
    }
    ensure!(pause["resources"]["limits"]["memory"].is_string(), "no memory limit");
    let default = helm.render(&[])?;
    ensure!(first == container(default.agent()?)?, "the agent's container changed: {first:#}");
    Ok(())
}

/// The level `restricted` of the Pod Security Standards, and more.
fn restricted() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": 64535,
        "runAsGroup": 64535,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Both have the level `restricted`, except for hostPID.
fn unprivileged(workload: &Value) -> Result<()> {
    let (pod, container) = (pod(workload), container(workload)?);
    for absent in ["hostNetwork", "hostIPC", "volumes", "initContainers", "shareProcessNamespace"] {
        ensure!(pod[absent].is_null(), "{absent}: {}", pod[absent]);
    }
    ensure!(pod["securityContext"] == json!({}), "{}", pod["securityContext"]);
    ensure!(container["volumeMounts"].is_null(), "volumeMounts");
    ensure!(pod["automountServiceAccountToken"] == true, "no token");
    ensure!(container["securityContext"] == restricted(), "{:#}", container["securityContext"]);
    ensure!(container["resources"]["requests"]["cpu"] == "10m", "{}", container["resources"]);
    ensure!(container["resources"]["limits"]["memory"].is_string(), "no memory limit");
    ensure!(container["resources"]["limits"]["cpu"].is_null(), "a CPU limit");
    Ok(())
}

pub(super) fn agent_runs_on_every_node(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let agent = rendered.agent()?;
    ensure!(pod(agent)["tolerations"] == json!([{ "operator": "Exists" }]), "{}", pod(agent)["tolerations"]);
    ensure!(
        pod(agent)["nodeSelector"] == json!({ "kubernetes.io/os": "linux" }),
        "{}",
        pod(agent)["nodeSelector"]
    );
    ensure!(agent["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "10%", "{}", agent["spec"]);
    Ok(())
}

pub(super) fn probes_and_scrape_annotations_name_port(helm: &Helm) -> Result<()> {
    let (on, off) = (helm.render(&[])?, helm.render(&["metrics.annotations=false"])?);
    for workload in on.workloads()? {
        let container = container(workload)?;
        let ports = json!([{ "name": "http", "containerPort": 8080, "protocol": "TCP" }]);
        ensure!(container["ports"] == ports, "{}", container["ports"]);
        ensure!(args(workload)?.contains(&"--listen=[::]:8080"), "no flag listens on the port");
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            ensure!(get == &json!({ "path": path, "port": "http", "scheme": "HTTP" }), "{probe}: {get}");
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
    let own = helm.render(&[
        "agent.podAnnotations.prometheus\\.io/path=/other",
        "controller.podAnnotations.prometheus\\.io/path=/other",
    ])?;
    for workload in own.workloads()? {
        let path = &workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"];
        ensure!(path == "/other", "{path}");
    }
    Ok(())
}

pub(super) fn every_flag_is_known(helm: &Helm) -> Result<()> {
    let common = ["--listen", "--log-format", "--log-level", "--watch-pods"];
    let agent = &["--node-name", "--read-interval", "--zombie-threshold"][..];
    let lease = ["--lease-namespace", "--lease-name", "--identity"];
    let controller = &[&lease[..], &["--max-objects", "--agent-daemonset"]].concat()[..];
    let rendered = helm.render(&[])?;
    for (workload, subcommand, own) in
        [(rendered.agent()?, "agent", agent), (rendered.controller()?, "controller", controller)]
    {
        let args = args(workload)?;
        ensure!(args.first() == Some(&subcommand), "{args:?}");
        ensure!(container(workload)?["name"] == subcommand, "the container has another name");
        let flags: Vec<_> = args.iter().skip(1).filter_map(|arg| Some(arg.split_once('=')?.0)).collect();
        ensure!(flags.len() == args.len() - 1, "a flag without a value: {args:?}");
        let (given, known): (BTreeSet<_>, BTreeSet<_>) =
            (flags.iter().copied().collect(), common.iter().chain(own).copied().collect());
        ensure!(given == known, "{given:?}");
        ensure!(flags.len() == known.len(), "a flag is given twice: {args:?}");
        variables_are_defined(workload)?;
    }
    Ok(())
}

/// Each `$(NAME)` in the arguments is a variable of the container, set from the field with that name.
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

pub(super) fn values_reach_the_flags(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[
        "agent.readInterval=2m",
        "agent.zombieThreshold=3000000",
        "log.format=json",
        "log.level=debug",
        "controller.replicaCount=3",
        "controller.maxObjects=2000000",
        "watch.pods=All",
        "imagePullSecrets[0].name=pull",
        "global.imagePullSecrets[0].name=parent",
    ])?;
    let (agent, controller) = (rendered.agent()?, rendered.controller()?);
    // Helm has numbers as floats, which print as 3e+06.
    for flag in ["--read-interval=2m", "--zombie-threshold=3000000"] {
        ensure!(args(agent)?.contains(&flag), "{flag}: {:?}", args(agent)?);
    }
    ensure!(args(controller)?.contains(&"--max-objects=2000000"), "{:?}", args(controller)?);
    ensure!(controller["spec"]["replicas"] == 3, "{}", controller["spec"]["replicas"]);
    for workload in [agent, controller] {
        for flag in ["--log-format=json", "--log-level=debug", "--watch-pods=all"] {
            ensure!(args(workload)?.contains(&flag), "{flag}: {:?}", args(workload)?);
        }
        ensure!(
            pod(workload)["imagePullSecrets"] == json!([{ "name": "parent" }, { "name": "pull" }]),
            "no pull secret"
        );
    }
    for workload in helm.render(&[])?.workloads()? {
        ensure!(args(workload)?.contains(&"--watch-pods=shared-pid-namespace"), "{:?}", args(workload)?);
    }
    Ok(())
}

pub(super) fn image_has_registry_path_tag_and_digest(helm: &Helm) -> Result<()> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let by_digest = format!("image.digest={digest}");
    for (set, expected) in [
        (vec!["image.registry="], "sandbox-health:0.1.0".into()),
        (
            vec!["image.registry=host.example:5000/proxy/hub/", "image.repository=a/b"],
            "host.example:5000/proxy/hub/a/b:0.1.0".into(),
        ),
        (
            vec!["image.registry=host.example", "global.imageRegistry=mirror.example/all", "image.tag=x"],
            "mirror.example/all/sandbox-health:x".into(),
        ),
        (vec!["image.registry=h", "image.tag=x", &by_digest], format!("h/sandbox-health:x@{digest}")),
    ] {
        for workload in helm.render(&set)?.workloads()? {
            let image = &container(workload)?["image"];
            ensure!(image == &expected, "{set:?}: {image}");
        }
    }
    Ok(())
}

/// The default has neither: no pod of a user may be preempted.
pub(super) fn priority_class_and_quota_are_off_by_default(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    for workload in rendered.workloads()? {
        ensure!(pod(workload)["priorityClassName"].is_null(), "{}", pod(workload)["priorityClassName"]);
    }
    ensure!(rendered.of_kind("ResourceQuota").next().is_none(), "a quota");
    let rendered =
        helm.render(&["agent.priorityClassName=system-node-critical", "priorityClassQuota.create=true"])?;
    ensure!(pod(rendered.agent()?)["priorityClassName"] == "system-node-critical", "no class");
    let quota = rendered.of_kind("ResourceQuota").next().context("no quota")?;
    let scope =
        json!([{ "scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"] }]);
    ensure!(quota["spec"]["scopeSelector"]["matchExpressions"] == scope, "{}", quota["spec"]);
    Ok(())
}

/// The only value that a fork changes. Once the registry has images, the refusal is removed.
pub(super) fn default_registry_is_refused_until_it_has_images(helm: &Helm) -> Result<()> {
    let refusal = helm.refuse(&["template", "blue"], &["image.preloaded=false"])?;
    for line in [
        "registry.sandboxhealth.dev has no images yet",
        "cargo release-artifacts -- --output release --registry REGISTRY",
        "--set image.registry=REGISTRY",
        "--set image.preloaded=true",
    ] {
        ensure!(refusal.contains(line), "{line}: {refusal}");
    }
    for other in ["image.registry=registry.example", "global.imageRegistry=registry.example"] {
        helm.render(&["image.preloaded=false", other])?;
    }
    let preloaded = helm.render(&[])?;
    let image = &container(preloaded.agent()?)?["image"];
    ensure!(image == "registry.sandboxhealth.dev/sandbox-health:0.1.0", "{image}");
    Ok(())
}

pub(super) fn null_removes_default(helm: &Helm) -> Result<()> {
    let rendered =
        helm.render(&["agent.securityContext.runAsUser=null", "agent.resources.limits.memory=null"])?;
    let container = container(rendered.agent()?)?;
    ensure!(container["securityContext"]["runAsUser"].is_null(), "{}", container["securityContext"]);
    ensure!(container["securityContext"]["runAsNonRoot"] == true, "{}", container["securityContext"]);
    ensure!(container["resources"]["limits"]["memory"].is_null(), "{}", container["resources"]);
    Ok(())
}

/// The API server refuses numbers for a strategy that has none.
pub(super) fn other_update_strategy_has_no_numbers(helm: &Helm) -> Result<()> {
    let rendered =
        helm.render(&["agent.updateStrategy.type=OnDelete", "controller.updateStrategy.type=Recreate"])?;
    let (agent, controller) = (&rendered.agent()?["spec"], &rendered.controller()?["spec"]);
    ensure!(agent["updateStrategy"] == json!({ "type": "OnDelete" }), "{}", agent["updateStrategy"]);
    ensure!(controller["strategy"] == json!({ "type": "Recreate" }), "{}", controller["strategy"]);
    Ok(())
}

pub(super) fn disruption_budget_needs_second_replica(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let (budget, controller) =
        (rendered.get("PodDisruptionBudget", &format!("{FULLNAME}-controller"))?, rendered.controller()?);
    ensure!(controller["spec"]["replicas"] == 2, "{}", controller["spec"]["replicas"]);
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
    ensure!(budget["spec"]["selector"] == controller["spec"]["selector"], "{}", budget["spec"]["selector"]);
    let spread = &pod(controller)["topologySpreadConstraints"][0];
    ensure!(spread["whenUnsatisfiable"] == "ScheduleAnyway", "one node would run one controller: {spread}");
    ensure!(spread["labelSelector"] == controller["spec"]["selector"], "{spread}");
    let single = helm.render(&["controller.replicaCount=1"])?;
    ensure!(single.of_kind("PodDisruptionBudget").count() == 0, "a single controller would block a drain");
    Ok(())
}
