//! The Events: which of them are due on a pod, and the one that sums up a node's. An Event's name is made from what it is about,
//! so that making it twice is a conflict and not a second Event.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::conditions::Over;
use super::notes;
use super::pods::PodKey;
use super::storm::{Restarted, Summary};
use crate::resource::{PastSandbox, SandboxHealth, SandboxHealthStatus, ZOMBIES_REAPED};

/// Who emits them.
const REPORTING_CONTROLLER: &str = "sandboxhealth.dev/controller";
/// Bytes of the longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// How long the API server keeps Events, unless it's told otherwise (`--event-ttl` of kube-apiserver).
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// Where Events about what has no namespace go.
const NODE_NAMESPACE: &str = "default";
/// Annotation of an Event that tells of restarts: the number of the last of them, by UID of the pod, as JSON.
const ANNOUNCED_RESTARTS: &str = "sandboxhealth.dev/announced-restarts";

/// Why an Event is emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The pod got another sandbox.
    SandboxRestarted,
    /// Many pods of a node did.
    SandboxesRestarted,
    /// Too many zombies.
    ZombiesAccumulating,
    /// They are gone.
    ZombiesCleared,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 4] =
        [Self::SandboxRestarted, Self::SandboxesRestarted, Self::ZombiesAccumulating, Self::ZombiesCleared];

    /// As `kubectl describe` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SandboxRestarted => "SandboxRestarted",
            Self::SandboxesRestarted => "SandboxesRestarted",
            Self::ZombiesAccumulating => "ZombiesAccumulating",
            Self::ZombiesCleared => "ZombiesCleared",
        }
    }

    const fn type_(self) -> &'static str {
        match self {
            Self::SandboxRestarted | Self::SandboxesRestarted | Self::ZombiesAccumulating => "Warning",
            Self::ZombiesCleared => "Normal",
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::SandboxRestarted | Self::SandboxesRestarted => "WatchSandbox",
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
    /// The number of the restart, if it tells of one.
    pub restart: Option<i64>,
    /// What it says.
    pub note: String,
}

/// The Events that are due for what happened since the object's conditions were last written; oldest first. `announced`: how
/// many of the restarts were told of.
#[must_use]
pub fn due(object: &SandboxHealth, announced: i64) -> Vec<Announcement> {
    let Some(status) = &object.status else {
        return Vec::new();
    };
    let mut due = restarts(status, announced);
    due.extend(zombies(status));
    due
}

/// Up to which restart all were told of, by what was `noted` of that. A number beyond the restarts was noted when somebody had
/// edited the row, and says nothing. Where nothing is noted, say since the row was deleted and made again, those that happened
/// while Events are kept are told of: for one that was told of before, that is a conflict and no second Event.
#[must_use]
pub fn told(status: &SandboxHealthStatus, noted: impl Iterator<Item = i64>, now: Timestamp) -> i64 {
    let noted = noted.filter(|noted| *noted <= status.restarts).max();
    noted.unwrap_or_else(|| status.restarts.saturating_sub(recent(status, now)).max(0))
}

/// What is to be noted of that: up to which restart they were told of by now, if that is known. Before the first report it's not
/// known what the agent knows of, and what was told of that in an earlier row.
#[must_use]
pub fn noted(status: &SandboxHealthStatus, told: Option<i64>) -> Option<i64> {
    let is_reported = status.sandbox.is_some() || status.restarts > 0;
    told.filter(|_| is_reported).or(status.announced_restarts)
}

/// Of the restarts that the history still has, those whose Events are still there if they were made.
fn recent(status: &SandboxHealthStatus, now: Timestamp) -> i64 {
    let last = status.last_restart.iter().map(|restart| &restart.time);
    // As one sandbox started, the one before it in time had been replaced.
    let earlier = status.history.iter().map(|past| &past.started_at);
    let times = last.chain(earlier).take(status.history.len().max(1));
    let recent = times.take_while(|time| now.duration_since(time.0) < KEPT).count();
    i64::try_from(recent).unwrap_or(i64::MAX)
}

