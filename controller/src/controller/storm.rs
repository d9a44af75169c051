//! How many restarts of a node's sandboxes are told of one by one, and when the others are summed up. A node that is rebooted
//! replaces the sandboxes of all its pods: that is one happening, and not a hundred. It makes no request and reads no clock.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::pods::PodKey;
use crate::budget::Budget;
use crate::resource::HISTORY_MAX;
use crate::waited::waited;

/// Restarts of a node that are told of one by one after a quiet time.
const BURST: u32 = 20;
/// One more is told of so each.
const ONE_EVERY: SignedDuration = SignedDuration::from_secs(1);
/// A storm is over when no restart was added to it for this long.
const CALM: SignedDuration = SignedDuration::from_secs(5);
/// It's told of by then at the latest, over or not.
const LATEST: SignedDuration = SignedDuration::from_secs(60);
/// How long it is remembered which restarts were told of. Their pods write it down in a moment, unless that fails; and while it
/// does, an Event that has expired must not be made anew.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// Restarts of one pod that are to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restarted {
    /// UID of the pod.
    pub uid: String,
    /// Name of the pod.
    pub pod: PodKey,
    /// The number of the last of them.
    pub restarts: i64,
    /// How many they are.
    pub untold: i64,
    /// Why, as far as it's known, and how often each.
    pub reasons: BTreeMap<&'static str, i64>,
}

/// Restarts that are told of together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Name of the node.
    pub node: String,
    /// By the name of the pod.
    pub pods: BTreeMap<PodKey, Restarted>,
}

impl Summary {
    /// What tells it from other summaries of the node: all that is in it. So two replicas that are to tell of the same make one
    /// Event, and nothing that no Event tells of can be taken for told.
    #[must_use]
    pub fn key(&self) -> String {
        self.pods.values().map(|pod| format!("{} {}\n", pod.uid, pod.restarts)).collect()
    }

    /// Restarts in it.
    #[must_use]
    pub fn restarts(&self) -> i64 {
        self.pods.values().map(|pod| pod.untold).sum()
    }

    /// Reasons and how often each; what is left is not known any more.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, i64> {
        let mut sums = BTreeMap::new();
        for (reason, count) in self.pods.values().flat_map(|pod| &pod.reasons) {
            *sums.entry(*reason).or_default() += count;
        }
        sums
    }
}

/// What a pod may do about its restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Tell of them.
    Granted,
    /// Wait: they are summed up with others'.
    Waits,
}

/// All nodes' budgets and storms.
#[derive(Debug, Default)]
pub struct Storms {
    nodes: HashMap<String, OfNode>,
    /// Up to which restart a pod's were told of, by UID.
    told: HashMap<String, (i64, Timestamp)>,
    /// When a pod got leave that it has not used yet, by UID.
    granted: HashMap<String, Timestamp>,
}

#[derive(Debug)]
struct OfNode {
    budget: Budget,
    open: Option<Storm>,
    sending: Option<Summary>,
}

#[derive(Debug)]
struct Storm {
    since: Timestamp,
    added_at: Timestamp,
    pods: BTreeMap<PodKey, Restarted>,
}

impl OfNode {
    fn new(now: Timestamp) -> Self {
        Self { budget: Budget::new(BURST, ONE_EVERY, now), open: None, sending: None }
    }

    fn close(&mut self, node: &str, now: Timestamp) {
        let over = |storm: &Storm| waited(storm.added_at, now) >= CALM || waited(storm.since, now) >= LATEST;
        if self.sending.is_some() || !self.open.as_ref().is_some_and(over) {
            return;
        }
        let Some(Storm { pods, .. }) = self.open.take() else { return };
        self.sending = Some(Summary { node: node.to_owned(), pods });
    }

    fn is_idle(&self, now: Timestamp) -> bool {
        self.budget.is_full(now) && self.open.is_none() && self.sending.is_none()
    }
}

impl Storms {
    /// Asks leave to tell of a pod's restarts one by one. While a storm lasts, they join it.
    pub fn ask(&mut self, node: &str, restarted: Restarted, now: Timestamp) -> Leave {
        let of_node = self.nodes.entry(node.to_owned()).or_insert_with(|| OfNode::new(now));
        if of_node.sending.as_ref().is_some_and(|sending| sending.pods.contains_key(&restarted.pod)) {
            return Leave::Waits;
        }
        // Who may try again has perhaps been heard: in a storm it would be told of twice.
        if self.granted.contains_key(&restarted.uid) {
            return Leave::Granted;
        }
        if of_node.open.is_none() && of_node.budget.take_all(cost(restarted.untold), now) {
            self.granted.insert(restarted.uid, now);
            return Leave::Granted;
        }
        let storm =
            of_node.open.get_or_insert_with(|| Storm { since: now, added_at: now, pods: BTreeMap::new() });
        if storm.pods.get(&restarted.pod) != Some(&restarted) {
            storm.added_at = now;
            storm.pods.insert(restarted.pod.clone(), restarted);
        }
        Leave::Waits
    }

