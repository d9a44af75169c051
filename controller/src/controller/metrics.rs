//! What the controller shows to Prometheus: its own work, in totals, and the nodes that nobody sees. Series of single pods are
//! the agents'.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::events::Reason;
use super::fleet::{Blindness, Sight};
use super::pods::PodKey;
use super::waiting::Waiting;
use crate::api::ApiError;
use crate::exposition;
use crate::serve::Metrics;
use crate::workqueue_metrics::{Work, WorkQueue};

/// The controller's metrics.
#[derive(Debug)]
pub struct ControllerMetrics {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    events: Family<OfReason, Counter>,
    leader: Gauge,
    reconciles: Family<OfResult, Counter>,
    queue: WorkQueue,
    waiting: Mutex<Waiting>,
    nodes: Family<OfState, Gauge>,
    unseen: Family<OfNode, Gauge>,
    summed_up: Counter,
    objects: Gauge,
    objects_max: Gauge,
    not_understood: Counter,
}

/// What is asked of the API.
pub const REQUESTS: [&str; 6] = ["create", "delete", "count", "apply", "event", "lease"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    verb: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
    reason: &'static str,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (requests, events) =
            (Family::<OfRequest, Counter>::default(), Family::<OfReason, Counter>::default());
        let (leader, reconciles) = (Gauge::default(), Family::<OfResult, Counter>::default());
        let (summed_up, not_understood) = (Counter::default(), Counter::default());
        let (objects, objects_max) = (Gauge::default(), Gauge::default());
        let (nodes, unseen) = (Family::<OfState, Gauge>::default(), Family::<OfNode, Gauge>::default());
        let queue = WorkQueue::new("pods");
        for verb in REQUESTS {
            for result in ApiError::RESULTS {
                let _ = requests.get_or_create(&OfRequest { verb, result });
            }
        }
        for reason in Reason::ALL {
            let _ = events.get_or_create(&OfReason { reason: reason.as_str() });
        }
        for result in ["ok", "error"] {
            let _ = reconciles.get_or_create(&OfResult { result });
        }
        registry.register(
            "sandbox_health_api_requests",
            "Requests that change something, by outcome",
            requests.clone(),
        );
        registry.register("sandbox_health_events", "Events that were asked for, by reason", events.clone());
        registry.register(
            "sandbox_health_leader",
            "1 for the replica that holds the lease, else 0",
            leader.clone(),
        );
        registry.register(
            "sandbox_health_reconciles",
            "Pods that were looked at, by outcome",
            reconciles.clone(),
        );
        registry.register(
            "sandbox_health_restarts_summed_up",
            "Restarts that one Event on the node tells of, and none on the pod",
            summed_up.clone(),
        );
        queue.register(&mut registry);
        registry.register(
            "sandbox_health_nodes",
            "Nodes that are to have an agent, by whether somebody sees their sandboxes; 0 on replicas that wait",
            nodes.clone(),
        );
        registry.register(
            "sandbox_health_node_unseen",
            "1 for a node whose sandboxes nobody has seen for a minute, with the reason; absent for others",
            unseen.clone(),
        );
        registry.register("sandbox_health_objects", "SandboxHealth objects that there are", objects.clone());
        registry.register(
            "sandbox_health_objects_max",
            "From how many objects on only pods with something wrong get one",
            objects_max.clone(),
        );
        registry.register(
            "sandbox_health_objects_not_understood",
            "SandboxHealth objects that this program cannot read and leaves alone",
            not_understood.clone(),
        );
        registry.register(
            "sandbox_health_build",
            "What this program was built from",
            Info::new([("version", env!("CARGO_PKG_VERSION")), ("part", "controller")]),
        );
        let metrics = Self {
            registry,
            requests,
            events,
            leader,
            reconciles,
            queue,
            waiting: Mutex::default(),
            nodes,
            unseen,
            summed_up,
            objects,
            objects_max,
            not_understood,
        };
        metrics.set_sights([]);
        metrics
    }
}

impl ControllerMetrics {
    /// A request ended.
    pub fn requested<T>(&self, verb: &'static str, outcome: &Result<T, ApiError>) {
        let result = outcome.as_ref().map_or_else(ApiError::category, |_| "ok");
        self.requests.get_or_create(&OfRequest { verb, result }).inc();
    }

    /// An Event was made, or found made.
    pub fn announced(&self, reason: Reason) {
        self.events.get_or_create(&OfReason { reason: reason.as_str() }).inc();
    }

    /// Whether this replica works.
    pub fn set_leader(&self, leader: bool) {
        self.leader.set(leader.into());
        if !leader {
            self.waiting().clear();
        }
    }

    /// Restarts were told of by a summary.
    pub fn summed_up(&self, restarts: i64) {
        self.summed_up.inc_by(u64::try_from(restarts).unwrap_or_default());
    }

