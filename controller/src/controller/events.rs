//! The Events on a pod: which of them are due, and what they say. An Event's name is made from what it is about, so that
//! making it twice is a conflict and not a second Event.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::{Resource as _, ResourceExt as _};
use sha2::{Digest as _, Sha256};

use crate::resource::{RestartReason, SandboxHealth, ZOMBIES_REAPED};

/// Who emits them.
const REPORTING_CONTROLLER: &str = "sandboxhealth.dev/controller";
/// Bytes of the longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// Why an Event is emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The pod got another sandbox.
    SandboxRestarted,
    /// Too many zombies.
    ZombiesAccumulating,
    /// They are gone.
    ZombiesCleared,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 3] = [Self::SandboxRestarted, Self::ZombiesAccumulating, Self::ZombiesCleared];

    /// As `kubectl describe` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SandboxRestarted => "SandboxRestarted",
            Self::ZombiesAccumulating => "ZombiesAccumulating",
            Self::ZombiesCleared => "ZombiesCleared",
        }
    }

    const fn type_(self) -> &'static str {
        match self {
            Self::SandboxRestarted | Self::ZombiesAccumulating => "Warning",
            Self::ZombiesCleared => "Normal",
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::SandboxRestarted => "WatchSandbox",
            Self::ZombiesAccumulating | Self::ZombiesCleared => "CountZombies",
        }
    }
}

/// An Event that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Why.
    pub reason: Reason,
    /// What tells this one from others of the same reason and pod: the sandbox that ended, or the onset.
    pub key: String,
    /// What it says.
    pub note: String,
}

/// The Events that are due for what happened since the object's conditions were last written; oldest first.
#[must_use]
pub fn due(object: &SandboxHealth) -> Vec<Announcement> {
    let mut due = restarts(object);
    due.extend(zombies(object));
    due
}

fn restarts(object: &SandboxHealth) -> Vec<Announcement> {
    let Some(status) = &object.status else {
        return Vec::new();
    };
    let announced = status.announced_restarts.unwrap_or_default();
    let unannounced = usize::try_from(status.restarts.saturating_sub(announced)).unwrap_or_default();
    let history = status.history.iter().take(unannounced);
    let mut due: Vec<_> = history
        .zip((1..=status.restarts).rev())
        .enumerate()
        .map(|(age, (past, number))| {
            let cause = match &status.last_restart {
                Some(last) if age == 0 => last.message.clone(),
                _ => cause(past.reason).to_owned(),
            };
            let note =
                format!("Sandbox restart {number}: {cause}. Every container of the pod was started anew.");
            Announcement { reason: Reason::SandboxRestarted, key: past.sandbox_id.clone(), note }
        })
        .collect();
    due.reverse();
    due
}

/// What is said of an earlier restart, whose message is not kept.
const fn cause(reason: RestartReason) -> &'static str {
    match reason {
        RestartReason::PauseExited => "pause ended",
        RestartReason::NodeRebooted => "the node was rebooted",
        RestartReason::Replaced => "the sandbox was replaced while no agent watched",
    }
}

fn zombies(object: &SandboxHealth) -> Vec<Announcement> {
    let Some(status) = &object.status else {
        return Vec::new();
    };
    let Some(processes) = &status.processes else {
        return Vec::new();
    };
    let before = status.condition(ZOMBIES_REAPED).filter(|before| before.status == "False");
    let before = before.map(|before| &before.last_transition_time);
    let since = processes.accumulating_since.as_ref();
    let mut due = Vec::new();
    if before == since {
        return due;
    }
    if let Some(before) = before {
        due.push(Announcement {
            reason: Reason::ZombiesCleared,
            key: before.0.to_string(),
            note: format!("The zombies are reaped; {} remain.", processes.zombies),
        });
    }
    if let Some(since) = since {
        due.push(Announcement {
            reason: Reason::ZombiesAccumulating,
            key: since.0.to_string(),
            note: format!(
                "{} zombies: processes that ended and that their parents do not reap. Each holds a PID of the pod's limit.",
                processes.zombies
            ),
        });
    }
    due
}

/// The Event as it is sent.
#[must_use]
pub fn event(object: &SandboxHealth, announcement: &Announcement, instance: &str, now: Timestamp) -> Event {
    let namespace = object.namespace();
    let reason = announcement.reason;
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: namespace.clone(),
        name: Some(object.spec.pod_name.clone()),
        uid: Some(object.spec.pod_uid.clone()),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta { name: Some(name(object, announcement)), namespace, ..ObjectMeta::default() },
        type_: Some(reason.type_().to_owned()),
        reason: Some(reason.as_str().to_owned()),
        action: Some(reason.action().to_owned()),
        note: Some(announcement.note.clone()),
        event_time: Some(MicroTime(now)),
        regarding: Some(pod),
        related: Some(object.object_ref(&())),
        reporting_controller: Some(REPORTING_CONTROLLER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        ..Event::default()
    }
}