/// The restarts that are to be told of, as a summary needs them.
#[must_use]
pub fn untold(object: &SandboxHealth, announced: i64) -> Option<Restarted> {
    let status = object.status.as_ref()?;
    let untold = status.restarts.saturating_sub(announced);
    if untold <= 0 {
        return None;
    }
    let mut reasons = BTreeMap::new();
    for past in status.history.iter().take(usize::try_from(untold).unwrap_or(usize::MAX)) {
        *reasons.entry(past.reason.as_str()).or_default() += 1;
    }
    Some(Restarted {
        uid: object.spec.pod_uid.clone(),
        pod: PodKey::of(&object.metadata),
        restarts: status.restarts,
        untold,
        reasons,
    })
}

/// One for each restart that the history still has; the oldest says how many more there were.
fn restarts(status: &SandboxHealthStatus, announced: i64) -> Vec<Announcement> {
    let untold = status.restarts.saturating_sub(announced);
    if untold <= 0 {
        return Vec::new();
    }
    let in_history = status.history.len().max(1);
    let told = in_history.min(usize::try_from(untold).unwrap_or(usize::MAX));
    let at_least = status.restarts_at_least == Some(true);
    let mut due: Vec<_> = (0..told)
        .zip((1..=status.restarts).rev())
        .map(|(age, number)| {
            let past = status.history.get(age);
            let last = status.last_restart.as_ref().filter(|_| age == 0);
            let note = notes::restart(number, at_least, last, past);
            let key = key(past, number);
            Announcement { reason: Reason::SandboxRestarted, key, restart: Some(number), note }
        })
        .collect();
    due.reverse();
    let earlier = untold - i64::try_from(told).unwrap_or(untold);
    if let Some(oldest) = due.first_mut().filter(|_| earlier > 0) {
        oldest.note.push_str(&notes::earlier(earlier));
    }
    due
}

/// What tells a restart from the pod's others: the sandbox that ended.
fn key(past: Option<&PastSandbox>, number: i64) -> String {
    match past {
        Some(past) if past.sandbox_id.is_empty() => past.started_at.0.to_string(),
        Some(past) => past.sandbox_id.clone(),
        None => number.to_string(),
    }
}

fn zombies(status: &SandboxHealthStatus) -> Vec<Announcement> {
    let Some(processes) = &status.processes else {
        return Vec::new();
    };
    let before = status.condition(ZOMBIES_REAPED);
    if before.is_some_and(|before| Over::ALL.iter().any(|over| over.reason() == before.reason)) {
        return Vec::new();
    }
    let before = before.filter(|before| before.status == "False");
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
            restart: None,
            note: notes::cleared(processes),
        });
    }
    if let Some(since) = since {
        due.push(Announcement {
            reason: Reason::ZombiesAccumulating,
            key: since.0.to_string(),
            restart: None,
            note: notes::accumulating(processes, &status.zombie_parents),
        });
    }
    due
}

/// The Event as it is sent.
#[must_use]
pub fn event(object: &SandboxHealth, announcement: &Announcement, instance: &str, now: Timestamp) -> Event {
    let namespace = object.namespace();
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: namespace.clone(),
        name: Some(object.spec.pod_name.clone()),
        uid: Some(object.spec.pod_uid.clone()),
        ..ObjectReference::default()
    };
    let about = [object.spec.pod_uid.as_str(), announcement.reason.as_str(), &announcement.key];
    let name = name(&object.spec.pod_name, about);
    let annotations = announcement.restart.map(|number| announced([(&object.spec.pod_uid, number)]));
    Event {
        metadata: ObjectMeta { name: Some(name), namespace, annotations, ..ObjectMeta::default() },
        regarding: Some(pod),
        related: Some(object.object_ref(&())),
        ..unaddressed(announcement.reason, &announcement.note, instance, now)
    }
}

/// The Event that sums up the restarts of a node's sandboxes.
#[must_use]
pub fn summary_event(summary: &Summary, node_uid: Option<&str>, instance: &str, now: Timestamp) -> Event {
    let reason = Reason::SandboxesRestarted;
    let node = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(summary.node.clone()),
        uid: node_uid.map(str::to_owned),
        ..ObjectReference::default()
    };
    let name = name(&summary.node, [&summary.node, reason.as_str(), &summary.key()]);
    let namespace = Some(NODE_NAMESPACE.to_owned());
    let annotations = Some(announced(summary.pods.values().map(|pod| (&pod.uid, pod.restarts))));
    Event {
        metadata: ObjectMeta { name: Some(name), namespace, annotations, ..ObjectMeta::default() },
        regarding: Some(node),
        ..unaddressed(reason, &notes::summary(summary), instance, now)
    }
}

