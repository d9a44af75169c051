//! What the agent keeps of each pod of its node: the few facts that tie a sandbox to it and say what is expected of it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use crate::resource::SandboxHealth;
use crate::sandbox_condition::KubeletSaid;
use crate::scope::{PidNamespaces, WatchPods, is_finished};

/// Annotation of a mirror pod with the hash that its static pod's cgroup is named by.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation that makes a pod a mirror pod.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod that is watched.
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
    /// Its node.
    pub node: String,
    /// How its processes are kept apart.
    pub namespaces: PidNamespaces,
    /// What is to be expected of its sandbox.
    pub stage: Stage,
    /// Names of its containers by their ids, present and past; the sandbox's is not among them.
    pub containers: HashMap<String, String>,
    /// Least restart count of its containers; `None` when none is known yet.
    pub container_restarts: Option<i64>,
    /// What the kubelet says of why the sandbox is not ready, and since when it's not.
    pub kubelet_said: Option<KubeletSaid>,
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
    /// The facts of a pod; `None` for one that is not to be watched.
    #[must_use]
    pub fn of(pod: &Pod, watch: WatchPods) -> Option<Self> {
        let namespaces = watch.watched(pod)?;
        let uid = pod.metadata.uid.clone()?;
        Some(Self {
            cgroup_id: config_hash(pod).unwrap_or_else(|| uid.clone()),
            uid,
            namespace: pod.metadata.namespace.clone()?,
            name: pod.metadata.name.clone()?,
            node: pod.spec.as_ref()?.node_name.clone()?,
            namespaces,
            stage: stage(pod),
            containers: containers(pod),
            container_restarts: container_restarts(pod),
            kubelet_said: KubeletSaid::of(pod),
        })
    }

    /// The pod's object, as it is at first.
    #[must_use]
    pub fn object(&self) -> SandboxHealth {
        SandboxHealth::of_pod(&self.namespace, &self.name, &self.uid, &self.node)
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
        _ if is_finished(pod) => Stage::Finished,
        Some("Running") => Stage::Running,
        _ => Stage::Pending,
    }
}

fn containers(pod: &Pod) -> HashMap<String, String> {
    let Some(status) = &pod.status else {
        return HashMap::new();
    };
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut names = HashMap::new();
    for container in lists.into_iter().flatten().flatten() {
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        let ended =
            states.into_iter().flatten().filter_map(|state| state.terminated.as_ref()?.container_id.as_ref());
        // `containerd://<id>`, `cri-o://<id>`
        let bare = |id: &String| id.rsplit_once("//").map(|(_, id)| (id.to_owned(), container.name.clone()));
        names.extend(container.container_id.iter().chain(ended).filter_map(bare));
    }
    names
}

fn container_restarts(pod: &Pod) -> Option<i64> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().map(|container| container.restart_count.into()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox_condition::READY_TO_START;
    use serde_json::{Value, json};

    fn pod(changes: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"shareProcessNamespace": true, "nodeName": "n", "containers": []},
            "status": {"phase": "Running"},
        });
        for (part, fields) in changes.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                pod[part][field] = value.clone();
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    fn facts(pod: &Pod) -> PodFacts {
        PodFacts::of(pod, WatchPods::SharedPidNamespace).unwrap()
    }

    #[test]
    fn a_pod_that_is_not_watched_has_no_facts() {
        let sharing_none = pod(json!({"spec": {"shareProcessNamespace": false}}));
        assert_eq!(PodFacts::of(&sharing_none, WatchPods::SharedPidNamespace), None);
        let facts = PodFacts::of(&sharing_none, WatchPods::All).unwrap();
        assert_eq!(facts.namespaces, PidNamespaces::PerContainer);
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
            assert_eq!(facts(&pod).cgroup_id, "u-1");
        }
    }

    #[test]
    fn a_static_pod_is_known_by_its_config_hash() {
        let mirror = facts(&mirror(HASH, "Node"));
        assert_eq!((mirror.uid.as_str(), mirror.cgroup_id.as_str()), ("u-1", HASH));
        assert_eq!(facts(&pod(json!({}))).cgroup_id, "u-1");
    }

    #[test]
    fn a_pod_that_is_finished_or_deleted_needs_no_sandbox() {
        let stage = |changes| facts(&pod(changes)).stage;
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
        let facts = facts(&pod(json!({"status": {
            "containerStatuses": [restarted],
            "initContainerStatuses": [one("c")],
            "ephemeralContainerStatuses": [one("d")],
        }})));
        let name = |id: &str| facts.containers.get(id).map(String::as_str);
        assert_eq!(["a", "b", "c", "d", "e"].map(name), [Some("b"), Some("b"), Some("c"), Some("d"), None]);
    }

    #[test]
    fn the_least_restart_count_is_that_of_the_sandbox_at_most() {
        let count = |count: i32| json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": count});
        let counts =
            |counts: Value| facts(&pod(json!({"status": {"containerStatuses": counts}}))).container_restarts;
        assert_eq!(counts(json!([count(5), count(2)])), Some(2));
        assert_eq!(counts(json!([])), None);
    }

    #[test]
    fn what_the_kubelet_says_is_kept_while_the_sandbox_is_not_ready() {
        let said = |status: &str, message: &str| {
            let condition = json!({
                "type": READY_TO_START, "status": status, "lastTransitionTime": "2027-01-15T08:00:00Z", "message": message,
            });
            facts(&pod(json!({"status": {"conditions": [condition]}}))).kubelet_said
        };
        let gone = said("False", "the sandbox is gone").unwrap();
        assert_eq!((gone.at.as_second(), gone.message.as_str()), (1_800_000_000, "the sandbox is gone"));
        assert_eq!((said("True", "x"), said("False", "")), (None, None));
    }
}
