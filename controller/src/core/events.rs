//! The Events of a pod: which are due, their names and their texts, and how an Event on a node is made. A name follows from the pod's UID
//! and the sandbox or onset, so that creating an Event twice is a conflict; kube's `events::Recorder` makes random names. Names that tenants chose are quoted and
//! cleaned, and a text is true for as long as the Event exists.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};
use kube::{Resource as _, ResourceExt as _};
use sha2::{Digest as _, Sha256};
use strum::{IntoStaticStr, VariantArray};

use super::cause::unobserved;
use crate::crd::{PastSandbox, Processes, SandboxHealth, SandboxHealthStatus, ZOMBIES_REAPED, ZombieParent};
use crate::text::{cut, printable};

/// `reportingController` of our Events.
const REPORTING_CONTROLLER: &str = "sandboxhealth.dev/controller";
/// What happened before is not emitted. It is the API server's `--event-ttl`: a new leader repeats none that has expired.
pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(1);
/// Limit in bytes of an object's name (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// Limit in bytes of `note` (API validation of events.k8s.io/v1).
const NOTE_MAX: usize = 1024;
/// Limit in bytes of `reportingInstance`.
const INSTANCE_MAX: usize = 128;
/// Limit in bytes of a tenant's name in a text.
const TENANT_NAME_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str)]
pub enum Reason {
    /// The kubelet recreated the pod's sandbox.
    SandboxRestarted,
    /// The pod's sandbox ended, and the kubelet does not recreate it.
    SandboxTerminated,
    /// The zombie count reached the threshold.
    ZombiesAccumulating,
    /// The zombie count is half the threshold or less again.
    ZombiesReaped,
    /// A node could not be switched to our pause image.
    PauseSwitchFailed,
}

