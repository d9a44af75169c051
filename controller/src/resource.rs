//! The `SandboxHealth` resource as users see it: its fields, columns and the text of its schema. The CRD in the chart is
//! generated from this file (`cargo generate`); nothing here talks to a cluster.
#![allow(
    clippy::duplicated_attributes,
    reason = "each printcolumn has a type_ and some a priority of their own"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Field manager of the agent: it owns what was seen, which is all of `status` but what the controller makes of it.
pub const AGENT_FIELD_MANAGER: &str = "sandbox-agent";
/// Field manager of the controller: it owns the object, its `spec`, the conditions and `announcedRestarts`.
pub const CONTROLLER_FIELD_MANAGER: &str = "sandbox-controller";
/// Type of the condition that sums up the others.
pub const HEALTHY: &str = "Healthy";
/// Type of the condition that is False from the time that too many zombies were seen until they were seen gone.
pub const ZOMBIES_REAPED: &str = "ZombiesReaped";
/// Type of the condition that is False for a while after a restart.
pub const SANDBOX_STABLE: &str = "SandboxStable";
/// Type of the condition that says whether the agent of the node can tell how the sandbox is.
pub const REPORTING: &str = "Reporting";
/// The agent's reason for not telling of a pod whose sandbox it does not find: then it sees no restarts either.
pub const SANDBOX_NOT_FOUND: &str = "SandboxNotFound";
/// The agent's reason where the kernel hides other users' processes from it: the same.
pub const PROC_HIDDEN: &str = "ProcHidden";
/// Past sandboxes that a status keeps. Objects are many, and each is kept in etcd: tests/object_size.rs says how large one gets.
pub const HISTORY_MAX: usize = 5;
/// Parents of zombies that a status names, for the same reason.
pub const PARENTS_MAX: usize = 3;

/// The pod that the object is about. It never changes, for another pod has another object.
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
    doc = "SandboxHealth says how a pod's sandbox is: how often it was restarted and why, and how many zombies its processes leave. Each pod that shares its PID namespace has one, which has the pod's name and goes with the pod.",
    selectable = ".spec.nodeName",
    validation = Rule::new("!has(self.status) || !has(self.status.podUID) || self.status.podUID == self.spec.podUID").message("status is of another pod: its podUID is not that of spec"),
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
    printcolumn(name = "Node", type_ = "string", priority = 1, json_path = ".spec.nodeName"),
    printcolumn(name = "Sandbox", type_ = "string", priority = 1, json_path = ".status.sandbox.id"),
    printcolumn(name = "Source", type_ = "string", priority = 1, json_path = ".status.source"),
    printcolumn(name = "Pause", type_ = "string", priority = 1, json_path = ".status.sandbox.pauseVersion")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec says which pod this is about and cannot be changed"}]))]
pub struct SandboxHealthSpec {
    /// Name of the pod, which is the name of the object, too.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of the pod. A pod that is created anew under the same name has another, and gets a fresh object.
    #[schemars(length(max = 36))]
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Name of the node that the pod runs on. The agent of that node reports.
    #[schemars(length(max = 253))]
    pub node_name: String,
}

/// What the node's agent saw of the sandbox, and what the controller makes of it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SandboxHealthStatus {
    /// UID of the pod that this was written of, which is that of `spec`: what comes late, of an earlier pod of the name, is refused.
    #[schemars(length(max = 36))]
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "podUID")]
    pub pod_uid: Option<String>,
    /// Number of times that the pod's sandbox was replaced by another since the pod was first seen. Each time the containers
    /// that ran in it ended and were started anew.
    #[schemars(range(min = 0))]
    #[serde(default)]
    pub restarts: i64,
    /// True when `restarts` may be too low: a sandbox was replaced while nobody watched, and the containers' restart counts
    /// say that it may have been more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_at_least: Option<bool>,
    /// The most recent restart. Absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_restart: Option<LastRestart>,
    /// Sandboxes that the pod had before, newest first, 5 at most.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastSandbox>,
    /// The sandbox that the pod has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Numbers of processes of the pod. Absent while nobody counts them; `readFailure` may say why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// Processes that leave zombies, those with most first, 3 at most. Absent unless zombies accumulate.
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zombie_parents: Vec<ZombieParent>,
    /// Where these facts come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Lowest restart count among the pod's containers when last looked at. By it the agent can tell later whether a sandbox was
    /// replaced more than once while nobody watched.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_restarts: Option<i64>,
    /// Why the agent cannot tell how the sandbox is. Absent when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_failure: Option<ReadFailure>,
    /// Number of the restarts that the controller has told of by Events.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_restarts: Option<i64>,
    /// What to make of it: `Healthy` sums up `ZombiesReaped`, `SandboxStable` and `Reporting`. `Unknown` means that nobody can see, and
    /// never that all is well.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A restart: the pod got another sandbox, and the containers that ran in the one before were started anew.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LastRestart {
    /// Time at which the new sandbox started.
    pub time: Time,
    /// Why the old sandbox went: `PauseExited` (the agent saw its pause process end), `NodeRebooted`, or `Replaced` (nobody watched).
    pub reason: RestartReason,
    /// The reason as a sentence, with what ended the pause process where the kernel tells (Linux 6.15 and later).
    pub message: String,
}

