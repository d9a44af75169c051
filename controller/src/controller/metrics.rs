//! What the controller shows to Prometheus: its own work, in totals. Series of single pods are the agents'.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::events::Reason;
use crate::api::ApiError;
use crate::serve::Metrics;

/// The controller's metrics.
#[derive(Debug)]
pub struct ControllerMetrics {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    events: Family<OfReason, Counter>,
    leader: Gauge,
    reconciles: Family<OfResult, Counter>,
    summed_up: Counter,
    objects: Gauge,
    objects_max: Gauge,
    not_understood: Counter,
}

/// What is asked of the API.
pub const REQUESTS: [&str; 5] = ["create", "delete", "count", "apply", "event"];

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

impl Default for ControllerMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (requests, events) =
            (Family::<OfRequest, Counter>::default(), Family::<OfReason, Counter>::default());
        let (leader, reconciles) = (Gauge::default(), Family::<OfResult, Counter>::default());
        let (summed_up, not_understood) = (Counter::default(), Counter::default());
        let (objects, objects_max) = (Gauge::default(), Gauge::default());
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
        Self {
            registry,
            requests,
            events,
            leader,
            reconciles,
            summed_up,
            objects,
            objects_max,
            not_understood,
        }
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

    /// A pod was looked at.
    pub fn reconciled(&self, ok: bool) {
        self.reconciles.get_or_create(&OfResult { result: if ok { "ok" } else { "error" } }).inc();
    }
}

impl Metrics for ControllerMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
