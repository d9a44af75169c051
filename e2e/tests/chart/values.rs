//! The values: each is in the schema with a description, each has an effect, and a wrong one is refused.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::golden::EVERYTHING;
use crate::helm::{Helm, NAMESPACE, RELEASE, chart, read, yaml};

pub(super) fn unknown_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, at) in [
        ("colour=red", "''"),
        ("agent.colour=red", "'/agent'"),
        ("controller.colour=red", "'/controller'"),
        ("watch.colour=red", "'/watch'"),
        ("validatingAdmissionPolicy.colour=red", "'/validatingAdmissionPolicy'"),
        ("image.colour=red", "'/image'"),
        ("podMonitor.colour=red", "'/podMonitor'"),
        ("prometheusRule.thresholds.colour=red", "'/prometheusRule/thresholds'"),
        ("openshift.scc.colour=red", "'/openshift/scc'"),
        ("imagePullSecrets[0].colour=red", "'/imagePullSecrets/0'"),
        ("agent.serviceAccount.colour=red", "'/agent/serviceAccount'"),
        ("agent.updateStrategy.rollingUpdate.colour=red", "'/agent/updateStrategy/rollingUpdate'"),
        ("agent.resources.colour=red", "'/agent/resources'"),
        ("agent.securityContext.colour=red", "'/agent/securityContext'"),
        ("agent.securityContext.capabilities.colour=red", "'/agent/securityContext/capabilities'"),
        ("agent.podSecurityContext.colour=red", "'/agent/podSecurityContext'"),
        ("agent.livenessProbe.colour=red", "'/agent/livenessProbe'"),
        ("agent.tolerations[0].colour=red", "'/agent/tolerations/0'"),
        ("agent.extraEnv[0].colour=red", "'/agent/extraEnv/0'"),
        ("controller.dnsConfig.colour=red", "'/controller/dnsConfig'"),
        ("agent.affinity.colour=red", "'/agent/affinity'"),
        ("agent.affinity.nodeAffinity.colour=red", "'/agent/affinity/nodeAffinity'"),
        ("controller.topologySpreadConstraints[0].colour=red", "'/controller/topologySpreadConstraints/0'"),
        ("controller.podDisruptionBudget.colour=red", "'/controller/podDisruptionBudget'"),
        ("networkPolicy.metricsFrom[0].colour=red", "'/networkPolicy/metricsFrom/0'"),
        ("networkPolicy.apiServerPeers[0].colour=red", "'/networkPolicy/apiServerPeers/0'"),
        ("networkPolicy.extraEgress[0].colour=red", "'/networkPolicy/extraEgress/0'"),
        ("networkPolicy.extraEgress[0].ports[0].colour=red", "'/networkPolicy/extraEgress/0/ports/0'"),
        ("rbac.colour=red", "'/rbac'"),
        ("helmTest.colour=red", "'/helmTest'"),
        ("pause.colour=red", "'/pause'"),
        ("pause.image.colour=red", "'/pause/image'"),
        ("pause.preload.colour=red", "'/pause/preload'"),
        ("pauseInstaller.colour=red", "'/pauseInstaller'"),
    ] {
        let error = helm.refuse(&["template", RELEASE], &[value])?;
        ensure!(error.contains("'colour' not allowed") && error.contains(at), "{value}: {error}");
    }
    Ok(())
}

