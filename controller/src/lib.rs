//! sandbox-health in one program with two parts: the *agent* on each node observes pod sandboxes and reports them; the *controller*
//! owns the SandboxHealth objects, their conditions and the Events. They meet in the API only.
//!
//! Imports go down only: `agent`, `controller`, `installer` → `core`, `k8s`, `procfs` → `crd`, `text`.
#![allow(missing_docs, reason = "a program's library: an item is explained where its name does not do it")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition,
};

pub mod agent;
pub mod controller;
pub mod core;
pub mod crd;
pub mod health;
pub mod helm_test;
pub mod installer;
pub mod k8s;
pub mod pause_config;
pub mod procfs;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod text;

/// The CRD as YAML, as the chart ships it.
pub fn crd_yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&crd())
}

/// With the fields that the API server would add: a GitOps tool shows each as a difference.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = <crd::SandboxHealth as kube::CustomResourceExt>::crd();
    crd.spec.names.list_kind = Some(format!("{}List", crd.spec.names.kind));
    crd.spec.conversion = Some(CustomResourceConversion { strategy: "None".into(), webhook: None });
    crd
}
