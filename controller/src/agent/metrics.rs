//! The agent's metrics. The series of a pod are rendered from the pods that are tracked, so they end with the pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::core::sandbox::SandboxState;
use crate::core::zombies::NodeZombies;
use crate::crd::{Processes, RestartReason};
use crate::k8s::client::ApiRequests;
use crate::k8s::pod::NodePod;
use crate::procfs::pause::ReadError;
use crate::telemetry::{self, Metrics};

type Labels<const N: usize> = [(&'static str, String); N];

/// What the series of one pod show. What is unknown is absent.
#[derive(Debug, Clone, Default)]
pub struct PodSeries {
    pub pod: Arc<NodePod>,
    pub sandbox: SandboxState,
    pub restarts: HashMap<RestartReason, u64>,
}

#[derive(Debug, Default)]
pub struct AgentMetrics {
    values: Mutex<Values>,
    requests: ApiRequests,
}

#[derive(Debug, Default)]
struct Values {
    pods: Vec<PodSeries>,
    node_zombies: Option<NodeZombies>,
    read_errors: HashMap<&'static str, u64>,
}

impl PodSeries {
    fn labels(&self) -> Labels<3> {
        let pod = &self.pod;
        [("namespace", pod.namespace()), ("pod", pod.name()), ("node", &*pod.node)]
            .map(|(label, value)| (label, value.to_owned()))
    }

    fn processes(&self) -> Option<&Processes> {
        self.sandbox.status().processes.as_ref()
    }

    fn is_readable(&self) -> Option<bool> {
        match &self.sandbox.status().read_failure {
            // No failure: there is nothing to be done about it.
            Some(failure) if failure.reason == ReadError::NoPause.reason() => None,
            Some(_) => Some(false),
            None => self.processes().map(|_| true),
        }
    }

    fn info(&self) -> Labels<6> {
        let [namespace, pod, node] = self.labels();
        let status = self.sandbox.status();
        let sandbox = status.sandbox.as_ref();
        let pause_version = sandbox.and_then(|sandbox| sandbox.pause_version.clone()).unwrap_or_default();
        let source = status.source.map_or("", |source| source.into_str());
        let uid = self.pod.uid().to_owned();
        [namespace, pod, node, ("uid", uid), ("pause_version", pause_version), ("source", source.to_owned())]
    }
}

impl AgentMetrics {
    pub fn set_pods(&self, pods: Vec<PodSeries>) {
        self.lock().pods = pods;
    }

    /// Sets the numbers of zombies of the node; `None` where they are not visible.
    pub fn set_node_zombies(&self, zombies: Option<NodeZombies>) {
        self.lock().node_zombies = zombies;
    }

    pub fn requests(&self) -> ApiRequests {
        self.requests.clone()
    }

    pub fn read_failed(&self, error: &ReadError) {
        *self.lock().read_errors.entry(error.reason()).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics for AgentMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        {
            let values = self.lock();
            register_pods(&mut registry, &values.pods);
            register_own(&mut registry, &values);
            self.requests.register(&mut registry);
        }
        telemetry::text(&registry)
    }
}

fn register_pods(registry: &mut Registry, pods: &[PodSeries]) {
    let gauge = |value: fn(&PodSeries) -> Option<i64>| {
        let family = Family::<Labels<3>, Gauge>::default();
        for (pod, value) in pods.iter().filter_map(|pod| Some((pod, value(pod)?))) {
            family.get_or_create(&pod.labels()).set(value);
        }
        family
    };
    let reaped = Family::<Labels<3>, Counter>::default();
    let restarts = Family::<Labels<4>, Counter>::default();
    let info = Family::<Labels<6>, Gauge>::default();
    for pod in pods {
        if let Some(total) = pod.processes().and_then(|processes| processes.reaped_total) {
            reaped.get_or_create(&pod.labels()).inc_by(total.unsigned_abs());
        }
        for reason in RestartReason::ALL {
            let [namespace, name, node] = pod.labels();
            let labels = [namespace, name, node, ("reason", reason.into_str().to_owned())];
            restarts.get_or_create(&labels).inc_by(pod.restarts.get(&reason).copied().unwrap_or_default());
        }
        info.get_or_create(&pod.info()).set(1);
    }
    registry.register(
        "pod_sandbox_zombie_processes",
        "Number of zombie processes of the pod",
        gauge(|pod| Some(pod.processes()?.zombies)),
    );
    registry.register(
        "pod_sandbox_processes",
        "Number of processes of the pod, including zombies and the pause process",
        gauge(|pod| Some(pod.processes()?.total)),
    );
    registry.register(
        "pod_sandbox_threads",
        "Number of threads of the pod, including zombies: what counts against its PID limit",
        gauge(|pod| Some(pod.processes()?.threads)),
    );
    registry.register(
        "pod_sandbox_reaped_processes",
        "Number of orphaned processes that pause reaped since the sandbox started",
        reaped,
    );
    registry.register(
        "pod_sandbox_restarts",
        "Number of restarts of the pod's sandbox observed by this agent, by reason; those found at its start are counted after two minutes",
        restarts,
    );
    registry.register_with_unit(
        "pod_sandbox_start_time",
        "Start time of the pod's sandbox since the epoch",
        Unit::Seconds,
        gauge(|pod| Some(pod.sandbox.status().sandbox.as_ref()?.started_at.0.as_second())),
    );
    registry.register(
        "pod_sandbox_readable",
        "Whether the agent can read the processes of the pod (1 or 0)",
        gauge(|pod| pod.is_readable().map(i64::from)),
    );
    registry.register(
        "pod_sandbox_info",
        "UID of the pod, version of sandbox-health's pause (empty for a third-party image), and source of the counts; always 1",
        info,
    );
}

fn register_own(registry: &mut Registry, values: &Values) {
    let read_errors = Family::<Labels<1>, Counter>::default();
    for reason in ReadError::all_reasons() {
        let count = values.read_errors.get(reason).copied().unwrap_or_default();
        read_errors.get_or_create(&[("reason", reason.to_owned())]).inc_by(count);
    }
    registry.register(
        "sandboxhealth_read_errors",
        "Number of failed readings of a pod's processes, by reason",
        read_errors,
    );
    let zombies = Family::<Labels<1>, Gauge>::default();
    if let Some(NodeZombies { host, watched_pods, other_pods }) = values.node_zombies {
        for (place, number) in [("host", host), ("watched_pods", watched_pods), ("other_pods", other_pods)] {
            zombies.get_or_create(&[("where", place.to_owned())]).set(number.into());
        }
    }
    registry.register(
        "sandboxhealth_node_zombie_processes",
        "Number of zombie processes of the node by where their parent runs: outside of pods, in watched pods, or in other pods",
        zombies,
    );
    registry.register(
        "sandboxhealth_build",
        "Version and component of this program",
        Info::new([("component", "agent"), ("version", env!("CARGO_PKG_VERSION"))]),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A pod whose sandbox can be read, or not.
    fn series(is_readable: bool) -> PodSeries {
        let pod = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u-1"}, "spec": {"nodeName": "n"}});
        let mut status = json!({"restarts": 0, "sandbox": {"id": "a", "startedAt": "2027-01-15T08:00:00Z", "pauseVersion": "0.1.0"}});
        if is_readable {
            status["processes"] = json!({"zombies": 3, "zombiesPeak": 3, "total": 9, "reapedTotal": 128, "observedAt": "2027-01-15T08:00:00Z"});
            status["source"] = json!("PauseStatusFile");
        } else {
            status["readFailure"] = json!({"reason": "ProcHidden", "message": ""});
        }
        PodSeries {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            sandbox: SandboxState::resume(serde_json::from_value(status).unwrap()),
            restarts: HashMap::from([(RestartReason::PauseExited, 2)]),
        }
    }

    fn assert_has(metrics: &AgentMetrics, lines: &[&str]) {
        let text = metrics.render().unwrap();
        for line in lines {
            assert!(text.lines().any(|has| has == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn pod_is_labeled_by_namespace_name_and_node() {
        let metrics = AgentMetrics::default();
        metrics.set_pods(vec![series(true)]);
        assert_has(
            &metrics,
            &[
                "pod_sandbox_zombie_processes{namespace=\"shop\",pod=\"web\",node=\"n\"} 3",
                "pod_sandbox_processes{namespace=\"shop\",pod=\"web\",node=\"n\"} 9",
                "pod_sandbox_reaped_processes_total{namespace=\"shop\",pod=\"web\",node=\"n\"} 128",
                "pod_sandbox_restarts_total{namespace=\"shop\",pod=\"web\",node=\"n\",reason=\"PauseExited\"} 2",
                "pod_sandbox_restarts_total{namespace=\"shop\",pod=\"web\",node=\"n\",reason=\"NodeRebooted\"} 0",
                "pod_sandbox_start_time_seconds{namespace=\"shop\",pod=\"web\",node=\"n\"} 1800000000",
                "pod_sandbox_readable{namespace=\"shop\",pod=\"web\",node=\"n\"} 1",
                "pod_sandbox_info{namespace=\"shop\",pod=\"web\",node=\"n\",uid=\"u-1\",pause_version=\"0.1.0\",source=\"PauseStatusFile\"} 1",
            ],
        );
    }

    #[test]
    fn series_end_with_their_pods() {
        let metrics = AgentMetrics::default();
        let before = metrics.render().unwrap();
        let pods = (0..200).map(|number| {
            let mut pod = series(true);
            Arc::make_mut(&mut pod.pod).metadata.name = Some(format!("web-{number}"));
            pod
        });
        metrics.set_pods(pods.collect());
        assert_eq!(metrics.render().unwrap().matches("pod_sandbox_processes{").count(), 200);
        metrics.set_pods(vec![]);
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&metrics.render().unwrap()), sorted(&before));
    }

    #[test]
    fn unknown_values_are_absent_and_not_zero() {
        let metrics = AgentMetrics::default();
        metrics.set_pods(vec![series(false)]);
        assert_has(&metrics, &["pod_sandbox_readable{namespace=\"shop\",pod=\"web\",node=\"n\"} 0"]);
        let text = metrics.render().unwrap();
        assert!(!text.contains("pod_sandbox_zombie_processes{"), "{text}");
        assert!(text.contains("pod_sandbox_start_time_seconds{"), "{text}");
        metrics.set_pods(vec![PodSeries { sandbox: SandboxState::default(), ..series(false) }]);
        assert!(!metrics.render().unwrap().contains("pod_sandbox_readable{"), "not read yet");
    }

    #[test]
    fn read_errors_are_counted_by_reason_from_zero() {
        let metrics = AgentMetrics::default();
        metrics.set_node_zombies(Some(NodeZombies { host: 4, watched_pods: 3, other_pods: 25 }));
        metrics.read_failed(&ReadError::Hidden);
        assert_has(
            &metrics,
            &[
                "sandboxhealth_read_errors_total{reason=\"ProcHidden\"} 1",
                "sandboxhealth_read_errors_total{reason=\"StatusChecksumWrong\"} 0",
                "sandboxhealth_node_zombie_processes{where=\"host\"} 4",
                "sandboxhealth_node_zombie_processes{where=\"watched_pods\"} 3",
                "sandboxhealth_node_zombie_processes{where=\"other_pods\"} 25",
            ],
        );
        assert!(metrics.render().unwrap().contains("sandboxhealth_build_info{component=\"agent\",version="));
    }
}
