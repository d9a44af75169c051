//! The next action for a pod and its SandboxHealth object.

use crate::crd::{SandboxHealth, SandboxHealthSpec};
use crate::k8s::pod::{LeanPod, PidNamespaces};

#[derive(Debug, PartialEq)]
pub enum Action<'a> {
    None,
    /// Create the pod's object, if `maxObjects` allows.
    Create,
    /// Delete an object that belongs to another pod of the name, or is not owned by this one.
    DeleteStale(&'a SandboxHealth),
    /// Evaluate the object's conditions and emit Events.
    UpdateConditions(&'a SandboxHealth),
}

pub fn next<'a>(pod: &LeanPod, namespaces: PidNamespaces, object: Option<&'a SandboxHealth>) -> Action<'a> {
    let is_ending = pod.is_finished || pod.deletion_grace.is_some();
    match object {
        Some(object) if belongs_to(object, pod) => Action::UpdateConditions(object),
        // The next pod of the name makes room for itself, and the object of a deleted one is garbage-collected.
        Some(_) if pod.deletion_grace.is_some() => Action::None,
        Some(object) => Action::DeleteStale(object),
        // The sandbox of a finished pod is gone: an object would report nothing.
        None if is_ending => Action::None,
        // The agent creates the object of such a pod once it is unhealthy.
        None if namespaces == PidNamespaces::PerContainer => Action::None,
        None => Action::Create,
    }
}

/// Whether the object describes this very pod and is garbage-collected with it. An agent may have created it.
fn belongs_to(object: &SandboxHealth, pod: &LeanPod) -> bool {
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    let SandboxHealthSpec { pod_name, pod_uid, node_name } = &object.spec;
    pod_uid == pod.uid()
        && pod_name == pod.name()
        && **node_name == *pod.node
        && owners.iter().any(|owner| owner.uid == pod.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(changes: Value) -> LeanPod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"nodeName": "n", "shareProcessNamespace": true},
            "status": {"phase": "Running"},
        });
        for (part, fields) in changes.as_object().unwrap() {
            pod[part].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        }
        serde_json::from_value(pod).unwrap()
    }

    fn deleted() -> Value {
        json!({"metadata": {"deletionTimestamp": "2027-01-15T08:00:00Z", "deletionGracePeriodSeconds": 30}})
    }

    fn own() -> SandboxHealth {
        SandboxHealth::of_pod("shop", "web", "u-1", "n")
    }

    fn next_shared<'a>(pod: &LeanPod, object: Option<&'a SandboxHealth>) -> Action<'a> {
        next(pod, PidNamespaces::Shared, object)
    }

    #[test]
    fn running_pod_without_object_gets_one() {
        assert_eq!(next_shared(&pod(json!({})), None), Action::Create);
    }

    #[test]
    fn finished_or_deleted_pod_gets_no_object() {
        for changes in
            [json!({"status": {"phase": "Succeeded"}}), json!({"status": {"phase": "Failed"}}), deleted()]
        {
            assert_eq!(next_shared(&pod(changes.clone()), None), Action::None, "{changes}");
        }
    }

    #[test]
    fn pod_with_own_namespaces_gets_its_object_from_the_agent() {
        let object = own();
        let next = |object| next(&pod(json!({})), PidNamespaces::PerContainer, object);
        assert_eq!(next(None), Action::None);
        assert_eq!(next(Some(&object)), Action::UpdateConditions(&object));
    }

    #[test]
    fn object_of_another_pod_is_deleted() {
        let changed = |change: fn(&mut SandboxHealth)| {
            let mut object = own();
            change(&mut object);
            object
        };
        for stale in [
            changed(|object| object.spec.pod_uid = "u-0".to_owned()),
            changed(|object| object.spec.pod_name = "other".to_owned()),
            changed(|object| object.spec.node_name = "other".to_owned()),
            changed(|object| object.metadata.owner_references = None),
            SandboxHealth::of_pod("shop", "web", "u-0", "n"),
        ] {
            assert_eq!(next_shared(&pod(json!({})), Some(&stale)), Action::DeleteStale(&stale));
            assert_eq!(next_shared(&pod(deleted()), Some(&stale)), Action::None);
        }
    }

    #[test]
    fn own_object_is_evaluated_until_the_pod_is_gone() {
        let object = own();
        for changes in [json!({}), json!({"status": {"phase": "Failed"}}), deleted()] {
            let next = next_shared(&pod(changes), Some(&object));
            assert_eq!(next, Action::UpdateConditions(&object));
        }
    }
}