fn unaddressed(reason: Reason, note: &str, instance: &str, now: Timestamp) -> Event {
    Event {
        type_: Some(reason.type_().to_owned()),
        reason: Some(reason.as_str().to_owned()),
        action: Some(reason.action().to_owned()),
        note: Some(notes::bounded(note)),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(REPORTING_CONTROLLER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        ..Event::default()
    }
}

fn announced<'a>(restarts: impl IntoIterator<Item = (&'a String, i64)>) -> BTreeMap<String, String> {
    let restarts: BTreeMap<_, _> = restarts.into_iter().collect();
    [(ANNOUNCED_RESTARTS.to_owned(), json!(restarts).to_string())].into()
}

/// Up to which restart an Event tells of which of these `pods`, whose namespaces are given by UID. Who may make Events in a
/// namespace is believed of the pods there, and about others only where nodes' Events are.
#[must_use]
pub fn announced_in(event: &Event, pods: &HashMap<String, String>) -> Vec<(String, i64)> {
    let said = event.annotations().get(ANNOUNCED_RESTARTS);
    let said: BTreeMap<String, i64> =
        said.and_then(|said| serde_json::from_str(said).ok()).unwrap_or_default();
    let from = event.metadata.namespace.as_deref();
    let is_believed = |(uid, _): &(String, i64)| {
        pods.get(uid).is_some_and(|namespace| from == Some(NODE_NAMESPACE) || from == Some(namespace))
    };
    said.into_iter().filter(is_believed).collect()
}

/// Which Events are ours, as a field selector.
#[must_use]
pub fn ours() -> String {
    format!("reportingController={REPORTING_CONTROLLER}")
}