impl Reason {
    const fn type_(self) -> &'static str {
        match self {
            Self::ZombiesReaped => "Normal",
            Self::SandboxRestarted
            | Self::SandboxTerminated
            | Self::ZombiesAccumulating
            | Self::PauseSwitchFailed => "Warning",
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::SandboxRestarted | Self::SandboxTerminated => "ObserveSandbox",
            Self::ZombiesAccumulating | Self::ZombiesReaped => "CountZombies",
            Self::PauseSwitchFailed => "SwitchPause",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEvent {
    pub reason: Reason,
    /// What distinguishes it from others of the reason and pod or node: the id of the sandbox, or the onset.
    pub key: String,
    pub note: String,
}

/// The Events for what happened within [`MAX_AGE`], oldest restart first; `conditions` are those that follow from the status.
/// `exec_probed` are the names of the containers with exec probes, of a pod that does not share its PID namespace.
pub fn due(
    status: &SandboxHealthStatus,
    conditions: &[Condition],
    exec_probed: Option<&[Box<str>]>,
    now: Timestamp,
) -> Vec<DueEvent> {
    let is_recent = |time: Timestamp| now.duration_since(time) < MAX_AGE;
    let mut events = restarts(status, is_recent);
    if let Some(termination) = status.termination.as_ref().filter(|termination| is_recent(termination.time.0))
    {
        events.push(DueEvent {
            reason: Reason::SandboxTerminated,
            key: termination.sandbox_id.clone(),
            note: format!(
                "Pod sandbox terminated: {}. All containers were terminated, and the kubelet does not restart them. Unless a controller \
                 replaces the pod, recreate it.",
                termination.message
            ),
        });
    }
    events.extend(zombies(status, conditions, exec_probed, is_recent));
    events
}

/// One Event for each restart that is in the history.
fn restarts(status: &SandboxHealthStatus, is_recent: impl Fn(Timestamp) -> bool) -> Vec<DueEvent> {
    // A restart happened when the next sandbox started.
    let latest = status.last_restart.iter().map(|restart| restart.time.0);
    let times = latest.chain(status.history.iter().map(|past| past.started_at.0));
    let numbers = (1..=status.restarts).rev();
    let mut events: Vec<_> = status
        .history
        .iter()
        .zip(times)
        .zip(numbers)
        .enumerate()
        .take_while(|(_, ((_, time), _))| is_recent(*time))
        .map(|(age, ((past, _), number))| {
            let latest = status.last_restart.as_ref().filter(|_| age == 0);
            let cause = latest.map_or_else(|| cause(past), |restart| restart.message.clone());
            let at_least = if status.restarts_at_least == Some(true) { "at least " } else { "" };
            DueEvent {
                reason: Reason::SandboxRestarted,
                key: past.sandbox_id.clone(),
                note: format!(
                    "Pod sandbox restarted ({at_least}restart {number}): {cause}. The kubelet is restarting all containers."
                ),
            }
        })
        .collect();
    events.reverse();
    events
}

fn cause(past: &PastSandbox) -> String {
    let message = past.message.clone().filter(|message| !message.is_empty());
    message.unwrap_or_else(|| unobserved(past.reason).to_owned())
}

fn zombies(
    status: &SandboxHealthStatus,
    conditions: &[Condition],
    exec_probed: Option<&[Box<str>]>,
    is_recent: impl Fn(Timestamp) -> bool,
) -> Option<DueEvent> {
    let after = conditions.iter().find(|has| has.type_ == ZOMBIES_REAPED)?;
    let before = status.condition(ZOMBIES_REAPED);
    let processes = status.processes.as_ref()?;
    let (reason, onset, note) = match (after.status.as_str(), before) {
        ("False", _) if is_recent(after.last_transition_time.0) => {
            let parents = &status.zombie_parents;
            let advice = exec_probed.map_or_else(|| fix_parents(parents), |probed| advice(probed, parents));
            (Reason::ZombiesAccumulating, after, accumulating(processes, parents) + &advice)
        }
        ("True", Some(before)) if before.status == "False" => {
            let left = processes.zombies;
            (
                Reason::ZombiesReaped,
                before,
                format!("Zombie processes are no longer accumulating ({left} left)."),
            )
        }
        _ => return None,
    };
    Some(DueEvent { reason, key: onset.last_transition_time.0.to_string(), note })
}

/// Counts of parents come from another scan than the total. Where they do not fit it, they are left out.
fn accumulating(processes: &Processes, parents: &[ZombieParent]) -> String {
    let zombies = processes.zombies;
    let (noun, verb) = if zombies == 1 { ("process", "counts") } else { ("processes", "count") };
    let mut note = format!("{zombies} zombie {noun} {verb} against the pod's PID limit.");
    let fits = parents.iter().map(|parent| parent.zombies).sum::<i64>() <= zombies;
    let parents: Vec<_> = parents.iter().map(|parent| describe(parent, fits)).collect();
    if !parents.is_empty() {
        note.push_str(&format!(" Not reaped by: {}.", parents.join("; ")));
    }
    note
}

/// The fix where pause is PID 1 of the containers, and reaps orphans.
fn fix_parents(parents: &[ZombieParent]) -> String {
    match parents {
        [] => String::new(),
        [_] => " Fix this process to wait for its children (wait(2)).".to_owned(),
        _ => " Fix these processes to wait for their children (wait(2)).".to_owned(),
    }
}

/// The fix where pause is not PID 1 of the containers.
fn advice(exec_probed: &[Box<str>], parents: &[ZombieParent]) -> String {
    let is_parent = |name: &str| parents.iter().any(|parent| parent.container == name);
    let probed = exec_probed.iter().filter(|name| is_parent(name)).map(|name| format!("\"{name}\""));
    let probed: Vec<_> = probed.collect();
    let probes = match &probed[..] {
        [] => String::new(),
        names => format!(" The exec probes of {} may leave them.", names.join(", ")),
    };
    format!(
        "{probes} To reap orphans, run an init such as tini as PID 1 of the container, or set shareProcessNamespace: true."
    )
}

fn describe(parent: &ZombieParent, with_count: bool) -> String {
    let tenant_name = |name: &str| cut(&printable(name.as_bytes()), TENANT_NAME_MAX).to_owned();
    let ZombieParent { pid, command, container, zombies, oldest_seconds } = parent;
    let place = match tenant_name(container) {
        // The pod's status names neither the pause container nor one that has just started.
        name if name.is_empty() => "the sandbox or an unidentified container".to_owned(),
        name => format!("container \"{name}\""),
    };
    let count = with_count.then(|| zombies.to_string());
    let age = oldest_seconds.map(|seconds| format!("oldest {seconds} s"));
    let details: Vec<_> = count.into_iter().chain(age).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    format!("PID {pid} \"{}\" in {place}{details}", tenant_name(command))
}

/// The Event as it is created. `kubectl describe pod` selects Events by `regarding.uid`, which for a mirror pod is the annotation
/// kubernetes.io/config.mirror (kubectl, pkg/describe/describe.go, `PodDescriber.Describe`): hence `mirror_uid`.
pub fn event(
    object: &SandboxHealth,
    mirror_uid: Option<&str>,
    due: &DueEvent,
    instance: &str,
    now: Timestamp,
) -> Event {
    let namespace = object.namespace();
    let spec = &object.spec;
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: namespace.clone(),
        name: Some(spec.pod_name.clone()),
        uid: Some(mirror_uid.unwrap_or(&spec.pod_uid).to_owned()),
        ..ObjectReference::default()
    };
    let name = name(&spec.pod_name, [&spec.pod_uid, due.reason.into_str(), &due.key]);
    let metadata = ObjectMeta { name: Some(name), namespace, ..ObjectMeta::default() };
    Event { related: Some(object.object_ref(&())), ..new_event(metadata, regarding, due, instance, now) }
}

/// An Event on a node. Its namespace is that of all Events on nodes, and the node's name is the UID, as in those of the kubelet: both
/// `kubectl describe node` and `kubectl events` select it.
pub fn node_event(node: &str, due: &DueEvent, instance: &str, now: Timestamp) -> Event {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name(node, [node, due.reason.into_str(), &due.key])),
        namespace: Some("default".to_owned()),
        ..ObjectMeta::default()
    };
    new_event(metadata, regarding, due, instance, now)
}

