//! The controller's requests: it creates the SandboxHealth object of a pod, replaces one that an earlier pod of the name left
//! behind, writes conditions, and creates Events. When to make them is decided elsewhere.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::api::{ApiError, bounded};
use crate::resource::{CONTROLLER_FIELD_MANAGER, SandboxHealth, SandboxHealthSpec};

/// The object of a pod, as it is at first; `None` for a pod without a node.
#[must_use]
pub fn object_for(pod: &Pod) -> Option<SandboxHealth> {
    let (name, uid) = (pod.metadata.name.clone()?, pod.metadata.uid.clone()?);
    let node_name = pod.spec.as_ref()?.node_name.clone()?;
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: pod.metadata.namespace.clone(),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = SandboxHealthSpec { pod_name: name, pod_uid: uid, node_name };
    Some(SandboxHealth { metadata, spec, status: None })
}

/// Whether the object is the one for this very pod.
#[must_use]
pub fn is_of(object: &SandboxHealth, pod: &Pod) -> bool {
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    Some(&object.spec.pod_uid) == pod.metadata.uid.as_ref()
        && owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// Creates the object. One that is there already is no error: the watch will bring it.
pub async fn create(client: &Client, object: &SandboxHealth) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let params =
        PostParams { field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()), ..PostParams::default() };
    already_there_is_fine(bounded(api.create(&params, object)).await.map(drop))
}

/// Deletes an object that is not of this pod, if the pod is still the one that the server has of its name.
pub async fn delete_stale(client: &Client, object: &SandboxHealth, pod: &Pod) -> Result<(), ApiError> {
    let namespace = pod.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let live = bounded(pods.get_opt(&pod.name_any())).await?;
    if live.and_then(|live| live.metadata.uid) != pod.metadata.uid {
        return Ok(());
    }
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &namespace);
    let this_one = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
    match bounded(api.delete(&object.name_any(), &params)).await {
        Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the controller's part of the status.
pub async fn apply_judgement(
    client: &Client,
    object: &SandboxHealth,
    conditions: &[Condition],
    announced_restarts: i64,
) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let ours = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": object.name_any(), "uid": object.metadata.uid},
        "status": {"announcedRestarts": announced_restarts, "conditions": conditions},
    });
    let params = PatchParams::apply(CONTROLLER_FIELD_MANAGER).force();
    bounded(api.patch_status(&object.name_any(), &params, &Patch::Apply(&ours))).await.map(drop)
}

/// Creates an Event. One that is there already was made for the same happening.
pub async fn create_event(client: &Client, event: &Event) -> Result<(), ApiError> {
    let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace().unwrap_or_default());
    already_there_is_fine(bounded(api.create(&PostParams::default(), event)).await.map(drop))
}

fn already_there_is_fine(outcome: Result<(), ApiError>) -> Result<(), ApiError> {
    match outcome {
        Err(ApiError::Conflict(_)) => Ok(()),
        other => other,
    }
}
