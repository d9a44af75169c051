//! The usual metrics of a work queue, under the names that client-go gave them, which dashboards for controllers know. What waits is
//! known elsewhere; here it is shown, with how long the work takes.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

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
    unfinished: Gauge<f64, AtomicU64>,
    longest: Gauge<f64, AtomicU64>,
    underway: Arc<Mutex<Underway>>,
}

/// When each work that is not done began.
#[derive(Debug, Default)]
struct Underway {
    begun: HashMap<u64, Instant>,
    next: u64,
}

/// Something is worked on until this goes.
#[derive(Debug)]
pub struct Work {
    queue: WorkQueue,
    number: u64,
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
            unfinished: Gauge::default(),
            longest: Gauge::default(),
            underway: Arc::default(),
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

    /// Somebody begins to work on one. `None`: nobody had asked for it.
    #[must_use]
    pub fn started(&self, waited: Option<Duration>) -> Work {
        if let Some(waited) = waited {
            self.waited.observe(waited.as_secs_f64());
        }
        let mut underway = self.underway();
        let number = underway.next;
        underway.next = number.wrapping_add(1);
        underway.begun.insert(number, Instant::now());
        Work { queue: self.clone(), number }
    }

    /// It came to nothing, and is tried again after a wait.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// Sets what is shown of the work that is not done to what it is now.
    pub fn measure(&self) {
        let times: Vec<_> = self.underway().begun.values().map(Instant::elapsed).collect();
        self.unfinished.set(times.iter().sum::<Duration>().as_secs_f64());
        self.longest.set(times.into_iter().max().unwrap_or_default().as_secs_f64());
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
            "How often something was put into the queue, for now or for later",
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
            "How often something was put into the queue again since it had come to nothing before",
            self.retries.clone(),
        );
        registry.register_with_unit(
            "workqueue_unfinished_work",
            "How long that which is worked on now has taken so far, all together",
            Unit::Seconds,
            self.unfinished.clone(),
        );
        registry.register_with_unit(
            "workqueue_longest_running_processor",
            "How long that which is worked on for longest now has taken so far",
            Unit::Seconds,
            self.longest.clone(),
        );
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(begun) = self.queue.underway().begun.remove(&self.number) {
            self.queue.worked.observe(begun.elapsed().as_secs_f64());
        }
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
        drop(queue.started(Some(Duration::from_millis(50))));
        drop(queue.started(None));
        queue.retried();
        let mut registry = Registry::default();
        queue.register(&mut registry);
        let text = exposition::text(&registry).unwrap();
        for line in [
            "workqueue_depth{name=\"pods\"} 3",
            "workqueue_adds_total{name=\"pods\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.01\"} 0",
            "workqueue_queue_duration_seconds_bucket{name=\"pods\",le=\"0.1\"} 1",
            "workqueue_queue_duration_seconds_count{name=\"pods\"} 1",
            "workqueue_work_duration_seconds_count{name=\"pods\"} 2",
            "workqueue_retries_total{name=\"pods\"} 1",
            "workqueue_unfinished_work_seconds{name=\"pods\"} 0.0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn work_that_is_not_done_is_shown_while_it_lasts() {
        let queue = WorkQueue::new("pods");
        let works = [queue.started(None), queue.started(None)];
        std::thread::sleep(Duration::from_millis(2));
        queue.measure();
        let (all, longest) = (queue.unfinished.get(), queue.longest.get());
        assert!(
            longest >= 0.002 && all > longest && all <= 2.0 * longest,
            "{all} s, the longest {longest} s"
        );
        drop(works);
        queue.measure();
        assert_eq!((queue.unfinished.get(), queue.longest.get()), (0.0, 0.0));
    }
}
