//! The operator of sandbox-health, in one program with two parts: the *agent* on each node sees pod sandboxes and reports
//! them; the *controller* owns the SandboxHealth objects, their conditions and the Events. They meet in the API alone.

pub mod agent;
pub mod api;
pub mod backoff;
pub mod check;
pub mod controller;
pub mod exposition;
pub mod metrics_table;
#[cfg(test)]
mod mock_server;
mod reference;
pub mod resource;
pub mod sandbox_condition;
pub mod scope;
pub mod serve;
pub mod text;

/// The CRD as the chart ships it.
pub fn crd_yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&<resource::SandboxHealth as kube::CustomResourceExt>::crd())
}

/// The API reference in docs/, which is made from the same.
#[must_use]
pub fn api_reference() -> String {
    reference::page(&<resource::SandboxHealth as kube::CustomResourceExt>::crd())
}
