//! The usual metrics of a work queue, under the names and with the meaning that client-go gave them: dashboards for controllers
//! know these. What waits is known elsewhere; here it is shown.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// From a look at memory alone to a request that timed out, in seconds.
const BUCKETS: [f64; 5] = [0.001, 0.01, 0.1, 1.0, 10.0];

/// One queue.
#[derive(Debug, Clone)]
pub struct WorkQueue {
    name: &'static str,
    depth: Gauge,
    adds: Counter,
    waited: Histogram,
    worked: Histogram,
    retries: Counter,
}

impl WorkQueue {
    /// A queue of this name, through which nothing has gone yet.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            depth: Gauge::default(),
            adds: Counter::default(),
            waited: Histogram::new(BUCKETS),
            worked: Histogram::new(BUCKETS),
            retries: Counter::default(),
        }
    }

    /// So many are due, and nobody works on them yet.
    pub fn set_depth(&self, depth: usize) {
        self.depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    /// One more is to be worked on.
    pub fn added(&self) {
        self.adds.inc();
    }

    /// Somebody begins to work on one.
    pub fn started(&self, waited: Duration) {
        self.waited.observe(waited.as_secs_f64());
    }

    /// The work on one is done, whatever came of it.
    pub fn finished(&self, worked: Duration) {
        self.worked.observe(worked.as_secs_f64());
    }

    /// It came to nothing, and is tried again after a wait.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// Has the registry show it.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_label(("name".into(), self.name.into()));
        registry.register(
            "workqueue_depth",
            "What is due and waits for its turn, by the name of the queue",
            self.depth.clone(),
        );
        registry.register(
            "workqueue_adds",
            "How often something was put into the queue that was not in it, for now or for later",
            self.adds.clone(),
        );
        registry.register_with_unit(
            "workqueue_queue_duration",
            "How long something waited for its turn once it was due",
            Unit::Seconds,
            self.waited.clone(),
        );
        registry.register_with_unit(
            "workqueue_work_duration",
            "How long it took to do what was due, requests to the API included",
            Unit::Seconds,
            self.worked.clone(),
        );
        registry.register(
            "workqueue_retries",
            "How often something came to nothing and was put into the queue again, for later",
            self.retries.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition;

    #[test]
    fn a_queue_is_shown_by_the_names_that_dashboards_know() {
        let queue = WorkQueue::new("pods");
        queue.added();
        queue.set_depth(3);
        queue.started(Duration::from_millis(50));
        queue.finished(Duration::from_secs(2));
        queue.retried();
        let mut registry = Registry::default();
        queue.register(&mut registry);
        let text = exposition::text(&registry).unwrap();
        for line in [
            "workqueue_depth{name=\"pods\"} 3",
            "workqueue_adds_total{name=\"pods\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.01\"} 0",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.1\"} 1",
            "workqueue_work_duration_seconds_sum{name=\"pods\"} 2.0",
            "workqueue_retries_total{name=\"pods\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }
}
