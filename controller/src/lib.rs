//! The operator of sandbox-health, in one program with two parts: the *agent* on each node sees pod sandboxes and reports
//! them; the *controller* owns the SandboxHealth objects, their conditions and the Events. They meet in the API alone.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

pub mod agent;
pub mod api;
pub mod authorship;
pub mod backoff;
pub mod budget;
pub mod check;
pub mod controller;
pub mod exposition;
pub mod metrics_table;
#[cfg(test)]
mod mock_server;
mod reference;
pub mod report;
pub mod resource;
pub mod sandbox_condition;
pub mod scope;
pub mod serve;
pub mod text;
pub mod waited;
pub mod workqueue_metrics;

/// The CRD as the chart ships it.
pub fn crd_yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&crd())
}

/// The API reference in docs/, which is made from the same.
#[must_use]
pub fn api_reference() -> String {
    reference::page(&crd())
}

fn crd() -> CustomResourceDefinition {
    let mut crd = <resource::SandboxHealth as kube::CustomResourceExt>::crd();
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        unwrap_lines(schema);
    }
    crd
}

/// Where a line of the source ends is no place for `kubectl explain` to end one.
fn unwrap_lines(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        *description = description.replace('\n', " ");
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        unwrap_lines(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        unwrap_lines(item);
    }
}