fn new_event(
    metadata: ObjectMeta,
    regarding: ObjectReference,
    due: &DueEvent,
    instance: &str,
    now: Timestamp,
) -> Event {
    Event {
        metadata,
        regarding: Some(regarding),
        type_: Some(due.reason.type_().to_owned()),
        reason: Some(due.reason.into_str().to_owned()),
        action: Some(due.reason.action().to_owned()),
        note: Some(bounded(&due.note)),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(REPORTING_CONTROLLER.to_owned()),
        reporting_instance: Some(cut(instance, INSTANCE_MAX).to_owned()),
        ..Event::default()
    }
}

/// The name of the pod or node, and a hash of what the Event is about.
fn name(regarding: &str, about: [&str; 3]) -> String {
    let mut hash = Sha256::new();
    for part in about {
        hash.update(part);
        hash.update([0]);
    }
    let digits: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let regarding = cut(regarding, NAME_MAX - 1 - digits.len());
    format!("{}.{digits}", regarding.trim_end_matches(['.', '-']))
}

fn bounded(note: &str) -> String {
    if note.len() <= NOTE_MAX {
        return note.to_owned();
    }
    format!("{}…", cut(note, NOTE_MAX - '…'.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::conditions::{AgentState, Terminal, evaluate};
    use serde_json::{Value, json};

    const NOW: &str = "2027-01-15T12:00:00Z";

    fn at(time: &str) -> String {
        format!("2027-01-15T{time}Z")
    }

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn status(status: Value) -> SandboxHealthStatus {
        serde_json::from_value(status).unwrap()
    }

    fn past(id: &str, started_at: &str) -> Value {
        json!({"sandboxID": id, "startedAt": at(started_at), "reason": "PauseExited"})
    }

    /// Restarts at 11:10, 11:30 and 11:50; before them, two that the history no longer has.
    fn restarted() -> SandboxHealthStatus {
        status(json!({
            "restarts": 5,
            "history": [past("c", "11:30:00"), past("b", "11:10:00"), past("a", "08:00:00")],
            "lastRestart": {"time": at("11:50:00"), "reason": "PauseExited", "message": "pause was killed by SIGKILL"},
        }))
    }

    fn counted(zombies: i64, onset: Option<&str>) -> SandboxHealthStatus {
        status(json!({
            "processes": {"zombies": zombies, "zombiesPeak": 9, "total": 12, "observedAt": NOW},
            "sandbox": {"id": "a", "startedAt": at("08:00:00")},
            "accumulatingSince": onset.map(at),
        }))
    }

    fn due_at(status: &SandboxHealthStatus, terminal: Option<Terminal>, now: Timestamp) -> Vec<DueEvent> {
        let conditions = evaluate(status, "n", terminal, AgentState::Ready, now).conditions;
        due(status, &conditions, None, now)
    }

    fn reasons_and_keys(status: &SandboxHealthStatus) -> Vec<(Reason, String)> {
        due_at(status, None, now()).into_iter().map(|event| (event.reason, event.key)).collect()
    }

    fn object() -> SandboxHealth {
        let mut object = SandboxHealth::of_pod("shop", "web", "u-1", "n");
        object.metadata.uid = Some("o-1".to_owned());
        object
    }

    #[test]
    fn each_restart_within_an_hour_has_an_event_oldest_first() {
        let expected = ["a", "b", "c"].map(|id| (Reason::SandboxRestarted, id.to_owned()));
        assert_eq!(reasons_and_keys(&restarted()), expected);
        let later = now() + SignedDuration::from_mins(20);
        let keys: Vec<_> = due_at(&restarted(), None, later).into_iter().map(|event| event.key).collect();
        assert_eq!(keys, ["b", "c"], "that of 11:10 is over an hour old");
    }

    #[test]
    fn restart_event_has_its_number_and_cause() {
        let notes: Vec<_> = due_at(&restarted(), None, now()).into_iter().map(|event| event.note).collect();
        assert!(notes[0].contains("(restart 3)") && notes[1].contains("(restart 4)"), "{notes:?}");
        assert!(notes[2].contains("(restart 5)") && notes[2].contains("SIGKILL"), "{notes:?}");
        assert!(!notes[0].contains("SIGKILL"), "{notes:?}");
        let mut status = restarted();
        status.restarts_at_least = Some(true);
        status.history[1].message = Some("pause was killed by SIGTERM".to_owned());
        let notes: Vec<_> = due_at(&status, None, now()).into_iter().map(|event| event.note).collect();
        assert!(notes[1].contains("(at least restart 4)") && notes[1].contains("SIGTERM"), "{notes:?}");
    }

    #[test]
    fn termination_has_one_event_for_an_hour() {
        let terminated = |time: &str| {
            status(
                json!({"termination": {"sandboxID": "a", "time": at(time), "message": "pause was killed"}}),
            )
        };
        for terminal in [None, Some(Terminal::PodFinished)] {
            let [event] = &due_at(&terminated("11:30:00"), terminal, now())[..] else { panic!("not one") };
            assert_eq!((event.reason, event.key.as_str()), (Reason::SandboxTerminated, "a"));
        }
        assert_eq!(reasons_and_keys(&terminated("10:59:00")), []);
    }

    #[test]
    fn onset_and_end_of_accumulation_have_an_event_with_the_same_key() {
        let key = at("11:30:00").parse::<Timestamp>().unwrap().to_string();
        let mut accumulating = counted(7, Some("11:30:00"));
        assert_eq!(reasons_and_keys(&accumulating), [(Reason::ZombiesAccumulating, key.clone())]);
        accumulating.conditions = evaluate(&accumulating, "n", None, AgentState::Ready, now()).conditions;
        assert_eq!(
            reasons_and_keys(&accumulating),
            [(Reason::ZombiesAccumulating, key.clone())],
            "its name is the same"
        );
        accumulating.accumulating_since = None;
        assert_eq!(reasons_and_keys(&accumulating), [(Reason::ZombiesReaped, key)]);
        assert_eq!(reasons_and_keys(&counted(0, None)), []);
        assert_eq!(reasons_and_keys(&counted(7, Some("10:59:00"))), [], "over an hour old");
    }

    #[test]
    fn uncounted_zombies_have_no_event() {
        let mut accumulating = counted(7, Some("11:30:00"));
        accumulating.processes = None;
        assert_eq!(reasons_and_keys(&accumulating), []);
    }

    #[test]
    fn finished_pod_has_no_event_about_zombies() {
        let accumulating = counted(7, Some("11:30:00"));
        for &terminal in Terminal::VARIANTS {
            assert_eq!(due_at(&accumulating, Some(terminal), now()), []);
        }
    }

    fn note(zombies: i64, parents: Value) -> String {
        let mut status = counted(zombies, Some("11:30:00"));
        status.zombie_parents = serde_json::from_value(parents).unwrap();
        due_at(&status, None, now()).remove(0).note
    }

    #[test]
    fn tenant_name_cannot_pass_for_the_text_around_it() {
        let command = "x\" in \"y\n\u{202e}\u{1b}[31m";
        let note = note(7, json!([{"pid": 1, "command": command, "container": "c", "zombies": 1}]));
        assert_eq!(note.matches('"').count(), 4, "{note}");
        assert!(!note.contains(['\n', '\u{202e}', '\u{1b}']), "{note}");
    }

    #[test]
    fn event_name_follows_from_pod_reason_and_key() {
        let named = |uid: &str, key: &str, reason| {
            let due = DueEvent { reason, key: key.to_owned(), note: String::new() };
            let object = SandboxHealth::of_pod("shop", "web", uid, "n");
            event(&object, None, &due, "i", now()).metadata.name.unwrap()
        };
        let name = named("u-1", "a", Reason::SandboxRestarted);
        assert_eq!(name, named("u-1", "a", Reason::SandboxRestarted));
        assert!(name.starts_with("web."));
        for other in [
            named("u-2", "a", Reason::SandboxRestarted),
            named("u-1", "b", Reason::SandboxRestarted),
            named("u-1", "a", Reason::SandboxTerminated),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn event_regards_the_pod_and_relates_to_the_object() {
        let due = &due_at(&restarted(), None, now())[0];
        let event = event(&object(), None, due, "controller-0", now());
        let (pod, related) = (event.regarding.unwrap(), event.related.unwrap());
        assert_eq!((pod.kind.as_deref(), pod.uid.as_deref()), (Some("Pod"), Some("u-1")));
        assert_eq!((related.kind.as_deref(), related.uid.as_deref()), (Some("SandboxHealth"), Some("o-1")));
        assert_eq!(
            (event.type_.as_deref(), event.metadata.namespace.as_deref()),
            (Some("Warning"), Some("shop"))
        );
    }

    #[test]
    fn node_event_has_the_namespace_and_uid_of_the_kubelets() {
        let due = |key: &str| {
            let reason = Reason::PauseSwitchFailed;
            node_event("n", &DueEvent { reason, key: key.to_owned(), note: "x".to_owned() }, "i", now())
        };
        let event = due("a");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let regarding = event.regarding.unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("Node"), Some("n")));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.metadata.name, due("a").metadata.name);
        assert_ne!(event.metadata.name, due("b").metadata.name);
    }

    #[test]
    fn event_of_a_mirror_pod_regards_the_uid_that_kubectl_describe_selects() {
        let due = &due_at(&restarted(), None, now())[0];
        let mirrored = event(&object(), Some("hash"), due, "i", now());
        assert_eq!(mirrored.regarding.unwrap().uid.as_deref(), Some("hash"));
        let plain = event(&object(), None, due, "i", now());
        assert_eq!(mirrored.metadata.name, plain.metadata.name);
    }

    #[test]
    fn long_names_and_texts_fit_the_api() {
        for message in ["ä".repeat(2000), format!("x{}", "ä".repeat(2000)), "€".repeat(900)] {
            let mut status = restarted();
            status.last_restart.as_mut().unwrap().message = message;
            let due = due_at(&status, None, now()).remove(2);
            let object = SandboxHealth::of_pod("shop", &"p".repeat(253), "u-1", "n");
            let event = event(&object, None, &due, &"i".repeat(200), now());
            assert_eq!(event.metadata.name.unwrap().len(), 253);
            assert_eq!(event.reporting_instance.unwrap().len(), 128);
            let note = event.note.unwrap();
            assert!(note.len() <= 1024 && note.len() > 1020 && note.ends_with('…'), "{}", note.len());
        }
    }
}
