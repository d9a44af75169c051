//! The objects of a release, and the parts of them that tests check.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The objects of a release.
pub(super) struct Rendered(pub(super) Vec<Value>);

impl Rendered {
    pub(super) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        self.of_kind(kind)
            .find(|object| object["metadata"]["name"] == name)
            .with_context(|| format!("no {kind} {name}"))
    }

    pub(super) fn agent(&self) -> Result<&Value> {
        self.of_kind("DaemonSet").next().context("no DaemonSet")
    }

    pub(super) fn controller(&self) -> Result<&Value> {
        self.of_kind("Deployment").next().context("no Deployment")
    }

    pub(super) fn crd(&self) -> Option<&Value> {
        self.of_kind("CustomResourceDefinition").next()
    }

    pub(super) fn workloads(&self) -> Result<[&Value; 2]> {
        Ok([self.agent()?, self.controller()?])
    }
}

/// The pod template of a workload.
pub(super) fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

/// Its only container.
pub(super) fn container(workload: &Value) -> Result<&Value> {
    match list(&pod(workload)["containers"]) {
        [one] => Ok(one),
        several => bail!("{} containers", several.len()),
    }
}

pub(super) fn args(workload: &Value) -> Result<Vec<&str>> {
    list(&container(workload)?["args"])
        .iter()
        .map(|arg| arg.as_str().context("an argument is not a string"))
        .collect()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
