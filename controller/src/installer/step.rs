//! What the installer does next. Pure: the state of the lock and of the node in, one action out. Each action leads to a state from
//! which this function continues, so that the process may be killed at any moment.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::preflight::Refusal;
use crate::k8s::pause_lease::{Step, Switch};

const RETRY: &str = "Set another image, or delete the Lease of the failed node to try again";

#[derive(Debug, Clone)]
pub(super) struct Facts<'a> {
    pub(super) node: &'a str,
    pub(super) image: &'a str,
    pub(super) pause_version: &'a str,
    /// What the Leases record, by number. `None` is free.
    pub(super) leases: &'a [Option<Switch>],
    /// How many of the Leases may be claimed.
    pub(super) concurrency: u32,
    pub(super) state: Result<NodeState, &'a Refusal>,
    pub(super) now: Timestamp,
    pub(super) proof_timeout: Duration,
}

/// The state of the node, whatever the lock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeState {
    /// Its files lack the wanted image.
    NotWritten,
    /// The runtime started before its files had the image.
    NotLoaded,
    Done,
}

/// Numbers are those of Leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Reports why the node is not switched.
    Refuse,
    /// Takes the Lease for a switch to the wanted image.
    Claim(usize),
    /// Writes the files and makes the runtime load them.
    Switch(usize),
    WaitForProof,
    /// Frees the Lease.
    Release(usize),
    /// Records the failure. The node is reverted by the next action.
    Fail(usize, String),
    /// Restores the files and makes the runtime load them.
    Revert(usize),
    /// Waits, for a reason that the log shows.
    Wait(String),
    Ready,
}

pub(super) fn next(facts: &Facts) -> Action {
    let held =
        || facts.leases.iter().enumerate().filter_map(|(index, switch)| Some((index, switch.as_ref()?)));
    if let Some((index, switch)) = held().find(|(_, switch)| switch.node == facts.node) {
        return next_of_holder(facts, index, switch);
    }
    match facts.state {
        Err(_) => return Action::Refuse,
        Ok(NodeState::Done) => return Action::Ready,
        Ok(NodeState::NotWritten | NodeState::NotLoaded) => {}
    }
    let is_failed = |switch: &Switch| switch.step.has_failed() && is_for_wanted(facts, switch);
    if let Some((_, Switch { node, message, .. })) = held().find(|(_, switch)| is_failed(switch)) {
        return Action::Wait(format!(
            "the switch of {node} failed, so the roll-out stops and this node is unchanged: {message}. {RETRY}"
        ));
    }
    // A failure of another image no longer counts.
    let is_free = |lease: &Option<Switch>| lease.as_ref().is_none_or(|switch| switch.step == Step::Failed);
    let concurrency = usize::try_from(facts.concurrency).unwrap_or(usize::MAX);
    match facts.leases.iter().take(concurrency).position(is_free) {
        Some(index) => Action::Claim(index),
        None => {
            let holders: Vec<_> = held().map(|(_, switch)| switch.node.as_str()).collect();
            Action::Wait(format!("waiting for the switch of {}", holders.join(", ")))
        }
    }
}

fn is_for_wanted(facts: &Facts, switch: &Switch) -> bool {
    (switch.image.as_str(), switch.pause_version.as_str()) == (facts.image, facts.pause_version)
}