/// Why a sandbox was replaced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RestartReason {
    /// The agent saw the pause process end.
    PauseExited,
    /// The node was booted after the old sandbox started.
    NodeRebooted,
    /// The old sandbox went while no agent watched.
    Replaced,
}

impl SandboxHealth {
    /// The object of a pod, as it is at first. The pod owns it, so that it goes with the pod.
    #[must_use]
    pub fn of_pod(namespace: &str, name: &str, uid: &str, node: &str) -> Self {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let spec = SandboxHealthSpec {
            pod_name: name.to_owned(),
            pod_uid: uid.to_owned(),
            node_name: node.to_owned(),
        };
        Self { metadata, spec, status: None }
    }
}

impl SandboxHealthStatus {
    /// One restart more: a sandbox is past, another one started at this time.
    pub fn restarted(&mut self, time: Time, message: String, past: PastSandbox) {
        self.restarts = self.restarts.saturating_add(1);
        self.last_restart = Some(LastRestart { time, reason: past.reason, message });
        self.history.insert(0, past);
        self.history.truncate(HISTORY_MAX);
    }

    /// What the agent saw.
    #[must_use]
    pub fn seen(mut self) -> Self {
        self.pod_uid = None;
        self.announced_restarts = None;
        self.conditions.clear();
        self
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

impl RestartReason {
    /// Every reason there is, so that each can be counted from zero.
    pub const ALL: [Self; 3] = [Self::PauseExited, Self::NodeRebooted, Self::Replaced];

    /// The reason as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PauseExited => "PauseExited",
            Self::NodeRebooted => "NodeRebooted",
            Self::Replaced => "Replaced",
        }
    }

    /// The reason as people are told, where nothing more is known.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::PauseExited => "pause ended",
            Self::NodeRebooted => "the node was rebooted",
            Self::Replaced => "the sandbox was replaced while no agent watched",
        }
    }
}

/// A sandbox that the pod had before.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PastSandbox {
    /// Id that the container runtime gave the sandbox (`crictl pods` shows it; CRI `PodSandboxStatus.id`).
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Time at which its pause process started.
    pub started_at: Time,
    /// Time at which its pause process ended. Absent when no agent saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Why it was replaced, as in `lastRestart`.
    pub reason: RestartReason,
    /// How its pause process ended. Absent when the kernel did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The sandbox that the pod has now.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Id that the container runtime gave the sandbox (`crictl pods` shows it; CRI `PodSandboxStatus.id`). Absent when no agent saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Time at which its pause process started, or, without an agent, at which the kubelet found the sandbox ready.
    pub started_at: Time,
    /// Id of the node's boot in which it was started (`/proc/sys/kernel/random/boot_id`, see random(4)).
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "bootID")]
    pub boot_id: Option<String>,
    /// Version of the pause program, as that says itself. Absent for a pause of another make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_version: Option<String>,
}

/// Processes of the pod's PID namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Processes {
    /// Number of processes that have ended and that their parents did not reap. Each of them holds a PID of the pod's limit.
    #[schemars(range(min = 0))]
    pub zombies: i64,
    /// Highest number of zombies that was seen since the sandbox started.
    #[schemars(range(min = 0))]
    pub zombies_peak: i64,
    /// Number of all processes, zombies and the pause process included.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Number of orphans that the pause process has reaped since the sandbox started. Absent when it does not say.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reaped_total: Option<i64>,
    /// Time at which these numbers were first read.
    pub observed_at: Time,
    /// Time since which there are too many zombies. Absent when there are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulating_since: Option<Time>,
}

/// Where these facts come from: `PauseStatusFile` (the pod's pause says them), `ProcScan` (the agent counts by itself; what was
/// reaped is not known), or `PodConditions` (there is no agent on the node; restarts alone are known).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the status file of sandbox-health's pause, the PID 1 of the pod.
    PauseStatusFile,
    /// The agent counts in /proc itself: the pause is of another make, or the pod does not share its PID namespace.
    ProcScan,
    /// From the pod's condition `PodReadyToStartContainers`, for there is no agent on the node. Nobody counts processes.
    PodConditions,
}

/// A process that does not wait for its children.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ZombieParent {
    /// Process ID of the parent, as the pod's containers see it.
    #[schemars(range(min = 1))]
    pub pid: i64,
    /// Name of the parent (`/proc/<pid>/comm`), with `?` for what is not printable.
    pub command: String,
    /// Name of the container that it runs in. Empty for the pause container, or when the pod's status does not name it yet.
    pub container: String,
    /// Number of its children that have ended and that it did not wait for.
    #[schemars(range(min = 0))]
    pub zombies: i64,
    /// Time in seconds for which, when this was written, the oldest of them was known to be a zombie.
    #[schemars(range(min = 0))]
    pub oldest_seconds: i64,
}

/// Why the agent cannot tell how a sandbox is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReadFailure {
    /// The reason in one word, which the condition `Reporting` has, too.
    pub reason: String,
    /// The reason as a sentence.
    pub message: String,
}
