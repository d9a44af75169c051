//! What is to be done next for a pod, as a function of what is known of it. It makes no request and reads no clock.

use jiff::{SignedDuration, Timestamp};

use super::fleet::{Blindness, Sight};
use super::pods::KeptPod;
use super::restarts_by_condition::count;
use crate::authorship::{edited_at, edited_by};
use crate::resource::{SandboxHealth, SandboxHealthSpec, SandboxHealthStatus};
use crate::sandbox_condition::KubeletSaid;
use crate::scope::PidNamespaces;

/// A pod that was asked to go is gone by then as a rule. To judge its object sooner would be a write for each pod that goes.
const TIME_TO_GO: SignedDuration = SignedDuration::from_mins(1);

/// An agent lists the rows of its node every five minutes, and after a failure sooner.
const TIME_TO_MEND: SignedDuration = SignedDuration::from_mins(10);

/// The object of a pod's name, as the watch brought it.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// There is none.
    Nothing,
    /// There is one.
    Object(&'a SandboxHealth),
    /// There is one that this program cannot read, say of a later version.
    NotUnderstood,
}

/// What is known of a pod.
#[derive(Debug)]
pub struct Known<'a> {
    /// The pod.
    pub pod: &'a KeptPod,
    /// Its object.
    pub found: Found<'a>,
    /// Whether somebody sees its node.
    pub sight: Sight,
    /// When its sandbox was ready, as far as this replica remembers.
    pub baseline: Option<Timestamp>,
    /// What the kubelet said when its sandbox was gone.
    pub said: Option<&'a KubeletSaid>,
    /// The moment.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Step<'a> {
    /// Nothing, until something changes.
    Leave,
    /// Nothing before then.
    Wait(Timestamp),
    /// Tell of its restarts, and nothing else before then: the pod is about to go, and its object with it.
    Tell(&'a SandboxHealth, Timestamp),
    /// Create its object, if there is room.
    Create(SandboxHealth),
    /// Create its object in any case: something is wrong with the pod.
    CreateAnyway(SandboxHealth),
    /// Delete the object, which is another pod's of the name or is not owned by this one.
    MakeRoom(&'a SandboxHealth),
    /// Write the status so: no agent is there to do it, and the pod's condition tells of its sandbox, or somebody edited it.
    Count(&'a SandboxHealth, Box<SandboxHealthStatus>),
    /// Judge the object's status and tell of what happened.
    Judge(&'a SandboxHealth),
}

/// The next step for a pod.
#[must_use]
pub fn next<'a>(known: &Known<'a>) -> Step<'a> {
    let pod = known.pod;
    if let Some(asked) = pod.asked_to_go {
        // Nobody looks at its sandbox meanwhile.
        let by = asked.checked_add(TIME_TO_GO).unwrap_or(Timestamp::MAX);
        return match known.found {
            Found::Object(object) if is_of(object, pod) && known.now < by => {
                if has_untold(object) {
                    Step::Tell(object, by)
                } else {
                    Step::Wait(by)
                }
            }
            Found::Object(object) if is_of(object, pod) => Step::Judge(object),
            Found::Object(_) | Found::Nothing | Found::NotUnderstood => Step::Leave,
        };
    }
    match known.found {
        // To make it again would be to overwrite what somebody understands.
        Found::NotUnderstood => Step::Leave,
        Found::Object(object) if !is_of(object, pod) => Step::MakeRoom(object),
        Found::Object(object) => match told_by_condition(known, object.status.as_ref()) {
            Some(status) => Step::Count(object, Box::new(status)),
            None => judge_if_ours(known, object),
        },
        Found::Nothing => {
            let told = told_by_condition(known, None);
            match pod.namespaces {
                _ if told.is_some_and(|status| status.restarts > 0) => Step::CreateAnyway(object_for(pod)),
                PidNamespaces::Shared => Step::Create(object_for(pod)),
                PidNamespaces::PerContainer => Step::Leave,
            }
        }
    }
}

/// The object of a pod, as it is at first.
fn object_for(pod: &KeptPod) -> SandboxHealth {
    SandboxHealth::of_pod(pod.key.namespace(), pod.key.name(), &pod.uid, &pod.node)
}

/// Whether the object is the one for this very pod: what it says of the pod is so, and it goes with it. Who made it is all one.
fn is_of(object: &SandboxHealth, pod: &KeptPod) -> bool {
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    let SandboxHealthSpec { pod_name, pod_uid, node_name } = &object.spec;
    **pod_uid == *pod.uid
        && pod_name == pod.key.name()
        && **node_name == *pod.node
        && owners.iter().any(|owner| *owner.uid == *pod.uid)
}

/// Whether there are restarts that nobody was told of, as far as the row says. What somebody else wrote there is not told of, and
/// a number that is noted beyond the restarts says nothing.
fn has_untold(object: &SandboxHealth) -> bool {
    let is_untold = |status: &SandboxHealthStatus| {
        let noted = status.announced_restarts.filter(|noted| *noted <= status.restarts);
        status.restarts > noted.unwrap_or_default()
    };
    object.status.as_ref().is_some_and(is_untold) && edited_by(object).is_none()
}

/// What the pod's condition tells that is not in the status. It counts only where no agent can be, and not for a pod whose
/// sandbox goes because the pod is over.
fn told_by_condition(known: &Known, status: Option<&SandboxHealthStatus>) -> Option<SandboxHealthStatus> {
    let nothing = SandboxHealthStatus::default();
    if !counts_by_condition(known.pod, known.sight) {
        return None;
    }
    count(status.unwrap_or(&nothing), &known.pod.sandbox?, known.baseline, known.said)
}

/// What somebody wrote into a row is made right first: by the agent at its next list, which brings the row back, or by us where
/// there is none. An agent that does not do it is not waited for.
fn judge_if_ours<'a>(known: &Known, object: &'a SandboxHealth) -> Step<'a> {
    if edited_by(object).is_none() {
        return Step::Judge(object);
    }
    if known.sight == Sight::Blind(Blindness::AgentMissing) {
        return Step::Count(object, Box::new(object.status.clone().unwrap_or_default()));
    }
    let by = edited_at(object).and_then(|edited| edited.checked_add(TIME_TO_MEND).ok());
    match by.filter(|by| known.now < *by) {
        Some(by) if matches!(known.sight, Sight::Seen | Sight::Unsettled) => Step::Wait(by),
        _ => Step::Judge(object),
    }
}

