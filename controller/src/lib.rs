//! The operator of sandbox-health, in one program with two parts: the *agent* on each node sees pod sandboxes and reports
//! them; the *controller* owns the SandboxHealth objects, their conditions and the Events. They meet in the API alone.

pub mod agent;
pub mod api;
pub mod backoff;
pub mod check;
pub mod controller;
#[cfg(test)]
mod mock_server;
pub mod resource;
pub mod scope;
pub mod serve;
pub mod text;

/// The CRD as the chart ships it.
pub fn crd_yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&<resource::SandboxHealth as kube::CustomResourceExt>::crd())
}
