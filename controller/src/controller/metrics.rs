//! The controller's metrics: its own work, and the nodes without a ready agent. Series of single pods are the agents'.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use strum::{IntoStaticStr, VariantArray};

use crate::core::conditions::{AgentState, UnavailableReason};
use crate::core::events::Reason;
use crate::k8s::client::ApiRequests;
use crate::telemetry::{self, Metrics};

/// Buckets of a reconcile's duration in seconds: most make one request or none.
const DURATIONS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Values of the label `state`.
const STATES: [&str; 5] = ["Ready", "Pending", "AgentMissing", "AgentNotReady", "NodeNotReady"];

type Labels<const N: usize> = [(&'static str, &'static str); N];

#[derive(Debug)]
pub struct ControllerMetrics {
    registry: Registry,
    requests: ApiRequests,
    events: Family<Labels<2>, Counter>,
    leader: Gauge,
    reconciles: Histogram,
    reconcile_errors: Counter,
    nodes: Family<Labels<1>, Gauge>,
    unavailable: Family<[(&'static str, String); 2], Gauge>,
    creation_failing: Gauge,
    failed_switches: Family<[(&'static str, String); 1], Gauge>,
    objects: Gauge,
    objects_max: Gauge,
}

/// Outcome of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "lowercase")]
pub enum EventOutcome {
    Created,
    Refused,
    Failed,
}

impl EventOutcome {
    const fn labels(self, reason: Reason) -> Labels<2> {
        [("reason", reason.into_str()), ("outcome", self.into_str())]
    }
}

const fn state(agent: AgentState) -> &'static str {
    match agent {
        AgentState::Ready => "Ready",
        AgentState::Pending => "Pending",
        AgentState::Unavailable(reason) => reason.into_str(),
    }
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let build = Info::new([("component", "controller"), ("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("sandboxhealth_build", "Version and component of the program", build);
        let gauge = |registry: &mut Registry, name, help| register(registry, name, help, Gauge::default());
        let mut metrics = Self {
            leader: gauge(&mut registry, "sandboxhealth_leader", "1 if this replica is the leader, else 0"),
            reconciles: register(
                &mut registry,
                "sandboxhealth_reconcile_duration_seconds",
                "How long in seconds reconciling a pod takes",
                Histogram::new(DURATIONS),
            ),
            reconcile_errors: register(
                &mut registry,
                "sandboxhealth_reconcile_errors",
                "Number of reconciles that failed and are retried",
                Counter::default(),
            ),
            events: register(
                &mut registry,
                "sandboxhealth_events",
                "Number of Events by reason and outcome",
                Family::default(),
            ),
            nodes: register(
                &mut registry,
                "sandboxhealth_nodes",
                "Number of nodes by state of their agent; AgentMissing are those that lack an agent pod that the DaemonSet wants (leader only)",
                Family::default(),
            ),
            unavailable: register(
                &mut registry,
                "sandboxhealth_node_agent_unavailable",
                "1 for a node whose agent has not been ready for a minute, with the reason; absent for others (leader only)",
                Family::default(),
            ),
            creation_failing: gauge(
                &mut registry,
                "sandboxhealth_agent_creation_failing",
                "1 while agent pods cannot be created, such as by Pod Security; AgentMissing conditions and the log have the message (leader only)",
            ),
            failed_switches: register(
                &mut registry,
                "sandboxhealth_pause_switch_failed",
                "1 for a node whose switch to the pause image failed, until its Lease is deleted or used for another switch; absent for others (leader only)",
                Family::default(),
            ),
            objects: gauge(
                &mut registry,
                "sandboxhealth_objects",
                "Number of SandboxHealth objects that count towards the limit: those of pods that are not finished (leader only)",
            ),
            objects_max: gauge(
                &mut registry,
                "sandboxhealth_objects_max",
                "Configured maximum number of SandboxHealth objects",
            ),
            requests: ApiRequests::default(),
            registry,
        };
        metrics.requests.register(&mut metrics.registry);
        for &reason in Reason::VARIANTS {
            for outcome in EventOutcome::VARIANTS {
                let _ = metrics.events.get_or_create(&outcome.labels(reason));
            }
        }
        metrics.set_agents([], 0);
        metrics
    }
}

impl ControllerMetrics {
    pub fn requests(&self) -> ApiRequests {
        self.requests.clone()
    }

    pub fn event(&self, reason: Reason, outcome: EventOutcome) {
        self.events.get_or_create(&outcome.labels(reason)).inc();
    }

    /// Sets whether this replica is the leader. A standby has no series that only a leader keeps up to date.
    pub fn set_leader(&self, is_leader: bool) {
        self.leader.set(is_leader.into());
        if !is_leader {
            self.set_objects(0);
            self.set_agents([], 0);
            self.set_agent_creation_failing(false);
            self.set_failed_switches([]);
        }
    }

    pub fn set_agent_creation_failing(&self, is_failing: bool) {
        self.creation_failing.set(is_failing.into());
    }

    /// The nodes whose switch to the pause image failed.
    pub fn set_failed_switches(&self, nodes: impl IntoIterator<Item = String>) {
        self.failed_switches.clear();
        for node in nodes {
            self.failed_switches.get_or_create(&[("node", node)]).set(1);
        }
    }

    pub fn reconciled(&self, duration: Duration, is_ok: bool) {
        self.reconciles.observe(duration.as_secs_f64());
        if !is_ok {
            self.reconcile_errors.inc();
        }
    }

    pub fn set_objects(&self, count: usize) {
        self.objects.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn set_objects_max(&self, max: u32) {
        self.objects_max.set(max.into());
    }

    /// The nodes that have an agent pod, with its state, and how many nodes lack one.
    pub fn set_agents<'a>(&self, agents: impl IntoIterator<Item = (&'a str, AgentState)>, missing: usize) {
        self.unavailable.clear();
        for state in STATES {
            self.nodes.get_or_create(&[("state", state)]).set(0);
        }
        let missing = i64::try_from(missing).unwrap_or(i64::MAX);
        self.nodes.get_or_create(&[("state", UnavailableReason::AgentMissing.into_str())]).set(missing);
        for (node, agent) in agents {
            self.nodes.get_or_create(&[("state", state(agent))]).inc();
            if let AgentState::Unavailable(reason) = agent {
                let labels = [("node", node.to_owned()), ("reason", reason.into_str().to_owned())];
                self.unavailable.get_or_create(&labels).set(1);
            }
        }
    }
}

impl Metrics for ControllerMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        telemetry::text(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(metrics: &ControllerMetrics, line: &str) -> bool {
        metrics.render().unwrap().lines().any(|rendered| rendered == line)
    }

    #[test]
    fn known_series_start_at_zero() {
        let metrics = ControllerMetrics::default();
        for line in [
            "sandboxhealth_leader 0",
            "sandboxhealth_reconcile_errors_total 0",
            "sandboxhealth_events_total{reason=\"SandboxTerminated\",outcome=\"failed\"} 0",
            "sandboxhealth_nodes{state=\"AgentMissing\"} 0",
        ] {
            assert!(has(&metrics, line), "{line} not in\n{}", metrics.render().unwrap());
        }
    }

    #[test]
    fn nodes_are_counted_by_state_and_named_while_unavailable() {
        let metrics = ControllerMetrics::default();
        let failing = AgentState::Unavailable(UnavailableReason::AgentNotReady);
        metrics.set_agents([("a", AgentState::Ready), ("b", failing), ("c", AgentState::Pending)], 2);
        let named = "sandboxhealth_node_agent_unavailable{node=\"b\",reason=\"AgentNotReady\"} 1";
        assert!(has(&metrics, named));
        for line in ["{state=\"Ready\"} 1", "{state=\"AgentNotReady\"} 1", "{state=\"AgentMissing\"} 2"] {
            assert!(has(&metrics, &format!("sandboxhealth_nodes{line}")), "{line}");
        }
        metrics.set_agents([("b", AgentState::Ready)], 0);
        assert!(!has(&metrics, named));
        metrics.set_agents([("b", failing)], 0);
        metrics.set_leader(false);
        assert!(!has(&metrics, named), "a standby names no nodes");
    }

    #[test]
    fn reconciles_are_timed_and_failures_counted() {
        let metrics = ControllerMetrics::default();
        metrics.reconciled(Duration::from_millis(3), true);
        metrics.reconciled(Duration::from_secs(3), false);
        assert!(has(&metrics, "sandboxhealth_reconcile_duration_seconds_count 2"));
        assert!(has(&metrics, "sandboxhealth_reconcile_duration_seconds_bucket{le=\"0.005\"} 1"));
        assert!(has(&metrics, "sandboxhealth_reconcile_errors_total 1"));
    }
}
