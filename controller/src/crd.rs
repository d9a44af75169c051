//! The `SandboxHealth` resource as users see it: its fields, columns and the text of its schema. The CRD in the chart is
//! generated from this file (`cargo generate`); nothing here talks to a cluster.
#![allow(
    clippy::duplicated_attributes,
    reason = "each printcolumn has a type_ and some a priority of their own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

/// Field manager of the agent. It owns all of `status` except the conditions.
pub const AGENT_FIELD_MANAGER: &str = "sandbox-agent";
/// Field manager of the controller. It owns the object, its `spec` and the conditions.
pub const CONTROLLER_FIELD_MANAGER: &str = "sandbox-controller";
/// Type of the condition that summarises the others.
pub const HEALTHY: &str = "Healthy";
/// Type of the condition that is False while zombies accumulate in the pod.
pub const ZOMBIES_REAPED: &str = "ZombiesReaped";
/// Type of the condition that is False for 10 minutes after a sandbox restart.
pub const SANDBOX_STABLE: &str = "SandboxStable";
/// Type of the condition that is True while the agent of the node observes the sandbox.
pub const REPORTING: &str = "Reporting";
/// Limit of `history`: a cluster has many objects, and etcd keeps each (`tests/object_size.rs` bounds their size).
pub const HISTORY_MAX: usize = 5;
/// Limit of `zombieParents`, for the same reason.
pub const PARENTS_MAX: usize = 3;

/// The pod that the object describes. It never changes: another pod has another object.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "sandboxhealth.dev",
    version = "v1alpha1",
    kind = "SandboxHealth",
    plural = "sandboxhealths",
    singular = "sandboxhealth",
    shortname = "sbh",
    category = "observability",
    namespaced,
    status = "SandboxHealthStatus",
    derive = "PartialEq",
    doc = "SandboxHealth reports the health of a pod's sandbox: how often it was restarted and why, and how many zombie processes the pod has. Each running pod that shares its PID namespace has one of the same name, which is garbage-collected with the pod.",
    selectable = ".spec.nodeName",
    validation = Rule::new("!has(self.status) || !has(self.status.podUID) || self.status.podUID == self.spec.podUID").message("status belongs to another pod: status.podUID differs from spec.podUID"),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].reason"
    ),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Zombies", type_ = "integer", json_path = ".status.processes.zombies"),
    printcolumn(name = "Reaped", type_ = "integer", json_path = ".status.processes.reapedTotal"),
    printcolumn(name = "Last-Restart", type_ = "date", json_path = ".status.lastRestart.time"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Processes", type_ = "integer", priority = 1, json_path = ".status.processes.total"),
    printcolumn(name = "Threads", type_ = "integer", priority = 1, json_path = ".status.processes.threads"),
    printcolumn(name = "Node", type_ = "string", priority = 1, json_path = ".spec.nodeName"),
    printcolumn(name = "Sandbox", type_ = "string", priority = 1, json_path = ".status.sandbox.id"),
    printcolumn(name = "Source", type_ = "string", priority = 1, json_path = ".status.source"),
    printcolumn(name = "Pause", type_ = "string", priority = 1, json_path = ".status.sandbox.pauseVersion")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec is immutable"}]))]
pub struct SandboxHealthSpec {
    /// Name of the pod, and of this object.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of the pod. A pod that is recreated under the same name has another UID, and gets a new object.
    #[schemars(length(max = 36))]
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Name of the node that the pod runs on. The agent of that node writes the status.
    #[schemars(length(max = 253))]
    pub node_name: String,
}

/// Observations of the node's agent, and the conditions that the controller derives from them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SandboxHealthStatus {
    /// UID of the pod that was observed. It equals that of `spec`: a late write about an earlier pod of the same name is refused.
    #[schemars(length(max = 36))]
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "podUID")]
    pub pod_uid: Option<String>,
    /// Number of times that the pod's sandbox was recreated since the pod was first observed. Each time the kubelet restarted all containers of the pod.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub restarts: i64,
    /// True when `restarts` is a lower bound: the sandbox was recreated while no agent was running, possibly more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_at_least: Option<bool>,
    /// The most recent restart. Absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_restart: Option<LastRestart>,
    /// The end of the pod's last sandbox, if the kubelet does not replace it: the pod's restartPolicy is Never, or its deadline passed. Absent when the containers exited first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination: Option<Termination>,
    /// Former sandboxes of the pod, newest first, 5 at most.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastSandbox>,
    /// The current sandbox of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Process counts of the pod. Absent while they cannot be read; `readFailure` has the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// Processes that do not reap their children, those with the most zombies first, 3 at most. Absent unless zombies accumulate.
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zombie_parents: Vec<ZombieParent>,
    /// Time since which the zombie count is above the threshold. It stays while the processes cannot be read. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulating_since: Option<Time>,
    /// Source of the process counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Why the agent cannot observe the sandbox. Absent while it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_failure: Option<ReadFailure>,
    /// `Healthy` summarises `ZombiesReaped`, `SandboxStable` and `Reporting`. Unknown means that the sandbox is not observed; it never means healthy.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A sandbox restart: the kubelet recreated the pod's sandbox and restarted all of its containers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LastRestart {
    /// Time at which the new sandbox started.
    pub time: Time,
    /// Why the sandbox was recreated: `PauseExited` (the agent observed the exit of its pause process), `NodeRebooted`, or `Replaced` (no agent was running).
    pub reason: RestartReason,
    /// How pause exited (the exit status or signal requires Linux 6.15), the likely cause if there is a hint, and the kubelet's message.
    pub message: String,
}