    /// The pod's restarts up to this were told of one by one. Until then its leave holds.
    pub fn told_singly(&mut self, uid: &str, restarts: i64, now: Timestamp) {
        self.granted.remove(uid);
        self.told.insert(uid.to_owned(), (restarts, now));
    }

    /// A leader before this one told of the pod's restarts up to this.
    pub fn told_before(&mut self, uid: &str, restarts: i64, now: Timestamp) {
        let (told, at) = self.told.entry(uid.to_owned()).or_insert((restarts, now));
        (*told, *at) = ((*told).max(restarts), now);
    }

    /// Up to which restart the pod's were told of, be it written down yet or not.
    #[must_use]
    pub fn told(&self, uid: &str) -> Option<i64> {
        self.told.get(uid).map(|(restarts, _)| *restarts)
    }

    /// Summaries that are to be made. One that was begun stays the same until it's made, so that a second try makes no second
    /// Event.
    pub fn due(&mut self, now: Timestamp) -> Vec<Summary> {
        // A clock that is set back makes nobody forget: it would be told of twice.
        self.told.retain(|_, (_, at)| now.duration_since(*at) < REMEMBERED);
        // Of pods that went meanwhile.
        self.granted.retain(|_, at| now.duration_since(*at) < REMEMBERED);
        for (node, of_node) in &mut self.nodes {
            // To ask is to keep up with a clock that was set back.
            of_node.budget.take_all(0, now);
            of_node.close(node, now);
        }
        self.nodes.retain(|_, of_node| !of_node.is_idle(now));
        self.nodes.values().filter_map(|of_node| of_node.sending.clone()).collect()
    }

    /// The summary is made.
    pub fn made(&mut self, summary: &Summary, now: Timestamp) {
        if let Some(of_node) = self.nodes.get_mut(&summary.node) {
            of_node.sending = None;
        }
        for pod in summary.pods.values() {
            self.told.insert(pod.uid.clone(), (pod.restarts, now));
        }
    }
}