pub(super) fn invalid_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, complaint) in [
        ("controller.replicaCount=two", "'/controller/replicaCount': got string, want integer"),
        ("controller.replicaCount=-1", "'/controller/replicaCount': minimum"),
        ("controller.maxObjects=0", "'/controller/maxObjects': minimum"),
        ("controller.maxObjects=all", "'/controller/maxObjects': got string, want integer"),
        ("watch.pods=all", "'/watch/pods': value must be one of 'SharedPIDNamespace', 'All'"),
        (
            "validatingAdmissionPolicy.enabled=perhaps",
            "'/validatingAdmissionPolicy/enabled': got string, want boolean",
        ),
        ("agent.zombieThreshold=0", "'/agent/zombieThreshold': minimum"),
        ("agent.zombieThreshold=many", "'/agent/zombieThreshold': got string, want integer"),
        ("agent.readInterval=5", "'/agent/readInterval': got number, want string"),
        ("agent.readInterval=5d", "'/agent/readInterval': '5d' does not match pattern"),
        ("agent.readInterval=0s", "'/agent/readInterval': '0s' does not match pattern"),
        (
            "agent.updateStrategy.rollingUpdate.maxUnavailable=101%",
            "'/agent/updateStrategy/rollingUpdate/maxUnavailable'",
        ),
        ("watch.namespaces[0]=Shop", "'/watch/namespaces/0'"),
        ("metrics.port=80", "'/metrics/port': minimum"),
        ("prometheusRule.disabled[0]=Sandbox", "'/prometheusRule/disabled/0': value must be one of"),
        (
            "prometheusRule.thresholds.SandboxPidsLimitNear.warning=80",
            "'/prometheusRule/thresholds/SandboxPidsLimitNear/warning'",
        ),
        ("podMonitor.interval=30", "'/podMonitor/interval': got number, want string"),
        ("podMonitor.apiVersion=v1", "'/podMonitor/apiVersion': value must be one of"),
        ("agent.extraVolumes[0].emptyDir=x", "'/agent/extraVolumes/0': missing property 'name'"),
        ("extraObjects[0].kind=Secret", "'/extraObjects/0'"),
        ("global.imageRegistry=https://host", "'/global/imageRegistry'"),
        ("global.imagePullSecrets[0].colour=red", "'/global/imagePullSecrets/0'"),
        ("agent.livenessProbe.periodSeconds=0", "'/agent/livenessProbe/periodSeconds': minimum"),
        ("agent.tolerations[0].operator=Exist", "'/agent/tolerations/0/operator': value must be one of"),
        ("agent.resources.requests.cpu=1O0m", "'/agent/resources/requests/cpu'"),
        ("controller.priorityClassName=High", "'/controller/priorityClassName'"),
        ("controller.dnsPolicy=Cluster", "'/controller/dnsPolicy': value must be one of"),
        ("controller.extraArgs[0]=max-objects=1", "'/controller/extraArgs/0'"),
        ("controller.revisionHistoryLimit=-1", "'/controller/revisionHistoryLimit': minimum"),
        ("networkPolicy.apiServerPorts[0]=70000", "'/networkPolicy/apiServerPorts/0': maximum"),
        ("networkPolicy.extraEgress[0].ports[0].port=0", "'/networkPolicy/extraEgress/0/ports/0/port'"),
        ("enabled=perhaps", "'/enabled': got string, want boolean"),
        ("commonLabels.team=a b", "'/commonLabels/team'"),
        ("helmTest.timeout=2h", "'/helmTest/timeout': '2h' does not match pattern"),
        ("agent.resources=none", "'/agent/resources': got string, want object"),
        ("log.format=xml", "'/log/format': value must be one of 'text', 'json'"),
        ("log.level=loud", "'/log/level': value must be one of"),
        ("image.pullPolicy=Sometimes", "'/image/pullPolicy': value must be one of"),
        ("image.repository=sandbox-health:1.0", "'/image/repository'"),
        ("image.digest=sha256:abc", "'/image/digest'"),
        ("pause.image.repository=pause:1.0", "'/pause/image/repository'"),
        ("pause.image.digest=sha256:abc", "'/pause/image/digest'"),
        ("pause.preload.enabled=perhaps", "'/pause/preload/enabled': got string, want boolean"),
        ("crds.keep=perhaps", "'/crds/keep': got string, want boolean"),
        ("agent.podLabels.port=1", "'/agent/podLabels/port': got number, want string"),
        ("image.registry=host//path", "'/image/registry'"),
        ("image.repository=host:5000/path", "'/image/repository'"),
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

pub(super) fn oldest_kubernetes_is_that_of_k8s_openapi() -> Result<()> {
    let about = yaml(&read("Chart.yaml")?)?;
    let oldest = about["kubeVersion"].as_str().and_then(|it| it.strip_prefix(">=")?.strip_suffix(".0-0"));
    let feature = format!("\"v{}\"", oldest.context("no oldest Kubernetes")?.replace('.', "_"));
    let workspace = include_str!("../../../Cargo.toml");
    let built_for =
        workspace.lines().find(|line| line.starts_with("k8s-openapi = ")).context("no k8s-openapi")?;
    ensure!(built_for.contains(&feature), "{feature}: {built_for}");
    Ok(())
}

pub(super) fn old_kubernetes_is_refused(helm: &Helm) -> Result<()> {
    let error = helm.refuse(&["template", RELEASE, "--kube-version=1.32.9"], &[])?;
    ensure!(error.contains("kubeVersion: >=1.33.0-0"), "{error}");
    for version in ["--kube-version=1.33.0", "--kube-version=1.33.1-vendor.2"] {
        helm.succeed(&["template", RELEASE, version], &[])?;
    }
    Ok(())
}

/// These values have an effect only in a cluster, or with a registry that has no images.
const REFUSALS: [&str; 2] = ["checks.enabled", "image.preloaded"];

/// Replacements of values of everything-on that equal the default and are no switch.
const OTHERS: [(&str, &str); 5] = [
    ("global.imageRegistry", "mirror.example/proxy"),
    ("podMonitor.apiVersion", "azmonitoring.coreos.com/v1"),
    ("serviceMonitor.apiVersion", "azmonitoring.coreos.com/v1"),
    ("agent.updateStrategy.type", "OnDelete"),
    ("controller.updateStrategy.type", "Recreate"),
];

/// Values without effect beside a PodMonitor: the annotations are tested without a monitor, and the ServiceMonitor is tested in its place.
const VOID_BESIDE_POD_MONITOR: [&str; 2] = ["metrics.annotations", "serviceMonitor."];

/// A digest replaces the tag.
const VOID_BESIDE_DIGEST: &str = "pause.image.tag";

/// Replaces each value of everything-on, mostly by its default: the rendered objects must differ.
pub(super) fn each_value_changes_rendered_objects(helm: &Helm) -> Result<()> {
    let everything = yaml(EVERYTHING)?;
    let file = tempfile::NamedTempFile::new()?;
    let values = format!("--values={}", file.path().display());
    let render = |set: &Value| {
        fs::write(file.path(), set.to_string())?;
        helm.succeed(&["template", RELEASE, "--namespace", NAMESPACE, &values], &[])
    };
    let all = render(&everything)?;
    for (name, default) in leaves(&schema()?, &yaml(&read("values.yaml")?)?, "")? {
        let (mut changed, mut before) = (everything.clone(), all.clone());
        if VOID_BESIDE_POD_MONITOR.iter().any(|void| name.starts_with(void)) {
            *at(&mut changed, "podMonitor.enabled") = false.into();
            *at(&mut changed, "serviceMonitor.enabled") = name.starts_with("serviceMonitor.").into();
            before = render(&changed)?;
        }
        if name == VOID_BESIDE_DIGEST {
            *at(&mut changed, "pause.image.digest") = "".into();
            before = render(&changed)?;
        }
        let value = at(&mut changed, &name);
        ensure!(!value.is_null(), "everything-on lacks {name}");
        let other = match (OTHERS.iter().find(|(other, _)| *other == name), &value) {
            (Some((_, other)), _) => (*other).into(),
            (None, Value::Bool(on)) => (!on).into(),
            (None, _) => default,
        };
        ensure!(&other != value, "everything-on leaves {name} as it is");
        *value = other;
        ensure!(REFUSALS.contains(&name.as_str()) || render(&changed)? != before, "{name} changes nothing");
    }
    Ok(())
}

/// A value by its name.
fn at<'a>(values: &'a mut Value, name: &str) -> &'a mut Value {
    name.split('.').fold(values, |value, key| &mut value[key])
}