/// The name of the Event about this, which begins as `of` does.
fn name(of: &str, about: [&str; 3]) -> String {
    let mut hash = Sha256::new();
    for part in about {
        hash.update(part);
        hash.update([0]);
    }
    let digits: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let of: String = of.chars().take(NAME_MAX - 1 - digits.len()).collect();
    format!("{}.{digits}", of.trim_end_matches(['.', '-']))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

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

    fn restarted() -> SandboxHealth {
        object(json!({
            "restarts": 3, "history": [past("c"), past("b"), past("a")],
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
        due(object, 0).iter().map(|announcement| announcement.reason.as_str()).collect()
    }

    #[test]
    fn a_restart_is_announced_once_with_its_cause() {
        let [announcement] = &due(&restarted(), 2)[..] else { panic!("not one") };
        assert_eq!(announcement.key, "c");
        assert_eq!(
            announcement.note,
            "Sandbox restart 3: pause was killed by SIGKILL. The containers that ran in it ended; the kubelet starts them anew."
        );
        assert!(due(&restarted(), 3).is_empty());
    }

    #[test]
    fn restarts_that_came_while_no_controller_ran_are_announced_oldest_first() {
        let notes: Vec<_> = due(&restarted(), 0).into_iter().map(|announcement| announcement.note).collect();
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
    fn of_a_pod_that_is_over_no_onset_is_announced_again() {
        let mut over = counted(Some("2027-01-15T08:00:00Z"), Some("2027-01-15T08:00:00Z"));
        for why in Over::ALL {
            let condition = &mut over.status.as_mut().unwrap().conditions[0];
            (condition.status, condition.reason) = ("Unknown".to_owned(), why.reason().to_owned());
            assert!(reasons(&over).is_empty(), "{why:?}");
        }
    }

    #[test]
    fn what_cannot_be_counted_has_not_cleared() {
        let condition = json!([{"type": "ZombiesReaped", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"}]);
        assert!(due(&object(json!({"restarts": 0, "conditions": condition})), 0).is_empty());
    }

    #[test]
    fn the_same_happening_has_the_same_name_and_others_have_others() {
        let named = |key: &str, reason| {
            let announcement =
                Announcement { reason, key: key.to_owned(), restart: None, note: String::new() };
            let event = event(&restarted(), &announcement, "i", Timestamp::now());
            event.metadata.name.unwrap()
        };
        assert_eq!(named("a", Reason::SandboxRestarted), named("a", Reason::SandboxRestarted));
        assert_ne!(named("a", Reason::SandboxRestarted), named("b", Reason::SandboxRestarted));
        assert_ne!(named("a", Reason::ZombiesCleared), named("a", Reason::ZombiesAccumulating));
        assert!(named("a", Reason::SandboxRestarted).starts_with("web."));
    }

    #[test]
    fn the_name_of_a_pod_of_any_length_fits() {
        let mut object = restarted();
        object.spec.pod_name = "p".repeat(253);
        let announcement = &due(&object, 0)[0];
        let event = event(&object, announcement, "i", Timestamp::now());
        assert_eq!(event.metadata.name.unwrap().len(), 253);
    }

    #[test]
    fn an_event_is_about_the_pod_and_related_to_the_object() {
        let object = restarted();
        let event = event(&object, &due(&object, 0)[0], "controller-0", Timestamp::now());
        let (pod, related) = (event.regarding.unwrap(), event.related.unwrap());
        assert_eq!((pod.kind.as_deref(), pod.uid.as_deref()), (Some("Pod"), Some("u-1")));
        assert_eq!((related.kind.as_deref(), related.uid.as_deref()), (Some("SandboxHealth"), Some("o-1")));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
    }

    fn pods() -> HashMap<String, String> {
        ["u-0", "u-1"].map(|uid| (uid.to_owned(), "shop".to_owned())).into()
    }

    #[test]
    fn an_event_says_up_to_which_restart_it_tells_of() {
        let object = restarted();
        let announced: Vec<_> = due(&object, 1)
            .iter()
            .flat_map(|due| announced_in(&event(&object, due, "i", Timestamp::now()), &pods()))
            .collect();
        assert_eq!(announced, [("u-1".to_owned(), 2), ("u-1".to_owned(), 3)]);
        let onset = counted(Some("2027-01-15T08:00:00Z"), None);
        let event = event(&onset, &due(&onset, 0)[0], "i", Timestamp::now());
        assert!(announced_in(&event, &pods()).is_empty());
    }

    #[test]
    fn a_summary_says_it_of_all_its_pods() {
        let event = summary_event(&summary(3, "p"), None, "i", Timestamp::now());
        let announced = announced_in(&event, &pods());
        assert_eq!(announced, [("u-0".to_owned(), 1), ("u-1".to_owned(), 1)], "nobody asks about the third");
    }

    #[test]
    fn an_event_is_not_believed_about_the_pods_of_another_namespace() {
        let mut event = event(&restarted(), &due(&restarted(), 2)[0], "i", Timestamp::now());
        event.metadata.namespace = Some("elsewhere".to_owned());
        assert!(announced_in(&event, &pods()).is_empty());
        event.metadata.annotations =
            Some([(ANNOUNCED_RESTARTS.to_owned(), "{\"u-1\": \"all\"}".to_owned())].into());
        event.metadata.namespace = Some("shop".to_owned());
        assert!(announced_in(&event, &pods()).is_empty(), "nor what is no number");
    }

    #[test]
    fn what_is_kept_of_an_earlier_restart_is_told() {
        let mut object = restarted();
        object.status.as_mut().unwrap().history[2].message = Some("pause was killed by SIGTERM".to_owned());
        assert!(due(&object, 0)[0].note.starts_with("Sandbox restart 1: pause was killed by SIGTERM."));
    }

    #[test]
    fn a_number_that_may_be_too_low_is_said_to_be() {
        let mut object = restarted();
        object.status.as_mut().unwrap().restarts_at_least = Some(true);
        let note = &due(&object, 2)[0].note;
        assert!(note.starts_with("Sandbox restart 3, at least: pause was killed by SIGKILL."), "{note}");
    }

    #[test]
    fn restarts_that_the_history_has_lost_are_counted_in_the_oldest_announcement() {
        for (restarts, said) in [(5, "2 earlier restarts are"), (4, "1 earlier restart is")] {
            let mut object = restarted();
            object.status.as_mut().unwrap().restarts = restarts;
            let notes: Vec<_> = due(&object, 0).into_iter().map(|announcement| announcement.note).collect();
            assert_eq!(notes.len(), 3);
            assert!(notes[0].ends_with(&format!(" {said} not told of one by one.")), "{notes:?}");
            assert!(!notes[1].contains("earlier") && !notes[2].contains("earlier"), "{notes:?}");
        }
    }

    #[test]
    fn a_restart_without_a_history_is_told_all_the_same() {
        let mut object = restarted();
        object.status.as_mut().unwrap().history.clear();
        let [announcement] = &due(&object, 2)[..] else { panic!("not one") };
        assert_eq!((announcement.key.as_str(), announcement.note.contains("SIGKILL")), ("3", true));
    }

    #[test]
    fn restarts_without_a_sandbox_id_are_told_apart_by_time() {
        let mut past = past("");
        past["startedAt"] = json!("2027-01-15T07:00:00Z");
        let object = object(json!({"restarts": 2, "history": [self::past(""), past]}));
        let keys: Vec<_> = due(&object, 0).into_iter().map(|announcement| announcement.key).collect();
        assert_eq!(keys, ["2027-01-15T07:00:00Z", "2027-01-15T08:00:00Z"]);
    }

    #[test]
    fn a_note_of_any_length_fits_and_no_character_is_cut_in_two() {
        for message in ["ä".repeat(2000), format!("x{}", "ä".repeat(2000)), "€".repeat(900)] {
            let mut object = restarted();
            object.spec.pod_name = "p".repeat(253);
            object.status.as_mut().unwrap().last_restart.as_mut().unwrap().message = message;
            let note = event(&object, &due(&object, 2)[0], "i", Timestamp::now()).note.unwrap();
            assert!(note.len() <= 1024 && note.len() > 1020 && note.ends_with('…'), "{}", note.len());
        }
    }

    pub(crate) fn summary(pods: u32, name: &str) -> Summary {
        let restarted = |pod: u32| Restarted {
            uid: format!("u-{pod}"),
            pod: PodKey::new("shop", &format!("{name}{pod}")),
            restarts: 1,
            untold: 1,
            reasons: [(if pod == 0 { "Replaced" } else { "NodeRebooted" }, 1)].into(),
        };
        let pods = (0..pods).map(restarted).map(|pod| (pod.pod.clone(), pod)).collect();
        Summary { node: "n".to_owned(), pods }
    }

    #[test]
    fn a_summary_is_about_the_node_and_fits() {
        let long = "p".repeat(250);
        let event = summary_event(&summary(110, &long), Some("n-1"), "i", Timestamp::now());
        let node = event.regarding.unwrap();
        assert_eq!(
            (node.kind.as_deref(), node.name.as_deref(), node.uid.as_deref()),
            (Some("Node"), Some("n"), Some("n-1"))
        );
        assert_eq!(
            (event.metadata.namespace.as_deref(), event.type_.as_deref()),
            (Some("default"), Some("Warning"))
        );
        assert!(event.note.unwrap().len() <= 1024);
        let again = summary_event(&summary(110, &long), None, "other", Timestamp::now());
        assert_eq!(event.metadata.name, again.metadata.name, "two replicas make one");
        let other = summary_event(&summary(109, &long), None, "other", Timestamp::now());
        assert_ne!(event.metadata.name, other.metadata.name);
    }

    #[test]
    fn where_nothing_is_noted_what_is_recent_is_not_taken_for_told() {
        let noon = "2027-01-15T12:00:00Z".parse().unwrap();
        let started = |time: &str| json!({"sandboxID": "x", "startedAt": format!("2027-01-15T{time}Z"), "reason": "PauseExited"});
        let mut status = object(json!({
            "restarts": 9, "history": [started("11:40:00"), started("11:20:00"), started("10:50:00"), started("10:40:00")],
            "lastRestart": {"time": "2027-01-15T11:50:00Z", "reason": "PauseExited", "message": ""},
        }))
        .status
        .unwrap();
        let told =
            |status: &SandboxHealthStatus, noted: &[i64]| super::told(status, noted.iter().copied(), noon);
        assert_eq!(told(&status, &[]), 6, "at 11:50, 11:40 and 11:20");
        assert_eq!(told(&status, &[99]), 6, "somebody had edited the row");
        assert_eq!((told(&status, &[2]), told(&status, &[2, 8]), told(&status, &[99, 9])), (2, 8, 9));
        status.history.clear();
        assert_eq!(told(&status, &[]), 8);
        status.restarts = 0;
        assert_eq!(told(&status, &[]), 0);
        assert_eq!(told(&SandboxHealthStatus::default(), &[]), 0);
    }

    #[test]
    fn a_summary_knows_the_restarts_that_are_to_be_told_of() {
        let untold = untold(&restarted(), 1).unwrap();
        assert_eq!((untold.pod, untold.restarts, untold.untold), (PodKey::new("shop", "web"), 3, 2));
        assert_eq!(untold.reasons, [("PauseExited", 2)].into());
        assert_eq!(super::untold(&restarted(), 3), None);
    }
}
