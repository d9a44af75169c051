//! Pods as agent and controller read them: which are observed, and two types with the fields that they need. A list is in memory as a
//! whole, and most of it would be other fields.

use std::collections::HashMap;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use crate::text::cut;

/// The message of the kubelet's condition (Kubernetes 1.37) for every sandbox that ended: it names no cause.
const NOT_READY: &str = "pod sandbox is not ready";
/// Condition of a pod that is False while it has no sandbox in which containers can be started (KEP-3085).
const READY_TO_START: &str = "PodReadyToStartContainers";
/// Exit code of a container whose processes were killed by SIGKILL, as they are when PID 1 of their PID namespace exits.
const KILLED: i32 = 128 + 9;
/// Limit in bytes of a kubelet message.
const MESSAGE_MAX: usize = 200;

/// Which pods are observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WatchPods {
    /// Pods with `shareProcessNamespace: true`.
    SharedPidNamespace,
    /// All pods but those in the node's PID namespace. Pods that do not share their PID namespace get an object only once they are
    /// unhealthy.
    All,
}

/// PID namespaces of a pod that are not the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespaces {
    /// One for the whole pod, with pause as PID 1 (`shareProcessNamespace: true`).
    Shared,
    /// One for each container, whose own PID 1 must reap.
    PerContainer,
}

/// Which pods are observed; agent and controller need the same.
#[derive(Debug, Clone, clap::Args)]
pub struct WatchOptions {
    /// Which pods are observed. One with the label `sandboxhealth.dev/watch: "false"` never is.
    #[arg(long, value_enum, default_value_t = WatchPods::SharedPidNamespace)]
    pub watch_pods: WatchPods,
    /// Namespace whose pods are observed (may be repeated; by default those of all namespaces are).
    #[arg(long = "watch-namespace", value_name = "NAME")]
    pub watch_namespaces: Vec<String>,
}

impl WatchOptions {
    fn includes(&self, namespace: &str, pid_namespaces: PidNamespaces) -> bool {
        (self.watch_namespaces.is_empty() || self.watch_namespaces.iter().any(|watched| watched == namespace))
            && (self.watch_pods == WatchPods::All || pid_namespaces == PidNamespaces::Shared)
    }
}

#[cfg(test)]
impl From<WatchPods> for WatchOptions {
    fn from(watch_pods: WatchPods) -> Self {
        Self { watch_pods, watch_namespaces: Vec::new() }
    }
}

/// What the kubelet reports about the sandbox of a pod that has none at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletMessage {
    /// Time of the transition.
    pub at: Timestamp,
    /// One line of limited length.
    pub message: String,
}

impl KubeletMessage {
    pub fn added_to(cause: &str, message: Option<&Self>) -> String {
        message.map_or_else(|| cause.to_owned(), |kubelet| format!("{cause}; kubelet: {}", kubelet.message))
    }
}

/// The containers of a pod but for sidecars, which the kubelet kills itself when the others have exited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStates {
    pub is_running: bool,
    /// When containers were killed by SIGKILL, in whole seconds. Those that the kernel killed for lack of memory are not among them.
    pub killed_at: Vec<Timestamp>,
}

/// The stage of a pod's life, as far as its sandbox is concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// There may be no sandbox yet.
    #[default]
    Pending,
    /// There must be a sandbox.
    Running,
    /// Deletion was requested: the sandbox is observed until the kubelet stops it.
    Terminating,
    /// Terminal phase: the kubelet stops the sandbox, and creates no other.
    Finished,
}

/// A pod as the agent of its node reads it: the fields that identify its sandbox, and those that show whether it must have one.
#[derive(Resource, Debug, Clone, Default, Deserialize, PartialEq)]
#[resource(inherit = Pod)]
#[serde(from = "WirePod")]
pub struct NodePod {
    pub metadata: ObjectMeta,
    pub node: Box<str>,
    /// Name of its cgroup: the UID, or for a static pod the hash of its configuration.
    pub cgroup_id: String,
    /// `None` if they are the node's, or if the pod opts out by its label.
    pub pid_namespaces: Option<PidNamespaces>,
    pub stage: Stage,
    /// Names of its containers by id, present and past. The id of the sandbox is not among them.
    pub containers: HashMap<String, String>,
    pub states: ContainerStates,
    pub kubelet_message: Option<KubeletMessage>,
    /// Whether the kubelet reports a sandbox in which containers can be started.
    pub has_sandbox: bool,
    /// Whether it has a runtime class, whose handler may run it without a pause process: in a virtual machine, or with a kernel of its own.
    pub has_runtime_class: bool,
}