/// Null removes a default, as Helm defines it. Every value that may be empty may be null, and so may those that a pod does not need.
pub(super) fn null_removes_optional_value(helm: &Helm) -> Result<()> {
    let needless = ["agent", "controller"].map(|part| {
        ["livenessProbe", "readinessProbe", "priorityClassName", "tolerations", "nodeSelector", "resources"]
            .map(|key| format!("{part}.{key}"))
    });
    let empty = leaves(&schema()?, &yaml(&read("values.yaml")?)?, "")?
        .into_iter()
        .filter(|(_, value)| [json!(""), json!([]), json!({})].contains(value))
        .map(|(name, _)| name);
    let labels = ["grafanaDashboard.labels".to_owned()];
    for name in needless.into_iter().flatten().chain(empty).chain(labels) {
        let null = format!("{name}=null");
        for monitor in ["podMonitor", "serviceMonitor"] {
            let on = ["networkPolicy", monitor, "prometheusRule", "grafanaDashboard"]
                .map(|part| format!("{part}.enabled=true"));
            let values: Vec<_> = on.iter().chain([&null]).map(String::as_str).collect();
            helm.render(&values).with_context(|| null.clone())?;
        }
    }
    Ok(())
}

/// With the `condition` of a parent chart's dependency.
pub(super) fn parent_chart_enables_and_disables_chart(helm: &Helm) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let parent = directory.path().join("parent");
    fs::create_dir_all(parent.join("charts"))?;
    std::os::unix::fs::symlink(chart().canonicalize()?, parent.join("charts/sandbox-health"))?;
    let dependency = json!({"name": "sandbox-health", "version": "*", "condition": "sandbox-health.enabled"});
    let about =
        json!({"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]});
    fs::write(parent.join("Chart.yaml"), about.to_string())?;
    for enabled in [true, false] {
        let switch = format!("sandbox-health.enabled={enabled}");
        let set = [switch.as_str(), "global.imageRegistry=mirror.example/proxy", "global.other=x"];
        let rendered = helm.succeed_with(&["template", RELEASE], &parent, &set)?;
        let image = "image: \"mirror.example/proxy/sandbox-health:0.1.0\"";
        ensure!(rendered.contains(image) == enabled, "{rendered}");
        ensure!(rendered.contains("kind: DaemonSet") == enabled, "enabled={enabled}: {rendered}");
    }
    Ok(())
}

pub(super) fn schema_describes_every_value() -> Result<()> {
    described(&schema()?, "values")
}

/// Each property has a description, and a type of its own or that of a definition.
fn described(schema: &Value, name: &str) -> Result<()> {
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let name = format!("{name}.{key}");
        ensure!(
            property["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{name} has no description"
        );
        let typed = ["type", "enum", "allOf"].iter().any(|key| !property[key].is_null());
        ensure!(typed, "{name} accepts anything: {property}");
        described(property, &name)?;
    }
    Ok(())
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&read("values.schema.json")?)?)
}

