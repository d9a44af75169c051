//! A node as the controller reads it.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

#[derive(Resource, Debug, Clone, Deserialize)]
#[resource(inherit = Node)]
#[serde(from = "Node")]
pub struct LeanNode {
    pub metadata: ObjectMeta,
    pub is_ready: bool,
}

impl From<Node> for LeanNode {
    fn from(Node { metadata, status, .. }: Node) -> Self {
        let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
        Self {
            metadata: ObjectMeta {
                name: metadata.name,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            is_ready: conditions.iter().any(|has| has.type_ == "Ready" && has.status == "True"),
        }
    }
}

impl LeanNode {
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}