/// The end of a sandbox that the kubelet does not replace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Id of the sandbox.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Time at which its pause process exited.
    pub time: Time,
    /// The cause as a sentence.
    pub message: String,
}

/// Why a sandbox was recreated.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str)]
pub enum RestartReason {
    /// The agent observed the exit of the pause process.
    PauseExited,
    /// The node was rebooted after the old sandbox had started.
    NodeRebooted,
    /// The old sandbox ended while no agent was running.
    Replaced,
    /// A reason of a newer version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl SandboxHealth {
    /// A new object for a pod, which owns it.
    pub fn of_pod(namespace: &str, name: &str, uid: &str, node: &str) -> Self {
        let [pod_name, pod_uid, node_name] = [name, uid, node].map(str::to_owned);
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod_name.clone(),
            uid: pod_uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let mut object = Self::new(name, SandboxHealthSpec { pod_name, pod_uid, node_name });
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.owner_references = Some(vec![owner]);
        object
    }
}

impl SandboxHealthStatus {
    /// Records a restart: `past` is the former sandbox; another one started at `time`.
    pub fn restarted(&mut self, time: Time, message: String, past: PastSandbox) {
        self.restarts = self.restarts.saturating_add(1);
        self.last_restart = Some(LastRestart { time, reason: past.reason, message });
        self.history.insert(0, past);
        self.history.truncate(HISTORY_MAX);
    }

    /// The part of the status that the agent owns, without the UID, which each write adds.
    pub fn observation(mut self) -> Self {
        self.pod_uid = None;
        self.conditions.clear();
        self
    }

    /// The condition of this type.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

impl RestartReason {
    /// The known reasons, whose series start at 0.
    pub const ALL: [Self; 3] = [Self::PauseExited, Self::NodeRebooted, Self::Replaced];
}

/// A former sandbox of the pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PastSandbox {
    /// Id that the container runtime gave the sandbox (`crictl pods` shows it; CRI `PodSandboxStatus.id`).
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Time at which its pause process started.
    pub started_at: Time,
    /// Time at which its pause process exited. Absent when no agent observed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Why it was recreated, as in `lastRestart`.
    pub reason: RestartReason,
    /// How its pause process exited, and the likely cause. Absent when no agent observed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The current sandbox of the pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Id that the container runtime gave the sandbox (`crictl pods` shows it; CRI `PodSandboxStatus.id`).
    pub id: String,
    /// Time at which its pause process started.
    pub started_at: Time,
    /// Boot id of the node when it started (`/proc/sys/kernel/random/boot_id`, see random(4)).
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "bootID")]
    pub boot_id: Option<String>,
    /// Version of the pause binary, from its status file. Absent for a third-party pause image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_version: Option<String>,
}

/// Processes of the pod's PID namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Processes {
    /// Number of zombie processes: they have exited and their parents have not reaped them. Each counts against the pod's PID limit.
    #[schemars(range(min = 0))]
    pub zombies: i64,
    /// Highest number of zombies observed since the sandbox started.
    #[schemars(range(min = 0))]
    pub zombies_peak: i64,
    /// Number of all processes, zombies and the pause process included.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Number of their threads, 1 for a zombie: what the kernel counts against the pod's PID limit.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub threads: i64,
    /// Number of orphaned processes that pause has reaped since the sandbox started. Absent for a third-party pause image.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reaped_total: Option<i64>,
    /// Time at which these numbers were first read.
    pub observed_at: Time,
}

/// Source of the process counts: `PauseStatusFile` (pause reports them) or `ProcScan` (the agent counts them in /proc; the number of reaped processes is unknown).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(const_into_str)]
pub enum Source {
    /// The status file of sandbox-health's pause, the PID 1 of the pod.
    PauseStatusFile,
    /// The agent's own scan of /proc: third-party pause image, or no shared PID namespace.
    ProcScan,
    /// A source of a newer version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// A process that does not reap its children.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ZombieParent {
    /// Process ID of the parent in the PID namespace of the pod, or of its container if the pod does not share one.
    #[schemars(range(min = 1))]
    pub pid: i64,
    /// Name of the parent (`/proc/<pid>/comm`), with `?` for what is not printable.
    pub command: String,
    /// Name of the container that it runs in. Empty for the pause container, or while the pod's status does not have the name.
    pub container: String,
    /// Number of its zombie children.
    #[schemars(range(min = 0))]
    pub zombies: i64,
    /// Time in seconds for which the oldest of them had been a zombie when this was written. Absent while it is unknown.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<i64>,
}

/// Why the agent cannot observe a sandbox.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReadFailure {
    /// The reason in one word, which the condition `Reporting` has as well.
    pub reason: String,
    /// The reason as a sentence.
    pub message: String,
}
