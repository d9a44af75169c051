//! Restarts of sandboxes on nodes without an agent, told by the pod's condition `PodReadyToStartContainers` (KEP-3085): the
//! kubelet sets it False when a sandbox is gone and True when the next one is ready. One that goes and comes back between two
//! of the kubelet's writes is missed; an agent sees more, so this counts only where none is.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::resource::{PastSandbox, RestartReason, Sandbox, SandboxHealthStatus, Source};
use crate::sandbox_condition::{KubeletSaid, SandboxCondition};

/// How much later than a sandbox's start its pod's condition may turn True for the same sandbox: the network comes between.
const SETUP: SignedDuration = SignedDuration::from_secs(60);
/// Pods of which the kubelet's words are remembered. To forget them all costs causes.
const SAID_PODS_MAX: usize = 10_000;
/// Pods without an object whose condition is remembered. To forget them all costs the restarts of that moment.
const BASELINES_MAX: usize = 100_000;

/// What is remembered of pods on nodes without an agent, as long as this replica works.
#[derive(Debug, Default)]
pub struct Memory {
    /// What the kubelet said when the sandbox was gone, by UID.
    said: HashMap<String, KubeletSaid>,
    /// Of pods without an object: the condition's time when first seen, by UID.
    baselines: HashMap<String, Timestamp>,
}

impl Memory {
    /// What the watch brought of a pod. The phase without a sandbox lasts a moment, and a look at the pod may come too late.
    pub fn watched(&mut self, uid: &str, said: Option<KubeletSaid>) {
        if let Some(said) = said {
            if self.said.len() >= SAID_PODS_MAX {
                self.said.clear();
            }
            self.said.insert(uid.to_owned(), said);
        }
    }

    /// A pod is gone.
    pub fn forget(&mut self, uid: &str) {
        self.said.remove(uid);
        self.baselines.remove(uid);
    }

    /// What the kubelet said last.
    #[must_use]
    pub fn said(&self, uid: &str) -> Option<KubeletSaid> {
        self.said.get(uid).cloned()
    }

    /// When the pod's sandbox was ready when first asked for it, if it was.
    #[must_use]
    pub fn known_baseline(&self, uid: &str) -> Option<Timestamp> {
        self.baselines.get(uid).copied()
    }

    /// When the pod's sandbox was ready when this was first asked.
    pub fn baseline(&mut self, uid: &str, transition: &SandboxCondition) -> Option<Timestamp> {
        if !transition.ready {
            return self.known_baseline(uid);
        }
        if self.baselines.len() >= BASELINES_MAX {
            self.baselines.clear();
        }
        Some(*self.baselines.entry(uid.to_owned()).or_insert(transition.at))
    }
}