impl NodePod {
    pub fn is_observed(&self, watch: &WatchOptions) -> bool {
        self.pid_namespaces.is_some_and(|namespaces| watch.includes(self.namespace(), namespaces))
    }

    /// Whether the pod is neither ending nor ended.
    pub fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Pending | Stage::Running)
    }
}

/// A pod as the controller reads it, which keeps many.
#[derive(Resource, Debug, Clone, Deserialize, PartialEq)]
#[resource(inherit = Pod)]
#[serde(from = "WirePod")]
pub struct LeanPod {
    pub metadata: ObjectMeta,
    /// Empty before the pod is scheduled.
    pub node: Box<str>,
    pub is_finished: bool,
    pub is_ready: bool,
    /// Name of the DaemonSet that controls the pod.
    pub daemon_set: Option<Box<str>>,
    /// UID by which `kubectl describe` looks for Events of a mirror pod.
    pub mirror_uid: Option<Box<str>>,
    /// Grace period of the deletion, if one was requested.
    pub deletion_grace: Option<Duration>,
    /// When the deletion was first observed. Set by the index; the clock of the API server is not compared with ours.
    pub deletion_seen_at: Option<Instant>,
    /// Names of the containers with exec probes, of a pod that does not share its PID namespace.
    exec_probed: Box<[Box<str>]>,
    /// As in [`NodePod`].
    pid_namespaces: Option<PidNamespaces>,
}

impl LeanPod {
    /// The PID namespaces of the pod, or none if it is not observed or not yet scheduled.
    pub fn watched(&self, watch: &WatchOptions) -> Option<PidNamespaces> {
        let is_scheduled = !self.node.is_empty();
        self.pid_namespaces.filter(|&namespaces| is_scheduled && watch.includes(self.namespace(), namespaces))
    }

    /// Names of the containers with exec probes, if each container has a PID namespace of its own.
    pub fn exec_probed(&self) -> Option<&[Box<str>]> {
        (self.pid_namespaces == Some(PidNamespaces::PerContainer)).then_some(&*self.exec_probed)
    }
}

/// Names without a copy; those of kube's `ResourceExt` allocate.
macro_rules! names {
    ($($pod:ty),*) => {$(
        impl $pod {
            pub fn namespace(&self) -> &str {
                self.metadata.namespace.as_deref().unwrap_or_default()
            }

            pub fn name(&self) -> &str {
                self.metadata.name.as_deref().unwrap_or_default()
            }

            pub fn uid(&self) -> &str {
                self.metadata.uid.as_deref().unwrap_or_default()
            }
        }
    )*};
}

names!(NodePod, LeanPod);

/// The fields of a pod that are deserialized; the rest is skipped.
#[derive(Deserialize)]
struct WirePod {
    metadata: WireMetadata,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    #[serde(default)]
    labels: WireLabels,
    #[serde(default)]
    annotations: WireAnnotations,
    #[serde(default)]
    owner_references: Vec<OwnerReference>,
}

#[derive(Deserialize, Default)]
struct WireLabels {
    #[serde(rename = "sandboxhealth.dev/watch")]
    watch: Option<String>,
}