fn name(object: &SandboxHealth, announcement: &Announcement) -> String {
    let mut hash = Sha256::new();
    for part in [&object.spec.pod_uid, announcement.reason.as_str(), &announcement.key] {
        hash.update(part);
        hash.update([0]);
    }
    let digits: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let pod: String = object.spec.pod_name.chars().take(NAME_MAX - 1 - digits.len()).collect();
    format!("{}.{digits}", pod.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(status: serde_json::Value) -> SandboxHealth {
        serde_json::from_value(json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1"},
            "spec": {"podName": "web", "podUID": "u-1", "nodeName": "n"},
            "status": status,
        }))
        .unwrap()
    }

    fn past(id: &str) -> serde_json::Value {
        json!({"sandboxID": id, "startedAt": "2027-01-15T08:00:00Z", "reason": "PauseExited"})
    }

    fn restarted(announced: i64) -> SandboxHealth {
        object(json!({
            "restarts": 3, "announcedRestarts": announced, "history": [past("c"), past("b"), past("a")],
            "lastRestart": {"time": "2027-01-15T08:00:00Z", "reason": "PauseExited", "message": "pause was killed by SIGKILL"},
        }))
    }

    fn counted(since: Option<&str>, condition: Option<&str>) -> SandboxHealth {
        let condition = condition.map(|since| json!({"type": "ZombiesReaped", "status": "False", "reason": "R", "message": "", "lastTransitionTime": since}));
        let mut processes = json!({"zombies": 7, "zombiesPeak": 9, "total": 12, "reapedTotal": 0, "observedAt": "2027-01-15T08:00:00Z"});
        if let Some(since) = since {
            processes["accumulatingSince"] = json!(since);
        }
        object(
            json!({"restarts": 0, "processes": processes, "conditions": condition.into_iter().collect::<Vec<_>>()}),
        )
    }

    fn reasons(object: &SandboxHealth) -> Vec<&'static str> {
        due(object).iter().map(|announcement| announcement.reason.as_str()).collect()
    }

    #[test]
    fn a_restart_is_announced_once_with_its_cause() {
        let [announcement] = &due(&restarted(2))[..] else { panic!("not one") };
        assert_eq!(announcement.key, "c");
        assert_eq!(
            announcement.note,
            "Sandbox restart 3: pause was killed by SIGKILL. Every container of the pod was started anew."
        );
        assert!(due(&restarted(3)).is_empty());
    }

    #[test]
    fn restarts_that_came_while_no_controller_ran_are_announced_oldest_first() {
        let notes: Vec<_> = due(&restarted(0)).into_iter().map(|announcement| announcement.note).collect();
        assert!(notes[0].starts_with("Sandbox restart 1: pause ended."), "{notes:?}");
        assert!(notes[2].starts_with("Sandbox restart 3: pause was killed by SIGKILL."), "{notes:?}");
        assert_eq!(notes.len(), 3);
    }

    #[test]
    fn an_onset_is_announced_once_and_so_is_its_end() {
        let (first, second) = ("2027-01-15T08:00:00Z", "2027-01-15T09:00:00Z");
        assert_eq!(reasons(&counted(Some(first), None)), ["ZombiesAccumulating"]);
        assert!(reasons(&counted(Some(first), Some(first))).is_empty());
        assert_eq!(reasons(&counted(None, Some(first))), ["ZombiesCleared"]);
        assert!(reasons(&counted(None, None)).is_empty());
        assert_eq!(reasons(&counted(Some(second), Some(first))), ["ZombiesCleared", "ZombiesAccumulating"]);
    }

    #[test]
    fn what_cannot_be_counted_has_not_cleared() {
        let condition = json!([{"type": "ZombiesReaped", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"}]);
        assert!(due(&object(json!({"restarts": 0, "conditions": condition}))).is_empty());
    }

    #[test]
    fn the_same_happening_has_the_same_name_and_others_have_others() {
        let named = |key: &str, reason| {
            let announcement = Announcement { reason, key: key.to_owned(), note: String::new() };
            let event = event(&restarted(0), &announcement, "i", Timestamp::now());
            event.metadata.name.unwrap()
        };
        assert_eq!(named("a", Reason::SandboxRestarted), named("a", Reason::SandboxRestarted));
        assert_ne!(named("a", Reason::SandboxRestarted), named("b", Reason::SandboxRestarted));
        assert_ne!(named("a", Reason::ZombiesCleared), named("a", Reason::ZombiesAccumulating));
        assert!(named("a", Reason::SandboxRestarted).starts_with("web."));
    }

    #[test]
    fn the_name_of_a_pod_of_any_length_fits() {
        let mut object = restarted(0);
        object.spec.pod_name = "p".repeat(253);
        let announcement = &due(&object)[0];
        assert_eq!(name(&object, announcement).len(), 253);
    }

    #[test]
    fn an_event_is_about_the_pod_and_related_to_the_object() {
        let object = restarted(2);
        let event = event(&object, &due(&object)[0], "controller-0", Timestamp::now());
        let (pod, related) = (event.regarding.unwrap(), event.related.unwrap());
        assert_eq!((pod.kind.as_deref(), pod.uid.as_deref()), (Some("Pod"), Some("u-1")));
        assert_eq!((related.kind.as_deref(), related.uid.as_deref()), (Some("SandboxHealth"), Some("o-1")));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
    }
}