/// The status with what the condition tells, if that is not in it yet. `baseline`: when the sandbox was ready before, as far
/// as this replica remembers; the status knows better. `said`: what the kubelet said of the sandbox that is gone.
#[must_use]
pub fn count(
    status: &SandboxHealthStatus,
    transition: &SandboxCondition,
    baseline: Option<Timestamp>,
    said: Option<&KubeletSaid>,
) -> Option<SandboxHealthStatus> {
    if !transition.ready {
        return None;
    }
    // Whoever took away the sandbox did not take away the last restart, with which it started.
    let last = status.last_restart.as_ref().map(|restart| restart.time.0);
    let before = status.sandbox.as_ref().map(|sandbox| sandbox.started_at.0).or(last);
    let counted_before = match &status.sandbox {
        Some(sandbox) => sandbox.id.is_none(),
        None => status.source == Some(Source::PodConditions),
    };
    let restarted = match before {
        Some(before) if counted_before => transition.at > before,
        Some(before) => transition.at.duration_since(before) > SETUP,
        None => baseline.is_some_and(|baseline| transition.at > baseline),
    };
    if status.source == Some(Source::PodConditions) && status.sandbox.is_some() && !restarted {
        return None;
    }
    let mut next = status.clone();
    if status.sandbox.is_none() && status.restarts > 0 {
        // There may have been another since.
        next.restarts_at_least = Some(true);
    }
    // An agent may have seen a sandbox that the condition is silent of.
    let started_at =
        if restarted { transition.at } else { before.unwrap_or(transition.at).max(transition.at) };
    let sandbox = Sandbox { id: None, started_at: Time(started_at), boot_id: None, pause_version: None };
    let past = next.sandbox.replace(sandbox);
    next.source = Some(Source::PodConditions);
    next.processes = None;
    next.zombie_parents.clear();
    next.read_failure = None;
    if restarted {
        let past_start = past.as_ref().map(|past| past.started_at.clone());
        let past = PastSandbox {
            sandbox_id: past.and_then(|past| past.id).unwrap_or_default(),
            started_at: past_start.unwrap_or(Time(baseline.unwrap_or(transition.at))),
            ended_at: None,
            reason: RestartReason::Replaced,
            message: None,
        };
        // Each container is started anew with its sandbox. An agent that comes back compares with this.
        next.container_restarts = next.container_restarts.map(|count| count.saturating_add(1));
        // What it said of an earlier one is no cause of this.
        let said = said.filter(|said| before.or(baseline).is_none_or(|before| said.at >= before));
        let message = KubeletSaid::added_to(RestartReason::Replaced.in_words(), said);
        next.restarted(Time(transition.at), message, past);
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn ready(second: i64) -> SandboxCondition {
        SandboxCondition { ready: true, at: at(second) }
    }

    fn seen_by_agent(started_at: i64) -> SandboxHealthStatus {
        let sandbox = Sandbox {
            id: Some("a".to_owned()),
            started_at: Time(at(started_at)),
            boot_id: Some("b".to_owned()),
            pause_version: None,
        };
        SandboxHealthStatus {
            restarts: 2,
            sandbox: Some(sandbox),
            source: Some(Source::PauseStatusFile),
            ..Default::default()
        }
    }

    #[test]
    fn what_an_agent_saw_is_the_baseline_that_goes_on() {
        let counted = count(&seen_by_agent(0), &ready(3), None, None).unwrap();
        assert_eq!((counted.restarts, counted.source), (2, Some(Source::PodConditions)));
        let sandbox = counted.sandbox.as_ref().unwrap();
        assert_eq!((sandbox.id.as_ref(), &sandbox.started_at), (None, &Time(at(3))));
        assert_eq!(count(&counted, &ready(3), None, None), None, "it is written once");
        assert_eq!(count(&counted, &ready(90), None, None).unwrap().restarts, 3);
    }

    #[test]
    fn a_sandbox_that_was_ready_long_after_the_one_that_an_agent_saw_is_another() {
        assert_eq!(count(&seen_by_agent(0), &ready(60), None, None).unwrap().restarts, 2);
        let counted = count(&seen_by_agent(0), &ready(61), None, None).unwrap();
        assert_eq!(counted.restarts, 3);
        let restart = counted.last_restart.unwrap();
        assert_eq!((restart.time, restart.reason), (Time(at(61)), RestartReason::Replaced));
        assert_eq!(
            (counted.history[0].sandbox_id.as_str(), &counted.history[0].started_at),
            ("a", &Time(at(0)))
        );
    }

    #[test]
    fn the_restarts_of_containers_that_an_agent_saw_go_on_with_the_sandbox_s() {
        let seen = SandboxHealthStatus { container_restarts: Some(4), ..seen_by_agent(0) };
        let restarts = |ready| count(&seen, &ready, None, None).unwrap().container_restarts;
        assert_eq!((restarts(ready(3)), restarts(ready(90))), (Some(4), Some(5)));
    }

    #[test]
    fn a_row_whose_sandbox_or_source_somebody_took_away_counts_each_restart_once() {
        let first = count(&SandboxHealthStatus::default(), &ready(0), None, None).unwrap();
        let counted = count(&first, &ready(30), Some(at(0)), None).unwrap();
        let no_sandbox = SandboxHealthStatus { sandbox: None, ..counted.clone() };
        let again = count(&no_sandbox, &ready(30), Some(at(0)), None).unwrap();
        assert_eq!((again.restarts, again.restarts_at_least), (1, Some(true)));
        assert_eq!(again.sandbox, counted.sandbox);
        let no_source = SandboxHealthStatus { source: None, ..counted.clone() };
        assert_eq!(count(&no_source, &ready(30), Some(at(0)), None).unwrap(), counted);
        for robbed in [no_sandbox, no_source] {
            assert_eq!(count(&robbed, &ready(40), Some(at(0)), None).unwrap().restarts, 2);
        }
    }

    #[test]
    fn a_condition_that_is_older_than_what_an_agent_saw_moves_nothing_back() {
        let counted = count(&seen_by_agent(500), &ready(3), None, None).unwrap();
        assert_eq!((counted.restarts, counted.sandbox.unwrap().started_at), (2, Time(at(500))));
    }

    #[test]
    fn each_later_transition_is_one_restart_with_the_kubelet_s_words() {
        let mut counted = count(&SandboxHealthStatus::default(), &ready(0), None, None).unwrap();
        assert_eq!(counted.restarts, 0);
        let said = KubeletSaid { at: at(10), message: "no sandbox".to_owned() };
        for (restart, second) in [(1, 10), (2, 11)] {
            let gone = SandboxCondition { ready: false, at: at(second - 1) };
            assert_eq!(count(&counted, &gone, None, None), None, "a sandbox that is gone is no other yet");
            counted = count(&counted, &ready(second), None, Some(&said)).unwrap();
            assert_eq!(counted.restarts, restart);
            assert_eq!(count(&counted, &ready(second), None, None), None);
        }
        let said = "the sandbox was replaced while no agent watched; the kubelet said: no sandbox";
        assert_eq!(counted.last_restart.as_ref().unwrap().message, said);
        let old = KubeletSaid { at: at(10), message: "no sandbox".to_owned() };
        let next = count(&counted, &ready(20), None, Some(&old)).unwrap();
        assert!(!next.last_restart.unwrap().message.contains("kubelet"), "that was another time");
    }

    #[test]
    fn a_pod_without_an_object_is_compared_with_what_was_first_seen() {
        let mut memory = Memory::default();
        assert_eq!(memory.baseline("u", &ready(0)), Some(at(0)));
        let baseline = memory.baseline("u", &ready(9));
        assert_eq!(baseline, Some(at(0)));
        let counted = count(&SandboxHealthStatus::default(), &ready(9), baseline, None).unwrap();
        assert_eq!((counted.restarts, &counted.history[0].started_at), (1, &Time(at(0))));
        memory.forget("u");
        assert_eq!(memory.baseline("u", &ready(9)), Some(at(9)));
    }

    #[test]
    fn what_the_kubelet_said_last_of_a_missing_sandbox_is_remembered() {
        let said = |second, message: &str| Some(KubeletSaid { at: at(second), message: message.to_owned() });
        let mut memory = Memory::default();
        for (now, last) in [
            (said(0, "it was killed"), said(0, "it was killed")),
            (None, said(0, "it was killed")),
            (said(9, "it was evicted"), said(9, "it was evicted")),
        ] {
            memory.watched("u", now);
            assert_eq!(memory.said("u"), last);
        }
        memory.forget("u");
        assert_eq!(memory.said("u"), None);
    }
}