    /// How many objects there are.
    pub fn set_objects(&self, count: usize) {
        self.objects.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many objects there may be.
    pub fn set_objects_max(&self, max: u32) {
        self.objects_max.set(max.into());
    }

    /// An object was met that this program cannot read.
    pub fn met_not_understood(&self) {
        self.not_understood.inc();
    }

    /// These are all nodes, and whether somebody sees them.
    pub fn set_sights<'a>(&self, sights: impl IntoIterator<Item = (&'a str, Sight)>) {
        for state in STATES {
            self.nodes.get_or_create(&OfState { state }).set(0);
        }
        self.unseen.clear();
        for (node, sight) in sights {
            self.nodes.get_or_create(&OfState { state: state(sight) }).inc();
            if let Sight::Blind(why) = sight {
                self.unseen.get_or_create(&OfNode { node: node.to_owned(), reason: why.reason() }).set(1);
            }
        }
    }

    /// A pod is to be looked at from this moment on.
    pub fn asked_for(&self, pod: &PodKey, due: Instant) {
        if self.waiting().add(pod, due) {
            self.queue.added();
        }
    }

    /// A pod that was asked for is not there any more.
    pub fn went(&self, pod: &PodKey, now: Instant) {
        self.waiting().take(pod, now);
    }

    /// A pod has its turn.
    #[must_use]
    pub fn started(&self, pod: &PodKey, now: Instant) -> Work {
        let waited = self.waiting().take(pod, now);
        self.queue.started(waited)
    }

    /// It could not be done, and is tried again.
    pub fn retried(&self) {
        self.queue.retried();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod was looked at.
    pub fn reconciled(&self, ok: bool) {
        self.reconciles.get_or_create(&OfResult { result: if ok { "ok" } else { "error" } }).inc();
    }
}

/// Every state that a node may be in.
const STATES: [&str; 5] = [
    "Seen",
    "Unsettled",
    Blindness::AgentMissing.reason(),
    Blindness::AgentNotReady.reason(),
    Blindness::NodeNotReady.reason(),
];

const fn state(sight: Sight) -> &'static str {
    match sight {
        Sight::Seen => "Seen",
        Sight::Unsettled => "Unsettled",
        Sight::Blind(why) => why.reason(),
    }
}

impl Metrics for ControllerMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        self.queue.set_depth(self.waiting().depth(Instant::now()));
        self.queue.measure();
        exposition::text(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_series_are_there_from_zero() {
        let metrics = ControllerMetrics::default();
        metrics.requested("apply", &Ok(()));
        metrics.set_leader(true);
        metrics.summed_up(90);
        metrics.set_objects(7);
        metrics.set_objects_max(10_000);
        let text = metrics.render().unwrap();
        for line in [
            "sandbox_health_api_requests_total{verb=\"apply\",result=\"ok\"} 1",
            "sandbox_health_api_requests_total{verb=\"create\",result=\"timeout\"} 0",
            "sandbox_health_events_total{reason=\"ZombiesCleared\"} 0",
            "sandbox_health_leader 1",
            "sandbox_health_restarts_summed_up_total 90",
            "sandbox_health_objects 7",
            "sandbox_health_objects_max 10000",
            "sandbox_health_objects_not_understood_total 0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }
    #[test]
    fn a_node_is_counted_always_and_named_only_while_nobody_sees_it() {
        let metrics = ControllerMetrics::default();
        metrics.set_sights([
            ("a", Sight::Seen),
            ("b", Sight::Seen),
            ("c", Sight::Blind(Blindness::AgentMissing)),
            ("d", Sight::Unsettled),
        ]);
        let text = metrics.render().unwrap();
        for line in [
            "sandbox_health_nodes{state=\"Seen\"} 2",
            "sandbox_health_nodes{state=\"Unsettled\"} 1",
            "sandbox_health_nodes{state=\"AgentMissing\"} 1",
            "sandbox_health_nodes{state=\"AgentNotReady\"} 0",
            "sandbox_health_node_unseen{node=\"c\",reason=\"AgentMissing\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("{node=").count(), 1, "{text}");
        metrics.set_sights([]);
        assert!(!metrics.render().unwrap().contains("{node="));
    }

    #[test]
    fn the_queue_of_pods_is_shown() {
        let (metrics, now) = (ControllerMetrics::default(), Instant::now());
        let pod = |name: &str| PodKey::new("shop", name);
        let an_hour = Duration::from_secs(3600);
        metrics.asked_for(&pod("a"), now);
        metrics.asked_for(&pod("a"), now + an_hour);
        metrics.asked_for(&pod("b"), now);
        metrics.asked_for(&pod("c"), now + an_hour);
        metrics.asked_for(&pod("gone"), now);
        metrics.went(&pod("gone"), now);
        drop(metrics.started(&pod("a"), now + Duration::from_millis(50)));
        metrics.reconciled(true);
        metrics.retried();
        let text = metrics.render().unwrap();
        for line in [
            "workqueue_depth{name=\"pods\"} 1",
            "workqueue_adds_total{name=\"pods\"} 4",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.1\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.01\"} 0",
            "workqueue_work_duration_seconds_count{name=\"pods\"} 1",
            "workqueue_retries_total{name=\"pods\"} 1",
            "sandbox_health_reconciles_total{result=\"ok\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        metrics.set_leader(false);
        assert!(metrics.render().unwrap().contains("workqueue_depth{name=\"pods\"} 0\n"));
    }
}