/// Events that are made of so many: a row knows no more than the last few.
fn cost(untold: i64) -> u32 {
    let most = u32::try_from(HISTORY_MAX).unwrap_or(u32::MAX);
    u32::try_from(untold).unwrap_or(most).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn restarted(pod: u32, restarts: i64) -> Restarted {
        Restarted {
            uid: format!("u-{pod}"),
            pod: PodKey::new("shop", &format!("pod-{pod:03}")),
            restarts,
            untold: 1,
            reasons: [("NodeRebooted", 1)].into(),
        }
    }

    /// So many pods of a node ask at once; how many of them are granted.
    fn ask(storms: &mut Storms, pods: std::ops::Range<u32>, now: i64) -> usize {
        pods.filter(|pod| storms.ask("n", restarted(*pod, 1), at(now)) == Leave::Granted).count()
    }

    #[test]
    fn a_storm_is_told_of_once_when_it_is_over() {
        let mut storms = Storms::default();
        assert_eq!(ask(&mut storms, 0..110, 0), 20);
        assert!(storms.due(at(4)).is_empty());
        let [summary] = &storms.due(at(5))[..] else { panic!("not one") };
        assert_eq!((summary.pods.len(), summary.restarts()), (90, 90));
        assert_eq!(summary.reasons(), [("NodeRebooted", 90)].into());
        assert_eq!(storms.told("u-50"), None, "it may still fail");
        storms.made(summary, at(6));
        assert_eq!((storms.told("u-50"), storms.told("u-3")), (Some(1), None));
        assert!(storms.due(at(7)).is_empty());
    }

    #[test]
    fn pods_that_look_again_do_not_make_a_storm_last() {
        let mut storms = Storms::default();
        ask(&mut storms, 0..30, 0);
        ask(&mut storms, 20..30, 3);
        assert_eq!(storms.due(at(5)).len(), 1);
        assert_eq!(ask(&mut storms, 20..30, 6), 0, "they wait for the summary");
        let [summary] = &storms.due(at(20))[..] else { panic!("not one") };
        storms.made(summary, at(20));
        assert!(storms.due(at(99)).is_empty());
    }

    #[test]
    fn a_storm_that_does_not_end_is_told_of_within_a_minute() {
        let mut storms = Storms::default();
        ask(&mut storms, 0..21, 0);
        for second in 1..60 {
            ask(
                &mut storms,
                20 + u32::try_from(second).unwrap()..21 + u32::try_from(second).unwrap(),
                second,
            );
            assert!(storms.due(at(second)).is_empty(), "{second}");
        }
        assert_eq!(storms.due(at(60))[0].pods.len(), 60);
    }

    #[test]
    fn what_happens_while_a_summary_is_made_is_in_the_next() {
        let mut storms = Storms::default();
        ask(&mut storms, 0..30, 0);
        let first = storms.due(at(5))[0].clone();
        while storms.nodes.get_mut("n").unwrap().budget.take(at(5)) {}
        ask(&mut storms, 40..41, 5);
        assert_eq!(storms.due(at(11)), std::slice::from_ref(&first), "a second try says the same");
        storms.made(&first, at(12));
        let [second] = &storms.due(at(12))[..] else { panic!("not one") };
        assert_eq!(second.pods.keys().collect::<Vec<_>>(), [&PodKey::new("shop", "pod-040")]);
        assert_ne!(second.key(), first.key(), "it is not the same Event");
    }

    #[test]
    fn a_replica_that_takes_over_makes_the_same_summary_of_the_same_restarts_and_another_of_others() {
        let key = |pods: std::ops::Range<u32>, restarts, now| {
            let mut storms = Storms::default();
            for pod in pods {
                storms.ask("n", restarted(pod, restarts), at(now));
            }
            storms.due(at(now + 5))[0].key()
        };
        let first = key(0..110, 1, 0);
        assert_eq!(first, key(0..110, 1, 3));
        assert_ne!(first, key(0..111, 1, 3), "the last would be told of by nothing");
        assert_ne!(first, key(0..110, 2, 240), "a second storm is another, though the leader is new");
    }

    #[test]
    fn nodes_have_budgets_of_their_own_that_fill_again() {
        let mut storms = Storms::default();
        assert_eq!(ask(&mut storms, 0..20, 0), 20);
        assert_eq!(storms.ask("other", restarted(99, 1), at(0)), Leave::Granted);
        assert_eq!(ask(&mut storms, 20..24, 3), 3);
    }

    #[test]
    fn who_could_not_be_told_of_may_be_told_of_again_though_there_is_a_storm_now() {
        let mut storms = Storms::default();
        assert_eq!(ask(&mut storms, 0..30, 0), 20);
        assert_eq!(ask(&mut storms, 0..3, 1), 3);
        storms.told_singly("u-1", 1, at(1));
        let again = restarted(1, 2);
        assert_eq!(storms.ask("n", again, at(1)), Leave::Waits, "another restart");
    }

    #[test]
    fn what_was_told_singly_is_remembered_for_a_while() {
        let mut storms = Storms::default();
        storms.told_singly("u-1", 3, at(0));
        storms.due(at(-9));
        storms.due(at(86_399));
        assert_eq!((storms.told("u-1"), storms.told("u-2")), (Some(3), None));
        storms.due(at(86_400));
        assert_eq!(storms.told("u-1"), None);
    }

    #[test]
    fn restarts_cost_what_is_told_of_them() {
        let mut storms = Storms::default();
        let many = Restarted { restarts: 99, untold: 99, ..restarted(0, 99) };
        assert_eq!(storms.ask("n", many, at(0)), Leave::Granted);
        assert_eq!(ask(&mut storms, 1..21, 0), 15, "five Events were made, at most");
    }

    #[test]
    fn a_pod_that_restarts_again_in_the_storm_is_told_of_up_to_there() {
        let mut storms = Storms::default();
        ask(&mut storms, 0..30, 0);
        let again = Restarted { restarts: 2, untold: 2, ..restarted(25, 2) };
        storms.ask("n", again, at(1));
        let summary = storms.due(at(6))[0].clone();
        assert_eq!((summary.pods.len(), summary.restarts()), (10, 11));
        storms.made(&summary, at(6));
        assert_eq!(storms.told("u-25"), Some(2));
    }

    #[test]
    fn a_budget_fills_again_though_the_clock_was_set_back() {
        let mut storms = Storms::default();
        assert_eq!(ask(&mut storms, 0..20, 3600), 20);
        storms.due(at(0));
        assert_eq!(ask(&mut storms, 30..31, 1), 1);
        storms.due(at(60));
        assert!(storms.nodes.is_empty());
    }

    #[test]
    fn quiet_nodes_and_old_summaries_are_forgotten() {
        let mut storms = Storms::default();
        ask(&mut storms, 0..30, 0);
        let summary = storms.due(at(5))[0].clone();
        storms.made(&summary, at(5));
        storms.due(at(90_000));
        assert!(storms.nodes.is_empty() && storms.told.is_empty() && storms.granted.is_empty());
    }
}
