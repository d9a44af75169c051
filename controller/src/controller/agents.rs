//! Which nodes a ready agent observes: from the nodes and the agents' pods. The DaemonSet decides which nodes get an agent.
//! Durations use a monotonic clock, which is an argument.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::core::conditions::{AgentState, UnavailableReason};
use crate::k8s::node::LeanNode;
use crate::k8s::pod::LeanPod;

/// How long a node must be without a ready agent before that is reported. An agent that is updated is away for a shorter time.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long a deleted node is remembered. Kubernetes deletes its pods in that time; later their conditions stay as they are.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Default)]
pub struct Agents {
    nodes: HashMap<String, NodeState>,
    /// Why agents cannot be created.
    pub creation_error: Option<String>,
}

#[derive(Debug)]
struct NodeState {
    has_agent: bool,
    failing: Option<Failing>,
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    /// When it lost its agent, or, once that was reported, when the reason changed.
    since: Instant,
    reason: UnavailableReason,
    /// The reason at the end of the last [`GRACE`].
    reported: Option<UnavailableReason>,
}

impl Failing {
    /// The first reason counts after [`GRACE`]; another one has to last as long: a node that comes back is ready before its agent.
    fn next(before: Option<Self>, reason: UnavailableReason, now: Instant) -> Self {
        let mut failing = before.unwrap_or(Self { since: now, reason, reported: None });
        if failing.reason != reason && failing.reported.is_some() {
            failing.since = now;
        }
        failing.reason = reason;
        if now.duration_since(failing.since) >= GRACE {
            failing.reported = Some(reason);
        }
        failing
    }
}

impl NodeState {
    fn agent(&self) -> AgentState {
        match self.failing {
            None => AgentState::Ready,
            Some(Failing { reason, reported, .. }) if reported == Some(reason) => {
                AgentState::Unavailable(reason)
            }
            Some(_) => AgentState::Pending,
        }
    }
}

impl Agents {
    pub fn state(&self, node: &str) -> AgentState {
        self.nodes.get(node).map_or(AgentState::Pending, NodeState::agent)
    }

    /// The nodes that have an agent pod, with its state.
    pub fn present(&self) -> impl Iterator<Item = (&str, AgentState)> {
        let present = self.nodes.iter().filter(|(_, state)| state.has_agent);
        present.map(|(name, state)| (name.as_str(), state.agent()))
    }

    /// How many nodes lack an agent pod that the DaemonSet wants. Without one, every node counts: it may be deleted by accident.
    pub fn missing(&self, desired: Option<usize>) -> usize {
        let missing = AgentState::Unavailable(UnavailableReason::AgentMissing);
        let without = self.nodes.values().filter(|state| state.agent() == missing).count();
        desired.map_or(without, |desired| without.min(desired.saturating_sub(self.present().count())))
    }