/// The single values with their defaults. A map without properties in the schema is one value.
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

pub(super) fn schema_is_closed() -> Result<()> {
    let mut schema = schema()?;
    // Keys for a parent chart: `enabled`, which values.yaml does not have, and values for all its subcharts.
    let properties = schema["properties"].as_object_mut().context("no properties")?;
    ensure!(
        properties.remove("enabled").is_some(),
        "a parent chart that sets enabled could not use this one"
    );
    let global = properties.get_mut("global").context("no global")?;
    ensure!(global["additionalProperties"].is_null(), "a parent chart could not set global values of others");
    global["additionalProperties"] = false.into();
    has_the_keys(&schema, &yaml(&read("values.yaml")?)?, "values")?;
    closed(&schema, "the schema")
}

/// A map in the schema accepts only the keys that it names, except maps of labels and the like, which have a schema for their values.
fn closed(schema: &Value, name: &str) -> Result<()> {
    if schema["type"] == "object" {
        let others = &schema["additionalProperties"];
        let named = schema["properties"].is_object();
        ensure!(if named { others == false } else { others.is_object() }, "{name} accepts unknown keys");
    }
    match schema {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(key, value)| closed(value, &format!("{name}.{key}")))
        }
        Value::Array(items) => items.iter().try_for_each(|item| closed(item, name)),
        _ => Ok(()),
    }
}

fn has_the_keys(schema: &Value, values: &Value, name: &str) -> Result<()> {
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    let fields = values.as_object().with_context(|| format!("{name} is not a map in values.yaml"))?;
    let (known, given): (BTreeSet<_>, BTreeSet<_>) = (properties.keys().collect(), fields.keys().collect());
    ensure!(known == given, "{name}: the schema has {known:?}, values.yaml {given:?}");
    properties
        .iter()
        .try_for_each(|(key, property)| has_the_keys(property, &values[key], &format!("{name}.{key}")))
}