fn next_of_holder(facts: &Facts, index: usize, switch: &Switch) -> Action {
    let is_for_wanted = is_for_wanted(facts, switch);
    match (switch.step, &facts.state) {
        (Step::Reverting, _) => Action::Revert(index),
        (Step::Failed, _) if is_for_wanted => Action::Wait(format!(
            "the switch failed, and the node has none of the installer's settings: {}. {RETRY}",
            switch.message
        )),
        (Step::Failed, Err(_)) => Action::Refuse,
        (Step::Switching | Step::Switched, Err(refusal)) => Action::Fail(index, refusal.reason.clone()),
        (_, Ok(_)) if !is_for_wanted => Action::Claim(index),
        (Step::Switched, Ok(NodeState::NotLoaded | NodeState::Done)) if switch.is_proven() => {
            Action::Release(index)
        }
        (Step::Switched, Ok(NodeState::NotLoaded | NodeState::Done)) => {
            let timeout = SignedDuration::try_from(facts.proof_timeout).unwrap_or(SignedDuration::MAX);
            if facts.now.duration_since(switch.since) < timeout {
                return Action::WaitForProof;
            }
            let (version, seconds) = (facts.pause_version, timeout.as_secs());
            let message = format!("no pod of the node was observed with pause {version} within {seconds} s");
            Action::Fail(index, message)
        }
        (_, Ok(_)) => Action::Switch(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn switch(node: &str, step: Step, image: &str) -> Option<Switch> {
        let mut switch = Switch::new(node, "2", image, NOW);
        switch.advance(step, "m", NOW);
        Some(switch)
    }

    const FREE: Option<Switch> = None;

    fn facts<'a>(leases: &'a [Option<Switch>], state: Result<NodeState, &'a Refusal>) -> Facts<'a> {
        Facts {
            node: "me",
            image: "b",
            pause_version: "2",
            leases,
            concurrency: 1,
            state,
            now: NOW,
            proof_timeout: Duration::from_secs(180),
        }
    }

    fn next_with(leases: &[Option<Switch>], state: NodeState, now: Timestamp) -> Action {
        next(&Facts { now, ..facts(leases, Ok(state)) })
    }

    #[test]
    fn node_without_lease_waits_claims_or_is_ready() {
        use NodeState::{Done, NotLoaded, NotWritten};
        let waits = |action: &Action| matches!(action, Action::Wait(_));
        for (leases, state, expected) in [
            (vec![FREE], NotWritten, Some(Action::Claim(0))),
            (vec![FREE], NotLoaded, Some(Action::Claim(0))),
            (vec![FREE], Done, Some(Action::Ready)),
            (vec![switch("a", Step::Switching, "b")], NotWritten, None),
            (vec![switch("a", Step::Switched, "b")], Done, Some(Action::Ready)),
            (vec![switch("a", Step::Failed, "b")], NotWritten, None),
            (vec![switch("a", Step::Failed, "other")], NotWritten, Some(Action::Claim(0))),
            (vec![switch("a", Step::Reverting, "b")], NotWritten, None),
            // Of a concurrency of 2 before: a failure counts, a free one cannot be claimed.
            (vec![FREE, switch("a", Step::Failed, "b")], NotWritten, None),
            (vec![switch("a", Step::Switching, "b"), FREE], NotWritten, None),
        ] {
            let action = next_with(&leases, state, NOW);
            match expected {
                Some(expected) => assert_eq!(action, expected, "{leases:?}"),
                None => assert!(waits(&action), "{leases:?} {action:?}"),
            }
        }
    }

    #[test]
    fn holder_continues_its_step() {
        use NodeState::{Done, NotLoaded, NotWritten};
        for (step, image, state, expected) in [
            (Step::Switching, "b", NotWritten, Action::Switch(0)),
            (Step::Switching, "b", NotLoaded, Action::Switch(0)),
            (Step::Switching, "b", Done, Action::Switch(0)),
            (Step::Switching, "other", Done, Action::Claim(0)),
            (Step::Switched, "b", Done, Action::WaitForProof),
            (Step::Switched, "b", NotWritten, Action::Switch(0)),
            (Step::Switched, "other", NotWritten, Action::Claim(0)),
            (Step::Reverting, "b", NotWritten, Action::Revert(0)),
            (Step::Reverting, "other", Done, Action::Revert(0)),
            (Step::Failed, "other", NotWritten, Action::Claim(0)),
        ] {
            assert_eq!(next_with(&[switch("me", step, image)], state, NOW), expected, "{step:?} {image}");
        }
        let Action::Wait(reason) = next_with(&[switch("me", Step::Failed, "b")], NotWritten, NOW) else {
            panic!("a failure is final");
        };
        assert!(reason.contains("none of the installer's settings"), "{reason}");
    }

    #[test]
    fn failure_stops_the_nodes_that_could_be_switched_at_the_same_time() {
        for step in [Step::Reverting, Step::Failed] {
            let leases = [switch("a", step, "b"), FREE];
            let facts = Facts { concurrency: 2, ..facts(&leases, Ok(NodeState::NotWritten)) };
            assert!(matches!(next(&facts), Action::Wait(_)), "{step:?}");
        }
    }

    #[test]
    fn proof_releases_the_lease_also_after_the_timeout() {
        let late = Timestamp::from_second(180).unwrap();
        let switched = switch("me", Step::Switched, "b");
        let proven = switched.clone().map(|switch| Switch { proven: Some(NOW), ..switch });
        assert_eq!(next_with(&[proven], NodeState::Done, late), Action::Release(0));
        let Action::Fail(0, reason) = next_with(&[switched], NodeState::Done, late) else {
            panic!("the proof is missing");
        };
        assert_eq!(reason, "no pod of the node was observed with pause 2 within 180 s");
    }

    #[test]
    fn refusal_reverts_a_switch_that_has_begun() {
        let refusal = Refusal { reason: "r".to_owned(), advice: "a".to_owned(), platform: None };
        for (lease, expected) in [
            (FREE, Action::Refuse),
            (switch("me", Step::Switching, "b"), Action::Fail(0, "r".to_owned())),
            (switch("me", Step::Switched, "b"), Action::Fail(0, "r".to_owned())),
            (switch("me", Step::Reverting, "b"), Action::Revert(0)),
            (switch("me", Step::Failed, "a"), Action::Refuse),
        ] {
            assert_eq!(next(&facts(&[lease], Err(&refusal))), expected);
        }
    }
}