#[derive(Deserialize, Default)]
struct WireAnnotations {
    /// Names the cgroup of a static pod.
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
    /// Makes a pod a mirror pod.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSpec {
    node_name: Box<str>,
    #[serde(rename = "hostPID")]
    host_pid: bool,
    share_process_namespace: bool,
    runtime_class_name: Option<Box<str>>,
    init_containers: Vec<WireContainer>,
    containers: Vec<WireContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireContainer {
    name: Box<str>,
    restart_policy: Option<String>,
    #[serde(default)]
    liveness_probe: WireProbe,
    #[serde(default)]
    readiness_probe: WireProbe,
    #[serde(default)]
    startup_probe: WireProbe,
}

#[derive(Deserialize, Default)]
struct WireProbe {
    exec: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    phase: String,
    conditions: Vec<PodCondition>,
    container_statuses: Vec<WireContainerStatus>,
    init_container_statuses: Vec<WireContainerStatus>,
    ephemeral_container_statuses: Vec<WireContainerStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    state: ContainerState,
    #[serde(default)]
    last_state: ContainerState,
}

impl WireMetadata {
    /// The hash of a mirror pod, which its node owns. Any user can annotate a pod, so a claim must not equal the name of another
    /// pod's cgroup: a hash has 32 digits, a UID has hyphens.
    fn config_hash(&self) -> Option<&String> {
        let hash = self.annotations.hash.as_ref().filter(|_| self.annotations.mirror.is_some())?;
        let is_hash = hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_hash && self.owner_references.iter().any(|owner| owner.kind == "Node")).then_some(hash)
    }

    fn into_names(self) -> ObjectMeta {
        let Self { name, namespace, uid, resource_version, .. } = self;
        ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }
    }
}

impl WirePod {
    fn pid_namespaces(&self) -> Option<PidNamespaces> {
        let opts_out = self.metadata.labels.watch.as_deref() == Some("false");
        self.spec.pid_namespaces().filter(|_| !opts_out)
    }
}

impl WireSpec {
    fn pid_namespaces(&self) -> Option<PidNamespaces> {
        // The API refuses hostPID together with shareProcessNamespace.
        let own =
            if self.share_process_namespace { PidNamespaces::Shared } else { PidNamespaces::PerContainer };
        (!self.host_pid).then_some(own)
    }

    fn exec_probed(&self) -> Box<[Box<str>]> {
        if self.pid_namespaces() != Some(PidNamespaces::PerContainer) {
            return Box::default();
        }
        // Of init containers only sidecars have probes.
        let containers = self.containers.iter().chain(&self.init_containers);
        let has_exec_probe = |container: &&WireContainer| {
            let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
            probes.into_iter().any(|probe| probe.exec.is_some())
        };
        containers.filter(has_exec_probe).map(|container| container.name.clone()).collect()
    }
}

