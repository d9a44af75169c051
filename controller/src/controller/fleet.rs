//! Who can see which node's sandboxes: whether an agent runs on the node and is ready, and whether the node itself is. It
//! knows neither watch nor clock; both are handed in.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use crate::waited::waited;

/// How long nobody must see a node before that counts. An agent that is updated is away for a shorter time, and nothing is
/// written for it.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// How long a node that is gone is remembered. Kubernetes deletes its pods in that time; what was said of them stays.
const FORGET_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// Why nobody sees the sandboxes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blindness {
    /// No agent's pod is on the node, say for its taints.
    AgentMissing,
    /// There is one, and it's not ready.
    AgentNotReady,
    /// The node is not ready, or gone.
    NodeNotReady,
}

impl Blindness {
    /// Every one there is.
    pub const ALL: [Self; 3] = [Self::AgentMissing, Self::AgentNotReady, Self::NodeNotReady];

    /// The word for programs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::AgentMissing => "AgentMissing",
            Self::AgentNotReady => "AgentNotReady",
            Self::NodeNotReady => "NodeNotReady",
        }
    }

    /// The sentence for people.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::AgentMissing => "no agent runs on the pod's node; its taints may keep agents away",
            Self::AgentNotReady => "the agent of the pod's node is not ready",
            Self::NodeNotReady => "the pod's node is not ready, or gone",
        }
    }

    /// The one with this reason.
    #[must_use]
    pub fn of_reason(reason: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|blindness| blindness.reason() == reason)
    }
}

/// Whether somebody sees the sandboxes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// A ready agent on a ready node.
    Seen,
    /// Nobody, but not for long enough, or not any more for the reason that counted: what was said before still holds.
    Unsettled,
    /// Nobody.
    Blind(Blindness),
}

/// All nodes, and the agents on them.
#[derive(Debug, Default)]
pub struct Fleet {
    /// By node and by UID of the agent's pod: whether it's ready.
    agents: HashMap<String, HashMap<String, bool>>,
    nodes: HashMap<String, Node>,
    /// Only of nodes that nobody sees.
    unseen: HashMap<String, Unseen>,
    /// Nodes that must be looked at, since something about them changed.
    changed: HashSet<String>,
    agents_listed: bool,
    nodes_listed: bool,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its UID.
    pub uid: String,
    /// Whether its kubelet says so.
    pub ready: bool,
    /// Whether it is one of those that are to have an agent: a node of Windows, or of no machine, is not.
    pub wants_agent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Unseen {
    since: Timestamp,
    why: Blindness,
    why_since: Timestamp,
    /// What counts.
    settled: Option<Blindness>,
}

impl Fleet {
    /// An agent's pod is there.
    pub fn agent_applied(&mut self, node: &str, uid: &str, ready: bool) {
        if self.agents.entry(node.to_owned()).or_default().insert(uid.to_owned(), ready) != Some(ready) {
            self.changed.insert(node.to_owned());
        }
    }

    /// An agent's pod is gone.
    pub fn agent_deleted(&mut self, node: &str, uid: &str) {
        if let Some(agents) = self.agents.get_mut(node)
            && agents.remove(uid).is_some()
        {
            self.changed.insert(node.to_owned());
        }
    }

    /// All agents' pods were listed; these are their UIDs.
    pub fn agents_listed(&mut self, uids: &HashSet<String>) {
        self.agents_listed = true;
        for (node, agents) in &mut self.agents {
            let before = agents.len();
            agents.retain(|uid, _| uids.contains(uid));
            if agents.len() != before {
                self.changed.insert(node.clone());
            }
        }
    }

    /// A node is there.
    pub fn node_applied(&mut self, name: &str, node: Node) {
        if self.nodes.insert(name.to_owned(), node.clone()) != Some(node) {
            self.changed.insert(name.to_owned());
        }
    }

    /// A node is gone.
    pub fn node_deleted(&mut self, name: &str) {
        if self.nodes.remove(name).is_some() {
            self.changed.insert(name.to_owned());
        }
    }

    /// All nodes were listed; these are their names.
    pub fn nodes_listed(&mut self, names: &HashSet<String>) {
        self.nodes_listed = true;
        let gone: Vec<_> = self.nodes.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.node_deleted(&name);
        }
    }