/// Whether restarts of this pod's sandbox are counted by its condition.
#[must_use]
pub fn counts_by_condition(pod: &KeptPod, sight: Sight) -> bool {
    sight == Sight::Blind(Blindness::AgentMissing) && !pod.is_finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::WatchPods;
    use serde_json::{Value, json};

    const BLIND: Sight = Sight::Blind(Blindness::AgentMissing);
    const READY: &str = "2027-01-15T08:00:00Z";

    fn pod(changes: Value) -> KeptPod {
        let ready =
            json!({"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": READY});
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"nodeName": "n", "containers": [], "shareProcessNamespace": true},
            "status": {"phase": "Running", "conditions": [ready]},
        });
        for (part, fields) in changes.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                pod[part][field] = value.clone();
            }
        }
        KeptPod::of(&serde_json::from_value(pod).unwrap(), WatchPods::All).unwrap()
    }

    fn object(owner: &str, pod_uid: &str) -> SandboxHealth {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": owner});
        serde_json::from_value(json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1", "ownerReferences": [owner]},
            "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
        }))
        .unwrap()
    }

    fn known<'a>(pod: &'a KeptPod, found: Found<'a>, sight: Sight) -> Known<'a> {
        Known { pod, found, sight, baseline: None, said: None, now: READY.parse().unwrap() }
    }

    /// The step's name.
    fn step(known: &Known) -> String {
        let step = format!("{:?}", next(known));
        step.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_watched_pod_on_a_node_gets_an_object() {
        assert_eq!(step(&known(&pod(json!({})), Found::Nothing, Sight::Seen)), "Create");
        let deleted = pod(json!({"metadata": {"deletionTimestamp": READY}}));
        assert_eq!(step(&known(&deleted, Found::Nothing, Sight::Seen)), "Leave");
    }

    #[test]
    fn an_object_that_is_not_the_pod_s_makes_room_and_one_that_is_not_understood_is_left_alone() {
        let pod = pod(json!({}));
        for (owner, uid) in [("u-0", "u-0"), ("u-0", "u-1"), ("u-1", "u-0")] {
            let object = object(owner, uid);
            assert_eq!(step(&known(&pod, Found::Object(&object), Sight::Seen)), "MakeRoom");
        }
        assert_eq!(step(&known(&pod, Found::NotUnderstood, Sight::Seen)), "Leave");
        assert_eq!(step(&known(&pod, Found::NotUnderstood, BLIND)), "Leave");
    }

    #[test]
    fn an_object_that_says_something_else_of_the_pod_is_not_its_own() {
        let changed = |change: fn(&mut SandboxHealth)| {
            let mut object = object("u-1", "u-1");
            change(&mut object);
            is_of(&object, &pod(json!({})))
        };
        assert!(changed(|_| {}));
        assert!(!changed(|object| object.spec.pod_name = "other".to_owned()));
        assert!(!changed(|object| object.spec.node_name = "other".to_owned()));
        assert!(!changed(|object| object.metadata.owner_references = None));
    }

    #[test]
    fn an_object_that_an_agent_made_is_taken_as_it_is() {
        let pod = pod(json!({"spec": {"shareProcessNamespace": false}}));
        let object = object("u-1", "u-1");
        assert_eq!(step(&known(&pod, Found::Object(&object), Sight::Seen)), "Judge");
    }

    #[test]
    fn a_pod_whose_containers_have_namespaces_of_their_own_gets_an_object_only_for_a_restart() {
        let pod = pod(json!({"spec": {"shareProcessNamespace": false}}));
        let all = |sight, baseline: &str| Known {
            baseline: Some(baseline.parse().unwrap()),
            ..known(&pod, Found::Nothing, sight)
        };
        assert_eq!(step(&all(BLIND, READY)), "Leave");
        assert_eq!(step(&all(BLIND, "2027-01-15T07:00:00Z")), "CreateAnyway");
        assert_eq!(step(&all(Sight::Seen, "2027-01-15T07:00:00Z")), "Leave", "the agent makes it");
    }

    #[test]
    fn a_row_that_somebody_edited_is_not_judged_before_the_agent_had_its_time_to_mend_it() {
        let edited_at: Timestamp = READY.parse().unwrap();
        let mut edited = object("u-1", "u-1");
        let theirs = json!({"manager": "kubectl-edit", "operation": "Update", "time": READY});
        edited.metadata.managed_fields = serde_json::from_value(json!([theirs])).unwrap();
        let pod = pod(json!({}));
        let step_then = |sight, now| step(&Known { now, ..known(&pod, Found::Object(&edited), sight) });
        for sight in [Sight::Seen, Sight::Unsettled] {
            assert_eq!(step_then(sight, edited_at), "Wait");
            assert_eq!(step_then(sight, edited_at + TIME_TO_MEND), "Judge");
        }
        assert_eq!(step_then(Sight::Blind(Blindness::NodeNotReady), edited_at), "Judge");
        assert_eq!(step_then(BLIND, edited_at), "Count");
        let finished = self::pod(json!({"status": {"phase": "Succeeded"}}));
        assert_eq!(step(&known(&finished, Found::Object(&edited), BLIND)), "Count");
    }

    #[test]
    fn the_condition_counts_only_where_no_agent_is_and_while_the_pod_runs() {
        let object = object("u-1", "u-1");
        let running = pod(json!({}));
        assert_eq!(step(&known(&running, Found::Object(&object), BLIND)), "Count");
        for sight in [
            Sight::Seen,
            Sight::Unsettled,
            Sight::Blind(Blindness::AgentNotReady),
            Sight::Blind(Blindness::NodeNotReady),
        ] {
            assert_eq!(step(&known(&running, Found::Object(&object), sight)), "Judge", "{sight:?}");
        }
        let finished = pod(json!({"status": {"phase": "Succeeded"}}));
        assert_eq!(step(&known(&finished, Found::Object(&object), BLIND)), "Judge");
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_given_a_minute_to_go_and_then_nobody_says_how_it_is() {
        let object = object("u-1", "u-1");
        let deletion =
            json!({"deletionTimestamp": "2027-01-15T09:00:00Z", "deletionGracePeriodSeconds": 3600});
        let deleted = pod(json!({ "metadata": deletion }));
        let at = |second, found| {
            let now = READY.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second);
            step(&Known { now, ..known(&deleted, found, BLIND) })
        };
        assert_eq!([0, 59].map(|second| at(second, Found::Object(&object))), ["Wait", "Wait"]);
        let restarted = |announced, manager: Option<&str>| {
            let mut object = self::object("u-1", "u-1");
            let status =
                SandboxHealthStatus { restarts: 2, announced_restarts: announced, ..Default::default() };
            object.status = Some(status);
            let managers = manager.map(|manager| json!([{"manager": manager, "operation": "Update"}]));
            object.metadata.managed_fields =
                managers.map(|managers| serde_json::from_value(managers).unwrap());
            object
        };
        let untold = [restarted(None, None), restarted(Some(1), None), restarted(Some(99), None)];
        let told = [restarted(Some(2), None), restarted(Some(1), Some("kubectl-edit"))];
        assert_eq!(untold.each_ref().map(|object| at(59, Found::Object(object))), ["Tell"; 3]);
        assert_eq!(told.each_ref().map(|object| at(59, Found::Object(object))), ["Wait", "Wait"]);
        assert_eq!(at(60, Found::Object(&object)), "Judge");
        let other = self::object("u-0", "u-0");
        assert_eq!(at(60, Found::Object(&other)), "Leave", "no object is made for it");
        assert_eq!(at(60, Found::Nothing), "Leave");
        assert_eq!(at(60, Found::NotUnderstood), "Leave");
    }
}