impl WireStatus {
    fn is_terminal(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    fn container_names(&self) -> HashMap<String, String> {
        let lists =
            [&self.container_statuses, &self.init_container_statuses, &self.ephemeral_container_statuses];
        let mut names = HashMap::new();
        for container in lists.into_iter().flatten() {
            let ended = [&container.state, &container.last_state];
            let ended =
                ended.into_iter().filter_map(|state| state.terminated.as_ref()?.container_id.as_ref());
            // `containerd://<id>`, `cri-o://<id>`
            let bare = |id: &String| Some((id.rsplit_once("//")?.1.to_owned(), container.name.clone()));
            names.extend(container.container_id.iter().chain(ended).filter_map(bare));
        }
        names
    }

    fn container_states(&self, init_containers: &[WireContainer]) -> ContainerStates {
        let is_sidecar = |status: &&WireContainerStatus| {
            let mut sidecars = init_containers
                .iter()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            sidecars.any(|container| *container.name == *status.name)
        };
        let init = self.init_container_statuses.iter().filter(|status| !is_sidecar(status));
        let mut states = ContainerStates::default();
        for WireContainerStatus { state, .. } in init.chain(&self.container_statuses) {
            states.is_running |= state.running.is_some();
            states.killed_at.extend(state.terminated.as_ref().and_then(killed_at));
        }
        states
    }

    fn ready_to_start(&self) -> Option<&PodCondition> {
        self.conditions.iter().find(|condition| condition.type_ == READY_TO_START)
    }

    /// Without the condition, which the feature gate `PodReadyToStartContainersCondition` can switch off, a running pod has one.
    fn has_sandbox(&self) -> bool {
        self.ready_to_start().map_or(self.phase == "Running", |condition| condition.status == "True")
    }

    fn kubelet_message(&self) -> Option<KubeletMessage> {
        let condition = self.ready_to_start()?;
        let message = one_line(condition.message.as_deref()?);
        let at = condition.last_transition_time.as_ref()?.0;
        let is_cause = !message.is_empty() && message != NOT_READY;
        (condition.status != "True" && is_cause).then_some(KubeletMessage { at, message })
    }
}

fn killed_at(state: &ContainerStateTerminated) -> Option<Timestamp> {
    let is_oom = state.reason.as_deref() == Some("OOMKilled");
    Some(state.finished_at.as_ref()?.0).filter(|_| state.exit_code == KILLED && !is_oom)
}

fn one_line(message: &str) -> String {
    let line: String = message.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    cut(line.trim(), MESSAGE_MAX).trim_end().to_owned()
}

impl From<WirePod> for NodePod {
    fn from(pod: WirePod) -> Self {
        let pid_namespaces = pod.pid_namespaces();
        let WirePod { metadata, spec, status } = pod;
        let stage = match status.phase.as_str() {
            _ if metadata.deletion_timestamp.is_some() => Stage::Terminating,
            _ if status.is_terminal() => Stage::Finished,
            "Running" => Stage::Running,
            _ => Stage::Pending,
        };
        Self {
            cgroup_id: metadata.config_hash().or(metadata.uid.as_ref()).cloned().unwrap_or_default(),
            pid_namespaces,
            stage,
            containers: status.container_names(),
            states: status.container_states(&spec.init_containers),
            kubelet_message: status.kubelet_message(),
            has_sandbox: status.has_sandbox(),
            has_runtime_class: spec.runtime_class_name.is_some(),
            node: spec.node_name,
            metadata: metadata.into_names(),
        }
    }
}

impl From<WirePod> for LeanPod {
    fn from(pod: WirePod) -> Self {
        let pid_namespaces = pod.pid_namespaces();
        let WirePod { mut metadata, spec, status } = pod;
        let grace = metadata.deletion_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok());
        let grace = Duration::from_secs(grace.unwrap_or_default());
        let mut owners = std::mem::take(&mut metadata.owner_references).into_iter();
        let controller = owners.find(|owner| owner.controller == Some(true));
        Self {
            is_finished: status.is_terminal(),
            is_ready: status.conditions.iter().any(|has| has.type_ == "Ready" && has.status == "True"),
            daemon_set: controller.filter(|owner| owner.kind == "DaemonSet").map(|owner| owner.name.into()),
            mirror_uid: metadata.annotations.mirror.take(),
            deletion_grace: metadata.deletion_timestamp.is_some().then_some(grace),
            deletion_seen_at: None,
            exec_probed: spec.exec_probed(),
            pid_namespaces,
            node: spec.node_name,
            metadata: metadata.into_names(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HASH: &str = "3f1d0c9a8b7e6d5c4b3a291807f6e5d4";

    /// A running pod with some fields changed.
    fn json_of(changes: Value) -> Value {
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
        pod
    }

    fn pod(changes: Value) -> NodePod {
        serde_json::from_value(json_of(changes)).unwrap()
    }

    #[test]
    fn pod_without_shared_pid_namespace_is_observed_only_with_all() {
        use PidNamespaces::{PerContainer, Shared};
        let [shared_pids, all_pods] = [WatchPods::SharedPidNamespace, WatchPods::All].map(WatchOptions::from);
        for (spec, shared_only, all) in [
            (json!({"shareProcessNamespace": true}), Some(Shared), Some(Shared)),
            (json!({"shareProcessNamespace": false}), None, Some(PerContainer)),
            (json!({}), None, Some(PerContainer)),
            (json!({"hostPID": true}), None, None),
        ] {
            let mut pod = json!({"metadata": {}, "spec": spec});
            pod["spec"]["nodeName"] = json!("n");
            let lean: LeanPod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!((lean.watched(&shared_pids), lean.watched(&all_pods)), (shared_only, all), "{spec}");
            let pod: NodePod = serde_json::from_value(pod).unwrap();
            let is_observed = (pod.is_observed(&shared_pids), pod.is_observed(&all_pods));
            assert_eq!(is_observed, (shared_only.is_some(), all.is_some()), "{spec}");
        }
    }

    #[test]
    fn lean_pod_keeps_what_decisions_need() {
        let pod: LeanPod = serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u-1", "resourceVersion": "7", "labels": {"a": "b"},
                "deletionTimestamp": "2027-01-15T08:00:00Z", "deletionGracePeriodSeconds": 30,
                "annotations": {"kubernetes.io/config.mirror": "hash", "other": "x"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d", "controller": true}],
            },
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}], "shareProcessNamespace": true},
            "status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        assert_eq!((pod.namespace(), pod.name(), pod.uid(), &*pod.node), ("shop", "web", "u-1", "n"));
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!((pod.daemon_set.as_deref(), pod.mirror_uid.as_deref()), (Some("agent"), Some("hash")));
        assert_eq!(pod.deletion_grace, Some(Duration::from_secs(30)));
        assert!(pod.is_finished && pod.is_ready && pod.metadata.labels.is_none());
    }