    /// Updates the states from complete lists; returns the nodes whose state has changed.
    pub fn update<'a>(
        &mut self,
        nodes: impl IntoIterator<Item = &'a LeanNode>,
        agents: impl IntoIterator<Item = &'a LeanPod>,
        now: Instant,
    ) -> HashSet<String> {
        let mut ready: HashMap<&str, bool> = HashMap::new();
        for agent in agents {
            *ready.entry(&agent.node).or_default() |= agent.is_ready;
        }
        let nodes: HashMap<&str, &LeanNode> = nodes.into_iter().map(|node| (node.name(), node)).collect();
        let known: HashSet<String> =
            self.nodes.keys().cloned().chain(nodes.keys().map(|&name| name.to_owned())).collect();
        let mut changed = HashSet::new();
        for name in known {
            let (node, agent) = (nodes.get(&*name), ready.get(&*name));
            let reason = match agent {
                // It may have been deleted.
                _ if node.is_none_or(|node| !node.is_ready) => Some(UnavailableReason::NodeNotReady),
                Some(true) => None,
                Some(false) => Some(UnavailableReason::AgentNotReady),
                None => Some(UnavailableReason::AgentMissing),
            };
            let before = self.state(&name);
            let failing_before = self.nodes.get(&name).and_then(|state| state.failing);
            let failing = reason.map(|reason| Failing::next(failing_before, reason, now));
            let state = NodeState { has_agent: node.is_some() && agent.is_some(), failing };
            if state.agent() != before {
                changed.insert(name.clone());
            }
            if node.is_none() && failing.is_some_and(|it| now.duration_since(it.since) >= FORGET_AFTER) {
                self.nodes.remove(&name);
            } else {
                self.nodes.insert(name, state);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use UnavailableReason::{AgentMissing, AgentNotReady, NodeNotReady};
    use serde_json::json;

    fn node(name: &str, is_ready: bool) -> LeanNode {
        let status = if is_ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    fn agent(is_ready: bool) -> LeanPod {
        let status = if is_ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": "a"}, "spec": {"nodeName": "n"},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    struct World {
        agents: Agents,
        start: Instant,
    }

    impl World {
        /// A ready node `n` with a ready agent.
        fn new() -> Self {
            let mut world = Self { agents: Agents::default(), start: Instant::now() };
            world.at(0, &[node("n", true)], &[agent(true)]);
            world
        }

        /// The state of `n`, and whether it changed.
        fn at(&mut self, second: u64, nodes: &[LeanNode], agents: &[LeanPod]) -> (AgentState, bool) {
            let now = self.start + Duration::from_secs(second);
            let changed = self.agents.update(nodes, agents, now);
            (self.agents.state("n"), changed.contains("n"))
        }
    }

    const UNAVAILABLE: fn(UnavailableReason) -> AgentState = AgentState::Unavailable;

    #[test]
    fn agent_that_is_replaced_within_the_grace_is_not_missed() {
        let mut world = World::new();
        let node = [node("n", true)];
        assert_eq!(world.at(10, &node, &[]), (AgentState::Pending, true));
        assert_eq!(world.at(40, &node, &[agent(false)]), (AgentState::Pending, false));
        assert_eq!(world.at(69, &node, &[agent(true)]), (AgentState::Ready, true));
    }

    #[test]
    fn agent_that_never_becomes_ready_is_unavailable_after_the_grace() {
        let mut world = World::new();
        let node = [node("n", true)];
        world.at(0, &node, &[]);
        world.at(50, &node, &[agent(false)]);
        assert_eq!(world.at(60, &node, &[agent(false)]), (UNAVAILABLE(AgentNotReady), true));
        assert_eq!(world.at(90, &node, &[agent(false)]), (UNAVAILABLE(AgentNotReady), false));
        assert_eq!(world.at(91, &node, &[agent(true)]), (AgentState::Ready, true));
    }

    #[test]
    fn another_reason_has_to_last_as_long() {
        let mut world = World::new();
        world.at(0, &[node("n", false)], &[agent(false)]);
        assert_eq!(world.at(60, &[node("n", false)], &[agent(false)]).0, UNAVAILABLE(NodeNotReady));
        assert_eq!(world.at(100, &[node("n", true)], &[agent(false)]).0, AgentState::Pending);
        assert_eq!(world.at(160, &[node("n", true)], &[agent(false)]).0, UNAVAILABLE(AgentNotReady));
    }

    #[test]
    fn new_agent_that_is_not_ready_is_not_a_missing_one() {
        let mut world = World::new();
        let node = [node("n", true)];
        world.at(0, &node, &[]);
        assert_eq!(world.at(60, &node, &[]).0, UNAVAILABLE(AgentMissing));
        assert_eq!(world.at(70, &node, &[agent(false)]), (AgentState::Pending, true));
        assert_eq!(world.at(80, &node, &[]), (UNAVAILABLE(AgentMissing), true));
    }

    #[test]
    fn one_of_two_agents_is_enough() {
        let mut world = World::new();
        let agents = [agent(true), agent(false)];
        assert_eq!(world.at(60, &[node("n", true)], &agents).0, AgentState::Ready);
    }

    #[test]
    fn agents_are_missing_where_the_daemon_set_wants_more_than_there_are() {
        let mut world = World::new();
        let nodes = [node("n", true), node("m", true), node("virtual", true)];
        world.at(0, &nodes, &[agent(true)]);
        assert_eq!(world.agents.missing(Some(3)), 0, "not before the grace is over");
        world.at(60, &nodes, &[agent(true)]);
        let missing = [Some(0), Some(1), Some(2), Some(3), None].map(|desired| world.agents.missing(desired));
        assert_eq!(missing, [0, 0, 1, 2, 2]);
        assert_eq!(
            world.agents.state("virtual"),
            UNAVAILABLE(AgentMissing),
            "its pods are Unknown all the same"
        );
        assert_eq!(world.agents.present().collect::<Vec<_>>(), [("n", AgentState::Ready)]);
    }

    #[test]
    fn deleted_node_is_not_ready_and_then_forgotten() {
        let mut world = World::new();
        world.at(0, &[], &[]);
        assert_eq!(world.agents.present().count(), 0);
        assert_eq!(world.at(60, &[], &[]).0, UNAVAILABLE(NodeNotReady));
        assert_eq!(world.at(899, &[], &[]).0, UNAVAILABLE(NodeNotReady));
        assert_eq!(world.at(900, &[], &[]).0, AgentState::Pending, "conditions stay as they are");
        assert!(world.agents.nodes.is_empty());
    }
}
