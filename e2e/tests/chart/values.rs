//! The values: each is in the schema and in the README, and a wrong one is refused.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::helm::{Helm, RELEASE, read, yaml};

pub(super) fn an_unknown_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, at) in [
        ("colour=red", "''"),
        ("agent.colour=red", "'/agent'"),
        ("controller.colour=red", "'/controller'"),
        ("watch.colour=red", "'/watch'"),
        ("admissionPolicy.colour=red", "'/admissionPolicy'"),
        ("image.colour=red", "'/image'"),
        ("imagePullSecrets[0].colour=red", "'/imagePullSecrets/0'"),
    ] {
        let error = helm.refuse(&["template", RELEASE], &[value])?;
        ensure!(error.contains("'colour' not allowed") && error.contains(at), "{value}: {error}");
    }
    Ok(())
}

pub(super) fn a_bad_value_is_refused_by_name(helm: &Helm) -> Result<()> {
    for (value, complaint) in [
        ("controller.replicas=two", "'/controller/replicas': got string, want integer"),
        ("controller.replicas=-1", "'/controller/replicas': minimum"),
        ("controller.maxObjects=0", "'/controller/maxObjects': minimum"),
        ("controller.maxObjects=all", "'/controller/maxObjects': got string, want integer"),
        ("watch.pods=all", "'/watch/pods': value must be one of 'SharedPIDNamespace', 'All'"),
        ("admissionPolicy.enabled=perhaps", "'/admissionPolicy/enabled': got string, want boolean"),
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

pub(super) fn an_old_kubernetes_is_refused(helm: &Helm) -> Result<()> {
    let error = helm.refuse(&["template", RELEASE, "--kube-version=1.32.9"], &[])?;
    ensure!(error.contains("kubeVersion: >=1.33.0-0"), "{error}");
    for version in ["--kube-version=1.33.0", "--kube-version=1.33.1-vendor.2"] {
        helm.succeed(&["template", RELEASE, version], &[])?;
    }
    Ok(())
}

pub(super) fn readme_lists_every_value_with_its_default() -> Result<()> {
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

pub(super) fn schema_is_closed() -> Result<()> {
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
