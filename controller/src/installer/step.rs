//! What the installer does next. Pure: the state of the lock and of the node in, one action out. Each action leads to a state from
//! which this function goes on, so that the process may be killed at any moment.

use jiff::Timestamp;

use super::lock::{Record, Step};
use super::preflight::Refusal;

#[derive(Debug, Clone)]
pub(super) struct Facts<'a> {
    pub(super) node: &'a str,
    pub(super) image: &'a str,
    pub(super) pause_version: &'a str,
    pub(super) leases: &'a [Record],
    /// How many of the Leases may be claimed.
    pub(super) concurrency: usize,
    pub(super) state: Result<NodeState, &'a Refusal>,
    pub(super) now: Timestamp,
    pub(super) proof_timeout_seconds: u32,
}

/// How far the node is, whatever the lock shows.
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
    /// Waits for a reason that a person reads.
    Wait(String),
    Ready,
}

pub(super) fn next(facts: &Facts) -> Action {
    let is_mine = |record: &Record| record.holder.as_deref() == Some(facts.node);
    if let Some((index, record)) = facts.leases.iter().enumerate().find(|(_, record)| is_mine(record)) {
        return next_of_holder(facts, index, record);
    }
    match facts.state {
        Err(_) => return Action::Refuse,
        Ok(NodeState::Done) => return Action::Ready,
        Ok(NodeState::NotWritten | NodeState::NotLoaded) => {}
    }
    if let Some(failed) = facts.leases.iter().find(|record| is_failed(facts, record)) {
        let node = failed.holder.as_deref().unwrap_or("another node");
        return Action::Wait(format!(
            "the switch of {node} failed, so the roll-out stops and this node is unchanged: {}. {RETRY}",
            failed.message
        ));
    }
    let is_free = |record: &Record| record.holder.is_none() || record.step == Some(Step::Failed);
    match facts.leases.iter().take(facts.concurrency).position(is_free) {
        Some(index) => Action::Claim(index),
        None => {
            let holders: Vec<_> = facts.leases.iter().filter_map(|record| record.holder.as_deref()).collect();
            Action::Wait(format!("waiting for the switch of {}", holders.join(", ")))
        }
    }
}

const RETRY: &str = "Set another image, or delete the Lease of the failed node to try again";

fn is_failed(facts: &Facts, record: &Record) -> bool {
    record.step == Some(Step::Failed) && is_for_wanted(facts, record)
}

fn is_for_wanted(facts: &Facts, record: &Record) -> bool {
    (record.image.as_str(), record.pause_version.as_str()) == (facts.image, facts.pause_version)
}

fn next_of_holder(facts: &Facts, index: usize, record: &Record) -> Action {
    let step = match record.step {
        Some(Step::Reverting) => return Action::Revert(index),
        Some(Step::Failed) if is_for_wanted(facts, record) => {
            return Action::Wait(format!(
                "the switch failed, and the node has its previous pause image again: {}. {RETRY}",
                record.message
            ));
        }
        Some(step @ (Step::Switching | Step::Switched)) => Some(step),
        Some(Step::Failed) | None => None,
    };
    match (step, &facts.state) {
        (Some(_), Err(refusal)) => Action::Fail(index, refusal.reason.clone()),
        (None, Err(_)) => Action::Refuse,
        (None, Ok(_)) => Action::Claim(index),
        (Some(_), Ok(_)) if !is_for_wanted(facts, record) => Action::Claim(index),
        (Some(Step::Switched), Ok(state)) if *state != NodeState::NotWritten => {
            let age = record.since.map(|since| facts.now.duration_since(since).as_secs());
            if record.is_proven {
                Action::Release(index)
            } else if age.is_some_and(|age| age < i64::from(facts.proof_timeout_seconds)) {
                Action::WaitForProof
            } else {
                let Facts { pause_version, proof_timeout_seconds: seconds, .. } = facts;
                Action::Fail(
                    index,
                    format!("no pod of the node was observed with pause {pause_version} within {seconds} s"),
                )
            }
        }
        (Some(_), Ok(_)) => Action::Switch(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn record(holder: &str, step: Step, image: &str) -> Record {
        Record {
            holder: Some(holder.to_owned()),
            step: Some(step),
            since: Some(NOW),
            image: image.to_owned(),
            pause_version: "2".to_owned(),
            message: "m".to_owned(),
            ..Record::default()
        }
    }

    fn free() -> Record {
        Record::default()
    }

    fn next_with(leases: &[Record], state: NodeState, now: Timestamp) -> Action {
        let concurrency = 1;
        next(&Facts {
            node: "me",
            image: "b",
            pause_version: "2",
            leases,
            concurrency,
            state: Ok(state),
            now,
            proof_timeout_seconds: 180,
        })
    }

    #[test]
    fn node_without_lease_waits_claims_or_is_ready() {
        use NodeState::{Done, NotLoaded, NotWritten};
        let waits = |action: &Action| matches!(action, Action::Wait(_));
        for (leases, state, expected) in [
            (vec![free()], NotWritten, Some(Action::Claim(0))),
            (vec![free()], NotLoaded, Some(Action::Claim(0))),
            (vec![free()], Done, Some(Action::Ready)),
            (vec![record("a", Step::Switching, "b")], NotWritten, None),
            (vec![record("a", Step::Switched, "b")], Done, Some(Action::Ready)),
            (vec![record("a", Step::Failed, "b")], NotWritten, None),
            (vec![record("a", Step::Failed, "other")], NotWritten, Some(Action::Claim(0))),
            (vec![record("a", Step::Reverting, "b")], NotWritten, None),
            // Of a concurrency of 2 before: a failure counts, a free one cannot be claimed.
            (vec![free(), record("a", Step::Failed, "b")], NotWritten, None),
            (vec![record("a", Step::Switching, "b"), free()], NotWritten, None),
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
            assert_eq!(next_with(&[record("me", step, image)], state, NOW), expected, "{step:?} {image}");
        }
        let Action::Wait(reason) = next_with(&[record("me", Step::Failed, "b")], NotWritten, NOW) else {
            panic!("a failure is final");
        };
        assert!(reason.contains("previous pause image"), "{reason}");
    }

    #[test]
    fn proof_releases_the_lease_also_after_the_timeout() {
        let late = Timestamp::from_second(180).unwrap();
        let switched = record("me", Step::Switched, "b");
        let proven = Record { is_proven: true, ..switched.clone() };
        assert_eq!(next_with(&[proven], NodeState::Done, late), Action::Release(0));
        let Action::Fail(0, reason) = next_with(&[switched], NodeState::Done, late) else {
            panic!("the proof is missing");
        };
        assert_eq!(reason, "no pod of the node was observed with pause 2 within 180 s");
    }

    #[test]
    fn refusal_reverts_a_switch_that_has_begun() {
        let refusal = Refusal { reason: "r".to_owned(), platform: None };
        for (record, expected) in [
            (free(), Action::Refuse),
            (record("me", Step::Switching, "b"), Action::Fail(0, "r".to_owned())),
            (record("me", Step::Switched, "b"), Action::Fail(0, "r".to_owned())),
            (record("me", Step::Reverting, "b"), Action::Revert(0)),
            (record("me", Step::Failed, "a"), Action::Refuse),
        ] {
            let facts = Facts {
                node: "me",
                image: "b",
                pause_version: "2",
                leases: &[record],
                concurrency: 1,
                state: Err(&refusal),
                now: NOW,
                proof_timeout_seconds: 180,
            };
            assert_eq!(next(&facts), expected);
        }
    }
}