    /// Whether nodes and agents are known, all of them. Nothing may be judged before.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.agents_listed && self.nodes_listed
    }

    /// Whether somebody sees the sandboxes of this node.
    #[must_use]
    pub fn sight(&self, node: &str) -> Sight {
        match self.unseen.get(node) {
            Some(Unseen { settled: Some(settled), why, .. }) if settled == why => Sight::Blind(*why),
            Some(_) => Sight::Unsettled,
            None if self.nodes.contains_key(node) => Sight::Seen,
            None => Sight::Unsettled,
        }
    }

    /// All nodes that are to have an agent, or have one.
    pub fn sights(&self) -> impl Iterator<Item = (&str, Sight)> {
        let has_agent = |name: &String| self.agents.get(name).is_some_and(|agents| !agents.is_empty());
        let counts = move |(name, node): &(&String, &Node)| node.wants_agent || has_agent(name);
        self.nodes.iter().filter(counts).map(|(name, _)| (name.as_str(), self.sight(name)))
    }

    /// UID of a node.
    #[must_use]
    pub fn node_uid(&self, name: &str) -> Option<&str> {
        self.nodes.get(name).map(|node| node.uid.as_str())
    }

    /// Takes in what changed and what time has made count; the nodes whose sight is another one now.
    pub fn settle(&mut self, now: Timestamp) -> Vec<String> {
        if !self.is_known() {
            return Vec::new();
        }
        let changed = std::mem::take(&mut self.changed);
        let nodes: HashSet<_> = changed.into_iter().chain(self.unseen.keys().cloned()).collect();
        nodes
            .into_iter()
            .filter(|node| {
                let before = self.sight(node);
                self.settle_node(node, now);
                before != self.sight(node)
            })
            .collect()
    }

    fn settle_node(&mut self, node: &str, now: Timestamp) {
        let Some(why) = self.why_unseen(node) else {
            self.unseen.remove(node);
            return;
        };
        let fresh = Unseen { since: now, why, why_since: now, settled: None };
        let unseen = self.unseen.entry(node.to_owned()).or_insert(fresh);
        if unseen.why != why {
            (unseen.why, unseen.why_since) = (why, now);
        }
        // The first reason counts once nobody saw the node for long enough, whatever the reasons were. Another one has to
        // last as long: a node that comes back is ready before its agent is.
        let since = if unseen.settled.is_none() { unseen.since } else { unseen.why_since };
        if waited(since, now) >= GRACE {
            unseen.settled = Some(why);
        }
        if !self.nodes.contains_key(node) && waited(unseen.since, now) >= FORGET_AFTER {
            self.unseen.remove(node);
            self.agents.remove(node);
        }
    }

    fn why_unseen(&self, node: &str) -> Option<Blindness> {
        if !self.nodes.get(node).is_some_and(|node| node.ready) {
            return Some(Blindness::NodeNotReady);
        }
        match self.agents.get(node) {
            Some(agents) if agents.values().any(|ready| *ready) => None,
            Some(agents) if !agents.is_empty() => Some(Blindness::AgentNotReady),
            _ => Some(Blindness::AgentMissing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn set(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn node(ready: bool) -> Node {
        Node { uid: "n-1".to_owned(), ready, wants_agent: true }
    }

    /// A ready node with a ready agent, both known and settled.
    fn fleet() -> Fleet {
        let mut fleet = Fleet::default();
        fleet.node_applied("n", node(true));
        fleet.agent_applied("n", "a", true);
        fleet.nodes_listed(&set(&["n"]));
        fleet.agents_listed(&set(&["a"]));
        fleet.settle(at(0));
        fleet
    }

    #[test]
    fn nothing_is_known_before_both_lists_are_complete() {
        let mut fleet = Fleet::default();
        fleet.node_applied("n", node(true));
        fleet.nodes_listed(&set(&["n"]));
        assert!(!fleet.is_known());
        assert!(fleet.settle(at(0)).is_empty() && fleet.settle(at(999)).is_empty());
        fleet.agents_listed(&set(&[]));
        assert!(fleet.is_known());
        fleet.settle(at(1000));
        assert_eq!(fleet.sight("n"), Sight::Unsettled, "time runs from when all was known");
        fleet.settle(at(1060));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentMissing));
    }

    #[test]
    fn an_agent_that_is_replaced_within_the_grace_changes_nothing_that_counts() {
        let mut fleet = fleet();
        fleet.agent_deleted("n", "a");
        fleet.settle(at(10));
        assert_eq!(fleet.sight("n"), Sight::Unsettled);
        fleet.agent_applied("n", "b", false);
        fleet.settle(at(40));
        fleet.agent_applied("n", "b", true);
        fleet.settle(at(69));
        assert_eq!(fleet.sight("n"), Sight::Seen);
    }

    #[test]
    fn an_agent_that_is_recreated_again_and_again_and_never_ready_counts_as_such() {
        let mut fleet = fleet();
        fleet.agent_deleted("n", "a");
        fleet.settle(at(0));
        fleet.agent_applied("n", "b", false);
        fleet.settle(at(50));
        assert_eq!(fleet.settle(at(60)), ["n"]);
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentNotReady));
    }

    #[test]
    fn a_change_is_told_once_and_sight_is_back_at_once() {
        let mut fleet = fleet();
        fleet.agent_applied("n", "a", false);
        assert_eq!(fleet.settle(at(0)), ["n"]);
        assert!(fleet.settle(at(30)).is_empty());
        assert_eq!(fleet.settle(at(60)), ["n"]);
        assert!(fleet.settle(at(90)).is_empty());
        fleet.agent_applied("n", "a", true);
        assert_eq!(fleet.settle(at(91)), ["n"]);
        assert_eq!(fleet.sight("n"), Sight::Seen);
    }

    #[test]
    fn a_node_that_comes_back_before_its_agent_keeps_its_reason_for_a_while() {
        let mut fleet = fleet();
        fleet.node_applied("n", node(false));
        fleet.agent_applied("n", "a", false);
        fleet.settle(at(0));
        fleet.settle(at(60));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::NodeNotReady));
        fleet.node_applied("n", node(true));
        fleet.settle(at(100));
        assert_eq!(fleet.sight("n"), Sight::Unsettled, "what was said before holds");
        assert_eq!(fleet.settle(at(160)), ["n"]);
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentNotReady));
    }

    #[test]
    fn a_node_with_an_agent_that_is_not_ready_yet_is_not_one_without_an_agent() {
        let mut fleet = fleet();
        fleet.agent_deleted("n", "a");
        fleet.settle(at(0));
        fleet.settle(at(60));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentMissing));
        fleet.agent_applied("n", "b", false);
        assert_eq!(fleet.settle(at(70)), ["n"]);
        assert_eq!(fleet.sight("n"), Sight::Unsettled);
        fleet.agent_deleted("n", "b");
        assert_eq!(fleet.settle(at(80)), ["n"], "pods are looked at, whose restarts count again");
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentMissing));
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut fleet = fleet();
        fleet.agents_listed(&set(&[]));
        fleet.settle(at(0));
        fleet.settle(at(60));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::AgentMissing));
        fleet.nodes_listed(&set(&[]));
        fleet.settle(at(61));
        fleet.settle(at(121));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::NodeNotReady));
    }

    #[test]
    fn an_agent_is_missed_only_where_one_is_wanted() {
        let mut fleet = fleet();
        fleet.node_applied("virtual", Node { wants_agent: false, ..node(true) });
        fleet.settle(at(0));
        fleet.settle(at(60));
        assert_eq!(fleet.sights().collect::<Vec<_>>(), [("n", Sight::Seen)]);
        assert_eq!(
            fleet.sight("virtual"),
            Sight::Blind(Blindness::AgentMissing),
            "its pods are seen by nobody"
        );
        fleet.agent_applied("virtual", "b", false);
        fleet.settle(at(60));
        assert_eq!(fleet.sights().count(), 2, "somebody wants one there after all");
    }

    #[test]
    fn a_node_that_is_gone_for_good_is_forgotten() {
        let mut fleet = fleet();
        fleet.node_deleted("n");
        fleet.settle(at(0));
        assert_eq!(fleet.sights().count(), 0);
        fleet.settle(at(60));
        assert_eq!(fleet.sight("n"), Sight::Blind(Blindness::NodeNotReady));
        fleet.settle(at(900));
        assert!(fleet.unseen.is_empty() && fleet.agents.is_empty());
        assert_eq!(fleet.sight("n"), Sight::Unsettled, "what was said of its pods stays");
    }

    #[test]
    fn one_of_two_agents_is_enough() {
        let mut fleet = fleet();
        fleet.agent_applied("n", "old", false);
        fleet.settle(at(0));
        fleet.settle(at(60));
        assert_eq!(fleet.sight("n"), Sight::Seen);
    }
}