    #[test]
    fn exec_probes_are_kept_of_pods_that_do_not_share() {
        let exec = json!({"exec": {"command": ["true"]}});
        let spec = |shares: bool| {
            json!({
                "shareProcessNamespace": shares,
                "containers": [{"name": "app", "readinessProbe": exec}, {"name": "http", "livenessProbe": {"httpGet": {}}}],
                "initContainers": [{"name": "proxy", "restartPolicy": "Always", "startupProbe": exec}],
            })
        };
        let probed = |shares| {
            let pod: LeanPod = serde_json::from_value(json!({"metadata": {}, "spec": spec(shares)})).unwrap();
            pod.exec_probed.into_iter().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!((probed(false), probed(true)), (vec!["app".to_owned(), "proxy".to_owned()], vec![]));
    }

    #[test]
    fn unscheduled_pod_is_not_observed() {
        let pod = json!({"metadata": {}, "spec": {"shareProcessNamespace": true}});
        let pod: LeanPod = serde_json::from_value(pod).unwrap();
        assert_eq!(pod.watched(&WatchPods::All.into()), None);
    }

    #[test]
    fn pod_is_observed_in_watched_namespaces_unless_it_opts_out() {
        for (namespaces, label, expected) in [
            (&[][..], None, true),
            (&["ops", "shop"][..], None, true),
            (&["ops"][..], None, false),
            (&["shop"][..], Some("true"), true),
            (&[][..], Some("false"), false),
        ] {
            let watch_namespaces = namespaces.iter().map(|&name| name.to_owned()).collect();
            let watch = WatchOptions { watch_namespaces, watch_pods: WatchPods::All };
            let changes = json!({"metadata": {"labels": {"sandboxhealth.dev/watch": label, "app": "web"}}});
            let lean: LeanPod = serde_json::from_value(json_of(changes.clone())).unwrap();
            let is_observed = (pod(changes).is_observed(&watch), lean.watched(&watch).is_some());
            assert_eq!(is_observed, (expected, expected), "{namespaces:?} {label:?}");
        }
    }

    fn mirror(hash: &str, owner: &str) -> NodePod {
        let owner = json!({"apiVersion": "v1", "kind": owner, "name": "n", "uid": "n-1"});
        let annotations = json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
        pod(json!({"metadata": {"annotations": annotations, "ownerReferences": [owner]}}))
    }

    #[test]
    fn pod_cannot_claim_the_cgroup_of_another() {
        let of_another = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
        let annotated = pod(json!({"metadata": {"annotations": {"kubernetes.io/config.hash": HASH}}}));
        for pod in [mirror(of_another, "Node"), mirror(HASH, "ReplicaSet"), annotated] {
            assert_eq!(pod.cgroup_id, "u-1");
        }
    }

    #[test]
    fn static_pod_is_identified_by_its_config_hash() {
        let mirror = mirror(HASH, "Node");
        assert_eq!((mirror.uid(), mirror.cgroup_id.as_str()), ("u-1", HASH));
        assert_eq!(pod(json!({})).cgroup_id, "u-1");
    }

    #[test]
    fn stage_follows_phase_and_deletion() {
        for (changes, stage, is_finished) in [
            (json!({}), Stage::Running, false),
            (json!({"status": {"phase": "Pending"}}), Stage::Pending, false),
            (json!({"status": {"phase": "Succeeded"}}), Stage::Finished, true),
            (json!({"status": {"phase": "Failed"}}), Stage::Finished, true),
            (json!({"metadata": {"deletionTimestamp": "2026-11-24T08:00:00Z"}}), Stage::Terminating, false),
        ] {
            let lean: LeanPod = serde_json::from_value(json_of(changes.clone())).unwrap();
            assert_eq!((pod(changes).stage, lean.is_finished), (stage, is_finished));
        }
    }

    #[test]
    fn containers_of_every_kind_are_named_past_ones_too() {
        let one = |id: &str| json!({"name": id, "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": format!("containerd://{id}")});
        let mut restarted = one("b");
        restarted["lastState"] = json!({"terminated": {"exitCode": 1, "containerID": "containerd://a"}});
        let pod = pod(json!({"status": {
            "containerStatuses": [restarted],
            "initContainerStatuses": [one("c")],
            "ephemeralContainerStatuses": [one("d")],
        }}));
        let name = |id: &str| pod.containers.get(id).map(String::as_str);
        assert_eq!(["a", "b", "c", "d", "e"].map(name), [Some("b"), Some("b"), Some("c"), Some("d"), None]);
    }

    #[test]
    fn container_states_are_those_of_containers_but_sidecars() {
        let at = "2027-01-15T08:00:00Z";
        let one = |name: &str, state: Value| json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        let exited = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": at}});
        let states = |app: Value| {
            pod(json!({
                "spec": {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "setup"}]},
                "status": {
                    "containerStatuses": [one("app", app)],
                    "initContainerStatuses": [one("proxy", json!({"running": {}})), one("setup", exited(0, "Completed"))],
                },
            }))
            .states
        };
        assert!(states(json!({"running": {}})).is_running);
        let killed_at = vec![Timestamp::from_second(1_800_000_000).unwrap()];
        assert_eq!(states(exited(137, "Error")), ContainerStates { is_running: false, killed_at });
        for other in [exited(137, "OOMKilled"), exited(1, "Error"), exited(0, "Completed")] {
            assert_eq!(states(other), ContainerStates::default());
        }
    }

    fn message(status: &str, message: &str) -> Option<String> {
        let condition = json!({
            "type": READY_TO_START, "status": status, "lastTransitionTime": "2027-01-15T08:00:00Z", "message": message,
        });
        let other = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T09:00:00Z"});
        let found = pod(json!({"status": {"conditions": [other, condition]}})).kubelet_message?;
        assert_eq!(found.at.as_second(), 1_800_000_000);
        Some(found.message)
    }

    #[test]
    fn pod_has_a_sandbox_where_the_kubelet_reports_one() {
        let has_sandbox = |phase: &str, conditions: Value| {
            pod(json!({"status": {"phase": phase, "conditions": conditions}})).has_sandbox
        };
        assert_eq!((has_sandbox("Running", json!([])), has_sandbox("Pending", json!([]))), (true, false));
        for phase in ["Pending", "Running"] {
            for (status, expected) in [("True", true), ("False", false)] {
                let condition = json!([{"type": READY_TO_START, "status": status}]);
                assert_eq!(has_sandbox(phase, condition), expected, "{phase} {status}");
            }
        }
    }

    #[test]
    fn kubelet_message_is_read_only_while_the_sandbox_is_not_ready() {
        assert_eq!(message("True", "all is well"), None);
        assert_eq!(pod(json!({})).kubelet_message, None);
        assert_eq!(message("False", " the sandbox\nwas killed\n").as_deref(), Some("the sandbox was killed"));
        for no_cause in ["", " \n", "pod sandbox is not ready"] {
            assert_eq!(message("False", no_cause), None, "{no_cause:?}");
        }
    }

    #[test]
    fn kubelet_message_is_cut_between_characters() {
        assert_eq!(message("False", &"ä".repeat(150)).unwrap(), "ä".repeat(100));
        assert_eq!(message("False", &format!("x{}", "ä".repeat(150))).unwrap().len(), 199);
    }
}
