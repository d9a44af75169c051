//! All texts of Events and conditions, in full. A reason without an entry fails a test.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem::discriminant;

use jiff::Timestamp;
use pause_status::Refusal;
use serde_json::{Value, json};
use strum::{EnumCount as _, VariantArray as _};

use super::pause_rollout::{Canary, failure};
use crate::core::conditions::{
    AgentState, ConditionReason, Terminal, UnavailableReason, add_creation_error, evaluate,
};
use crate::core::events::{DueEvent, Reason, due, event};
use crate::crd::{RestartReason, SandboxHealth, SandboxHealthStatus, ZOMBIES_REAPED};
use crate::k8s::pause_lease::{Step, Switch};
use crate::procfs::pause::ReadError;

const NOW: &str = "2027-01-15T12:00:00Z";
const RECENT: &str = "2027-01-15T11:55:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn status(status: Value) -> SandboxHealthStatus {
    serde_json::from_value(status).unwrap()
}

fn only_event(status: &SandboxHealthStatus, exec_probed: Option<&[Box<str>]>) -> DueEvent {
    let conditions = evaluate(status, "n", None, AgentState::Ready, now()).conditions;
    let mut events = due(status, &conditions, exec_probed, now());
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Restart number `restarts`, whose cause is unknown but for this reason.
fn restart(restarts: i64, is_at_least: bool, reason: RestartReason) -> DueEvent {
    let reason: &str = reason.into();
    let past = json!({"sandboxID": "a", "startedAt": RECENT, "reason": reason});
    only_event(
        &status(json!({"restarts": restarts, "restartsAtLeast": is_at_least, "history": [past]})),
        None,
    )
}

fn termination() -> DueEvent {
    let termination = json!({"sandboxID": "a", "time": RECENT, "message": "pause was killed by SIGKILL"});
    only_event(&status(json!({ "termination": termination })), None)
}

fn counted(zombies: i64, parents: &Value) -> SandboxHealthStatus {
    status(json!({
        "processes": {"zombies": zombies, "zombiesPeak": 9, "total": 12, "observedAt": NOW},
        "sandbox": {"id": "a", "startedAt": RECENT},
        "zombieParents": parents,
    }))
}

fn zombies(zombies: i64, parents: &Value, exec_probed: Option<&[Box<str>]>) -> DueEvent {
    let accumulating = SandboxHealthStatus {
        accumulating_since: serde_json::from_value(json!(RECENT)).unwrap(),
        ..counted(zombies, parents)
    };
    only_event(&accumulating, exec_probed)
}

fn parent(container: &str, zombies: i64, oldest_seconds: Option<i64>) -> Value {
    json!({"pid": 152, "command": "sleep", "container": container, "zombies": zombies, "oldestSeconds": oldest_seconds})
}

fn reaped(left: i64) -> DueEvent {
    let mut status = counted(left, &json!([]));
    let condition = json!({
        "type": ZOMBIES_REAPED, "status": "False", "reason": "ZombiesAccumulating", "message": "", "lastTransitionTime": RECENT,
    });
    status.conditions = vec![serde_json::from_value(condition).unwrap()];
    only_event(&status, None)
}

/// A failed switch, with the status of the node's canary pod; `None` if there is no such pod.
fn failed_switch(canary: Option<Value>) -> DueEvent {
    let mut switch = Switch::new("n", "0.1.0", "registry.example/pause:0.1.0", now());
    switch.advance(Step::Reverting, "no proof within 180 s.", now());
    let canary = canary.map(|status| Canary {
        node: "n".to_owned(),
        name: "canary-x".to_owned(),
        uid: "c-1".to_owned(),
        is_ending: false,
        status: serde_json::from_value(status).unwrap(),
    });
    failure(&switch, canary.as_ref(), "kubectl -n ops delete lease pause-0")
}

#[test]
fn events_have_these_texts() {
    let (none, one) = (json!([]), json!([parent("shell", 7, Some(2))]));
    let two = json!([parent("shell", 6, Some(1)), parent("", 1, None)]);
    let uncounted = json!([parent("shell", 9, Some(0)), parent("", 1, None)]);
    let (probed, unprobed): ([Box<str>; 1], [Box<str>; 1]) = (["shell".into()], ["other".into()]);
    let version =
        |version: Option<&str>| json!({"sandbox": {"id": "a", "startedAt": RECENT, "pauseVersion": version}});
    let not_created = json!({"conditions": [{
        "type": "Reporting", "status": "Unknown", "reason": "SandboxNotCreated", "lastTransitionTime": RECENT,
        "message": "the kubelet has not created the pod's sandbox; kubelet: failed to pull \"image\"",
    }]});
    let texts = [
        (
            restart(1, false, RestartReason::PauseExited),
            "Pod sandbox restarted (restart 1): pause exited; exit status unavailable (requires Linux 6.15). The kubelet is restarting all containers.",
        ),
        (
            restart(2, false, RestartReason::NodeRebooted),
            "Pod sandbox restarted (restart 2): the node was rebooted. The kubelet is restarting all containers.",
        ),
        (
            restart(3, true, RestartReason::Replaced),
            "Pod sandbox restarted (at least restart 3): the sandbox was recreated while no agent was running. The kubelet is restarting all containers.",
        ),
        (
            restart(4, false, RestartReason::Unknown),
            "Pod sandbox restarted (restart 4): unknown cause. The kubelet is restarting all containers.",
        ),
        (
            termination(),
            "Pod sandbox terminated: pause was killed by SIGKILL. All containers were terminated, and the kubelet does not restart them. Unless a controller replaces the pod, recreate it.",
        ),
        (zombies(0, &none, None), "0 zombie processes count against the pod's PID limit."),
        (zombies(1, &none, None), "1 zombie process counts against the pod's PID limit."),
        (
            zombies(7, &one, None),
            "7 zombie processes count against the pod's PID limit. Not reaped by: PID 152 \"sleep\" in container \"shell\" (7, oldest 2 s). Fix this process to wait for its children (wait(2)).",
        ),
        (
            zombies(7, &two, None),
            "7 zombie processes count against the pod's PID limit. Not reaped by: PID 152 \"sleep\" in container \"shell\" (6, oldest 1 s); PID 152 \"sleep\" in the sandbox or an unidentified container (1). Fix these processes to wait for their children (wait(2)).",
        ),
        (
            zombies(8, &uncounted, None),
            "8 zombie processes count against the pod's PID limit. Not reaped by: PID 152 \"sleep\" in container \"shell\" (oldest 0 s); PID 152 \"sleep\" in the sandbox or an unidentified container. Fix these processes to wait for their children (wait(2)).",
        ),
        (
            zombies(1, &none, Some(&unprobed)),
            "1 zombie process counts against the pod's PID limit. To reap orphans, run an init such as tini as PID 1 of the container, or set shareProcessNamespace: true.",
        ),
        (
            zombies(7, &one, Some(&probed)),
            "7 zombie processes count against the pod's PID limit. Not reaped by: PID 152 \"sleep\" in container \"shell\" (7, oldest 2 s). The exec probes of \"shell\" may leave them. To reap orphans, run an init such as tini as PID 1 of the container, or set shareProcessNamespace: true.",
        ),
        (reaped(0), "Zombie processes are no longer accumulating (0 left)."),
        (reaped(1), "Zombie processes are no longer accumulating (1 left)."),
        (reaped(2), "Zombie processes are no longer accumulating (2 left)."),
        (
            failed_switch(None),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. No canary pod of the node is observed. The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
        (
            failed_switch(Some(Value::Null)),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. The canary pod canary-x has no SandboxHealth object. The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
        (
            failed_switch(Some(json!({}))),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. The canary pod canary-x has no sandbox yet. The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
        (
            failed_switch(Some(version(None))),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. The canary pod canary-x runs a third-party pause image. The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
        (
            failed_switch(Some(version(Some("0.0.9")))),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. The canary pod canary-x runs pause 0.0.9. The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
        (
            failed_switch(Some(not_created)),
            "Switching the node to pause 0.1.0 failed: no proof within 180 s. The canary pod canary-x is SandboxNotCreated (the kubelet has not created the pod's sandbox; kubelet: failed to pull 'image'). The installer removes its settings from the node, and no other node is switched. Once the cause is fixed, resume with: kubectl -n ops delete lease pause-0",
        ),
    ];
    let object = SandboxHealth::of_pod("shop", "web", "u-1", "n");
    for (due, expected) in &texts {
        assert_eq!(
            event(&object, None, due, "i", now()).note.as_deref(),
            Some(*expected),
            "{:?}",
            due.reason
        );
    }
    let reasons: HashSet<_> = texts.iter().map(|(due, _)| due.reason).collect();
    assert_eq!(reasons, Reason::VARIANTS.iter().copied().collect(), "an entry for each reason");
    let restarts = texts.iter().filter(|(due, _)| due.reason == Reason::SandboxRestarted);
    assert_eq!(restarts.count(), RestartReason::VARIANTS.len(), "an entry for each reason of a restart");
}

/// Reason and message of each condition.
const CONDITIONS: [(&str, &str); 27] = [
    ("AgentMissing", "no sandbox-health agent runs on node n; see the DaemonSet's events"),
    (
        "AgentMissing",
        "no sandbox-health agent runs on node n; see the DaemonSet's events; agents cannot be created: exceeded quota",
    ),
    ("AgentNotReady", "the sandbox-health agent on node n is not ready; see its log"),
    ("AgentReporting", "the agent of the node observes the sandbox"),
    ("CmdlineUnreadable", "the command line of pause cannot be read: I/O error"),
    (
        "NoPauseProcess",
        "no pause process of the pod is visible on the node: sandbox restarts and processes that the node does not see are not observed",
    ),
    ("NoRecentRestart", "the sandbox was not restarted within the last 10 minutes"),
    ("NoReport", "the agent of the node has not reported yet"),
    ("NoZombiesAccumulating", "no zombie processes are accumulating"),
    ("NodeNotReady", "node n is not ready or was deleted"),
    (
        "PauseGone",
        "pause has exited, but its PID namespace has not ended; look for processes of the pod in state D on the node",
    ),
    ("PodFinished", "all containers of the pod have terminated; its sandbox is no longer observed"),
    (
        "PodTerminating",
        "the pod's deletion is not complete after its grace period; its sandbox is no longer observed; check the pod's finalizers and its node",
    ),
    (
        "ProcDenied",
        "a security module denies the agent access to processes in /proc; if it is SELinux, set the chart's value agent.podSecurityContext.seLinuxOptions.type to spc_t",
    ),
    (
        "ProcHidden",
        "/proc is mounted with hidepid (proc(5)): processes of other users are hidden from the agent; remount it on the node without hidepid",
    ),
    ("SandboxHealthy", "the sandbox is stable and zombie processes are reaped"),
    ("SandboxNotCreated", "the kubelet has not created the pod's sandbox"),
    ("SandboxNotFound", "no sandbox of the pod was found among the processes of its node"),
    ("SandboxRestarted", "the pod sandbox was restarted: pause was killed by SIGKILL"),
    ("SandboxTerminated", "the pod sandbox was terminated and is not restarted: pause was killed by SIGKILL"),
    ("StatusChecksumWrong", "the checksum of pause's status is wrong: the text is torn or was altered"),
    ("StatusFormatUnknown", "pause's status has an unknown format; upgrade the agent"),
    ("StatusKeyMissing", "pause's status lacks a required key"),
    ("StatusKeyRepeated", "pause's status has a duplicate key"),
    ("StatusMalformed", "an item of pause's status is not key=value, or its value is out of range"),
    ("StatusNotYet", "pause has not written its status yet"),
    (
        "ZombiesAccumulating",
        "zombie processes are accumulating and count against the pod's PID limit; status.zombieParents lists their parents",
    ),
];

/// The errors for which a pod is unreadable.
fn read_errors() -> Vec<ReadError> {
    let errors: Vec<_> = ReadError::all().collect();
    let kinds: HashSet<_> = errors.iter().map(discriminant).collect();
    assert_eq!(kinds.len(), ReadError::COUNT - 1, "all but NotCounted, for which the agent counts instead");
    // A new refusal does not compile before it is listed here, and then in `Refusal::ALL`.
    let is_listed = |refusal: Refusal| match refusal {
        Refusal::NoStatus
        | Refusal::NotYet
        | Refusal::Malformed
        | Refusal::MissingKey
        | Refusal::RepeatedKey
        | Refusal::UnknownFormat
        | Refusal::WrongChecksum => true,
    };
    assert!(Refusal::ALL.into_iter().all(is_listed));
    errors.into_iter().filter(|error| !error.needs_count()).collect()
}

#[test]
fn conditions_have_these_texts() {
    let rendered = |status: &SandboxHealthStatus, terminal, agent| {
        evaluate(status, "n", terminal, agent, now()).conditions
    };
    let ready = |status: &SandboxHealthStatus| rendered(status, None, AgentState::Ready);
    let healthy = counted(0, &json!([]));
    let accumulating = SandboxHealthStatus {
        accumulating_since: serde_json::from_value(json!(RECENT)).unwrap(),
        ..counted(7, &json!([]))
    };
    let message = "pause was killed by SIGKILL";
    let restarted = json!({"lastRestart": {"time": RECENT, "reason": "PauseExited", "message": message}});
    let terminated = json!({"termination": {"sandboxID": "a", "time": RECENT, "message": message}});
    let mut conditions = [
        SandboxHealthStatus::default(),
        healthy.clone(),
        accumulating,
        status(restarted),
        status(terminated),
    ]
    .iter()
    .flat_map(ready)
    .collect::<Vec<_>>();
    for error in read_errors() {
        let message = match &error {
            ReadError::Io(_) => ReadError::Io("I/O error".to_owned()).to_string(),
            error => error.to_string(),
        };
        conditions
            .extend(ready(&status(json!({"readFailure": {"reason": error.reason(), "message": message}}))));
    }
    for &terminal in Terminal::VARIANTS {
        conditions.extend(rendered(&healthy, Some(terminal), AgentState::Ready));
    }
    for &reason in UnavailableReason::VARIANTS {
        conditions.extend(rendered(&healthy, None, AgentState::Unavailable(reason)));
    }
    let mut refused = rendered(&healthy, None, AgentState::Unavailable(UnavailableReason::AgentMissing));
    add_creation_error(&mut refused, "exceeded quota");
    conditions.extend(refused);

    let texts: BTreeSet<_> =
        conditions.iter().map(|condition| (&*condition.reason, &*condition.message)).collect();
    for (text, expected) in texts.iter().zip(&CONDITIONS) {
        assert_eq!(text, expected);
    }
    assert_eq!(texts.len(), CONDITIONS.len());

    let own = ConditionReason::VARIANTS.iter().map(|reason| reason.into_str());
    let unavailable = UnavailableReason::VARIANTS.iter().map(|reason| reason.into_str());
    let terminal = Terminal::VARIANTS.iter().map(|terminal| terminal.into_str());
    let all: BTreeSet<_> = own.chain(unavailable).chain(terminal).chain(ReadError::all_reasons()).collect();
    let entries: BTreeMap<_, _> = CONDITIONS.into_iter().collect();
    assert_eq!(all, entries.into_keys().collect(), "an entry for each reason");
}
