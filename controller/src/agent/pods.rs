//! What the agent keeps of each pod of its node: the few facts that tie a sandbox to it and say what is expected of it.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

/// Annotation of a mirror pod with the hash that its static pod's cgroup is named by.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation that makes a pod a mirror pod.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod that shares its PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// UID of the pod object.
    pub uid: String,
    /// What its cgroup is named by: the UID, or for a static pod the hash of its configuration.
    pub cgroup_id: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is to be expected of its sandbox.
    pub stage: Stage,
    /// Ids of its containers, present and past; the sandbox's is not among them.
    pub container_ids: HashSet<String>,
}

/// Where a pod is in its life, as far as its sandbox goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There need not be a sandbox yet.
    Pending,
    /// There must be a sandbox.
    Running,
    /// All containers ended for good: the sandbox goes, and that is no restart.
    Finished,
    /// Being deleted: the sandbox goes, and so does its object.
    Deleted,
}

impl PodFacts {
    /// The facts of a pod; `None` for one whose containers have PID namespaces of their own.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref().filter(|spec| spec.share_process_namespace == Some(true))?;
        // With the host's PID namespace there is none to share; the API refuses both at once.
        if spec.host_pid == Some(true) {
            return None;
        }
        let uid = pod.metadata.uid.clone()?;
        Some(Self {
            cgroup_id: config_hash(pod).unwrap_or_else(|| uid.clone()),
            uid,
            namespace: pod.metadata.namespace.clone()?,
            name: pod.metadata.name.clone()?,
            stage: stage(pod),
            container_ids: container_ids(pod),
        })
    }
}

/// Of a mirror pod, which its node owns. Anybody may annotate a pod of theirs, so that what is claimed must not be what other
/// pods are known by: a hash has 32 digits, a UID has hyphens between them.
fn config_hash(pod: &Pod) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let hash = annotations.get(CONFIG_HASH).filter(|_| annotations.contains_key(CONFIG_MIRROR))?;
    let is_hash = hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hash && owners.iter().any(|owner| owner.kind == "Node")).then(|| hash.clone())
}

fn stage(pod: &Pod) -> Stage {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        _ if pod.metadata.deletion_timestamp.is_some() => Stage::Deleted,
        Some("Succeeded" | "Failed") => Stage::Finished,
        Some("Running") => Stage::Running,
        _ => Stage::Pending,
    }
}

fn container_ids(pod: &Pod) -> HashSet<String> {
    let Some(status) = &pod.status else {
        return HashSet::new();
    };
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut ids = HashSet::new();
    for container in lists.into_iter().flatten().flatten() {
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        let ended =
            states.into_iter().flatten().filter_map(|state| state.terminated.as_ref()?.container_id.as_ref());
        // `containerd://<id>`, `cri-o://<id>`
        let bare = |id: &String| id.rsplit_once("//").map(|(_, id)| id.to_owned());
        ids.extend(container.container_id.iter().chain(ended).filter_map(bare));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(changes: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"shareProcessNamespace": true, "containers": []},
            "status": {"phase": "Running"},
        });
        for (part, fields) in changes.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                pod[part][field] = value.clone();
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_without_a_shared_namespace_is_left_out() {
        assert!(PodFacts::of(&pod(json!({}))).is_some());
        assert!(PodFacts::of(&pod(json!({"spec": {"shareProcessNamespace": false}}))).is_none());
        assert!(PodFacts::of(&pod(json!({"spec": {"shareProcessNamespace": null}}))).is_none());
    }

    const HASH: &str = "3f1d0c9a8b7e6d5c4b3a291807f6e5d4";

    fn mirror(hash: &str, owner: &str) -> Pod {
        let owner = json!({"apiVersion": "v1", "kind": owner, "name": "n", "uid": "n-1"});
        pod(
            json!({"metadata": {"annotations": {CONFIG_HASH: hash, CONFIG_MIRROR: hash}, "ownerReferences": [owner]}}),
        )
    }

    #[test]
    fn a_pod_cannot_claim_another_one_s_cgroup() {
        let of_another = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
        let annotated = pod(json!({"metadata": {"annotations": {CONFIG_HASH: HASH}}}));
        for pod in [mirror(of_another, "Node"), mirror(HASH, "ReplicaSet"), annotated] {
            assert_eq!(PodFacts::of(&pod).unwrap().cgroup_id, "u-1");
        }
    }

    #[test]
    fn a_static_pod_is_known_by_its_config_hash() {
        let facts = PodFacts::of(&mirror(HASH, "Node")).unwrap();
        assert_eq!((facts.uid.as_str(), facts.cgroup_id.as_str()), ("u-1", HASH));
        assert_eq!(PodFacts::of(&pod(json!({}))).unwrap().cgroup_id, "u-1");
    }

    #[test]
    fn a_pod_that_is_finished_or_deleted_needs_no_sandbox() {
        let stage = |changes| PodFacts::of(&pod(changes)).unwrap().stage;
        assert_eq!(stage(json!({})), Stage::Running);
        assert_eq!(stage(json!({"status": {"phase": "Pending"}})), Stage::Pending);
        assert_eq!(stage(json!({"status": {"phase": "Succeeded"}})), Stage::Finished);
        assert_eq!(stage(json!({"metadata": {"deletionTimestamp": "2026-11-24T08:00:00Z"}})), Stage::Deleted);
    }

    #[test]
    fn containers_of_every_kind_are_known_past_ones_too() {
        let one = |id: &str| json!({"name": id, "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": format!("containerd://{id}")});
        let mut restarted = one("b");
        restarted["lastState"] = json!({"terminated": {"exitCode": 1, "containerID": "containerd://a"}});
        let facts = PodFacts::of(&pod(json!({"status": {
            "containerStatuses": [restarted],
            "initContainerStatuses": [one("c")],
            "ephemeralContainerStatuses": [one("d")],
        }})))
        .unwrap();
        assert_eq!(facts.container_ids, ["a", "b", "c", "d"].map(str::to_owned).into());
    }
}
