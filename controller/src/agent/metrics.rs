//! What the agent shows to Prometheus: the pods of its node as they are now, and what befell the agent itself. Series of a
//! pod are made from the pods there are, so they go with the pod.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::pause::ReadError;
use crate::api::ApiError;
use crate::exposition;
use crate::resource::{RestartReason, SandboxHealthStatus};
use crate::serve::Metrics;
use crate::workqueue_metrics::WorkQueue;

/// One pod as its series show it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSeries {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// What is known of its sandbox.
    pub status: SandboxHealthStatus,
    /// Restarts that this agent saw.
    pub restarts: HashMap<RestartReason, u64>,
}

/// The requests that an agent makes to change or fetch an object.
pub const VERBS: [&str; 3] = ["create", "get", "patch"];

/// The agent's metrics.
#[derive(Debug)]
pub struct AgentMetrics {
    counts: Mutex<Counts>,
    /// Pods of which something is to be asked or written.
    pub reports: WorkQueue,
}

impl Default for AgentMetrics {
    fn default() -> Self {
        Self { counts: Mutex::default(), reports: WorkQueue::new("reports") }
    }
}

#[derive(Debug, Default)]
struct Counts {
    pods: Vec<PodSeries>,
    node_zombies: Option<u32>,
    read_errors: HashMap<&'static str, u64>,
    requests: HashMap<(&'static str, &'static str), u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPod {
    namespace: String,
    pod: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRestart {
    namespace: String,
    pod: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFailure {
    namespace: String,
    pod: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    verb: &'static str,
    result: &'static str,
}

impl AgentMetrics {
    /// The pods as they are from now on.
    pub fn set_pods(&self, pods: Vec<PodSeries>) {
        self.lock().pods = pods;
    }

    /// Zombies outside of pods, by the last count; `None` where they cannot be seen.
    pub fn set_node_zombies(&self, zombies: Option<u32>) {
        self.lock().node_zombies = zombies;
    }

    /// A status could not be read.
    pub fn read_failed(&self, error: &ReadError) {
        *self.lock().read_errors.entry(error.reason()).or_default() += 1;
    }

    /// A request to the API ended.
    pub fn requested<T>(&self, verb: &'static str, outcome: &Result<T, ApiError>) {
        let result = outcome.as_ref().map_or_else(ApiError::category, |_| "ok");
        *self.lock().requests.entry((verb, result)).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics for AgentMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        let mut registry = registry(&self.lock());
        self.reports.measure();
        self.reports.register(&mut registry);
        exposition::text(&registry)
    }
}

fn registry(counts: &Counts) -> Registry {
    let zombies = Family::<OfPod, Gauge>::default();
    let processes = Family::<OfPod, Gauge>::default();
    let started = Family::<OfPod, Gauge>::default();
    let reaped = Family::<OfPod, Counter>::default();
    let restarts = Family::<OfRestart, Counter>::default();
    let failures = Family::<OfFailure, Gauge>::default();
    for PodSeries { namespace, pod, status, restarts: seen } in &counts.pods {
        let of_pod = OfPod { namespace: namespace.clone(), pod: pod.clone() };
        if let Some(now) = &status.processes {
            zombies.get_or_create(&of_pod).set(now.zombies);
            processes.get_or_create(&of_pod).set(now.total);
            if let Some(total) = now.reaped_total {
                reaped.get_or_create(&of_pod).inc_by(total.unsigned_abs());
            }
        }
        if let Some(failure) = &status.read_failure {
            let (namespace, pod) = (namespace.clone(), pod.clone());
            failures.get_or_create(&OfFailure { namespace, pod, reason: failure.reason.clone() }).set(1);
        }
        if let Some(sandbox) = &status.sandbox {
            started.get_or_create(&of_pod).set(sandbox.started_at.0.as_second());
        }
        for reason in RestartReason::ALL {
            let labels =
                OfRestart { namespace: namespace.clone(), pod: pod.clone(), reason: reason.as_str() };
            restarts.get_or_create(&labels).inc_by(seen.get(&reason).copied().unwrap_or_default());
        }
    }
    let mut registry = Registry::default();
    registry.register(
        "sandbox_zombie_processes",
        "Processes of the pod that ended and were not reaped",
        zombies,
    );
    registry.register("sandbox_processes", "Processes of the pod, zombies and pause included", processes);
    registry.register(
        "sandbox_reaped_processes",
        "Orphans that pause reaped since the sandbox started",
        reaped,
    );
    registry.register(
        "sandbox_restarts",
        "Sandboxes of the pod that were replaced, as far as this agent saw or found it; shown two minutes late if it found it at its start",
        restarts,
    );
    registry.register_with_unit(
        "sandbox_start_time",
        "When the pod's sandbox started, since the epoch",
        Unit::Seconds,
        started,
    );
    registry.register(
        "sandbox_read_failure",
        "1 while the agent cannot tell how the sandbox is, with the reason; absent while it can",
        failures,
    );
    register_own(&mut registry, counts);
    registry
}

fn register_own(registry: &mut Registry, counts: &Counts) {
    let read_errors = Family::<OfReason, Counter<u64, AtomicU64>>::default();
    for reason in ReadError::all_reasons() {
        let count = counts.read_errors.get(reason).copied().unwrap_or_default();
        read_errors.get_or_create(&OfReason { reason }).inc_by(count);
    }
    let requests = Family::<OfRequest, Counter>::default();
    for verb in VERBS {
        for result in ApiError::RESULTS {
            let count = counts.requests.get(&(verb, result)).copied().unwrap_or_default();
            requests.get_or_create(&OfRequest { verb, result }).inc_by(count);
        }
    }
    if let Some(zombies) = counts.node_zombies {
        let node_zombies = Gauge::<i64>::default();
        node_zombies.set(zombies.into());
        registry.register(
            "sandbox_node_zombie_processes",
            "Processes of the node that ended and whose parents, outside of pods, did not reap them",
            node_zombies,
        );
    }
    registry.register(
        "sandbox_status_read_errors",
        "Statuses of pause processes that could not be read",
        read_errors,
    );
    registry.register(
        "sandbox_health_api_requests",
        "Requests for SandboxHealth objects, by their outcome",
        requests,
    );
    registry.register(
        "sandbox_health_build",
        "What this program was built from",
        Info::new([("version", env!("CARGO_PKG_VERSION")), ("part", "agent")]),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Processes, ReadFailure, Sandbox};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn series(processes: Option<Processes>) -> PodSeries {
        let started_at = Time(Timestamp::from_second(1_800_000_000).unwrap());
        let status = SandboxHealthStatus {
            sandbox: Some(Sandbox {
                id: Some("a".to_owned()),
                started_at,
                boot_id: None,
                pause_version: None,
            }),
            processes,
            ..SandboxHealthStatus::default()
        };
        let restarts = HashMap::from([(RestartReason::PauseExited, 2)]);
        PodSeries { namespace: "shop".to_owned(), pod: "web".to_owned(), status, restarts }
    }

    fn counted() -> Processes {
        let observed_at = Time(Timestamp::from_second(1_800_000_000).unwrap());
        Processes {
            zombies: 3,
            zombies_peak: 4,
            total: 9,
            reaped_total: Some(128),
            observed_at,
            accumulating_since: None,
        }
    }

    #[test]
    fn a_pod_is_shown_by_its_namespace_and_name_alone() {
        let metrics = AgentMetrics::default();
        metrics.set_pods(vec![series(Some(counted()))]);
        let text = metrics.render().unwrap();
        for line in [
            "sandbox_zombie_processes{namespace=\"shop\",pod=\"web\"} 3",
            "sandbox_processes{namespace=\"shop\",pod=\"web\"} 9",
            "sandbox_reaped_processes_total{namespace=\"shop\",pod=\"web\"} 128",
            "sandbox_restarts_total{namespace=\"shop\",pod=\"web\",reason=\"PauseExited\"} 2",
            "sandbox_restarts_total{namespace=\"shop\",pod=\"web\",reason=\"NodeRebooted\"} 0",
            "sandbox_start_time_seconds{namespace=\"shop\",pod=\"web\"} 1800000000",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_series_of_200_pods_go_with_them() {
        let metrics = AgentMetrics::default();
        let before = metrics.render().unwrap();
        let pods =
            (0..200).map(|number| PodSeries { pod: format!("web-{number}"), ..series(Some(counted())) });
        metrics.set_pods(pods.collect());
        assert_eq!(metrics.render().unwrap().matches("sandbox_processes{").count(), 200);
        metrics.set_pods(vec![]);
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&metrics.render().unwrap()), sorted(&before));
    }

    #[test]
    fn what_is_unknown_is_absent_and_not_zero() {
        let metrics = AgentMetrics::default();
        metrics.set_pods(vec![series(None)]);
        let text = metrics.render().unwrap();
        assert!(!text.contains("sandbox_zombie_processes{"), "{text}");
        assert!(text.contains("sandbox_start_time_seconds{"), "{text}");
        assert!(!text.contains("sandbox_read_failure{"), "{text}");
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_named_with_the_reason() {
        let metrics = AgentMetrics::default();
        let mut unread = series(None);
        let (reason, message) = ("StatusSumWrong".to_owned(), "torn".to_owned());
        unread.status.read_failure = Some(ReadFailure { reason, message });
        metrics.set_pods(vec![unread]);
        let line = "sandbox_read_failure{namespace=\"shop\",pod=\"web\",reason=\"StatusSumWrong\"} 1\n";
        assert!(metrics.render().unwrap().contains(line), "{}", metrics.render().unwrap());
    }

    #[test]
    fn errors_are_counted_by_reason_from_zero() {
        let metrics = AgentMetrics::default();
        metrics.set_node_zombies(Some(4));
        metrics.read_failed(&ReadError::Hidden);
        metrics.requested("patch", &Err::<(), _>(ApiError::TimedOut));
        let text = metrics.render().unwrap();
        for line in [
            "sandbox_status_read_errors_total{reason=\"ProcHidden\"} 1",
            "sandbox_status_read_errors_total{reason=\"StatusSumWrong\"} 0",
            "sandbox_health_api_requests_total{verb=\"patch\",result=\"timeout\"} 1",
            "sandbox_health_api_requests_total{verb=\"get\",result=\"ok\"} 0",
            "sandbox_node_zombie_processes 4",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("sandbox_health_build_info{version="), "{text}");
    }
}
