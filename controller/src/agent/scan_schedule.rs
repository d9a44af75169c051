//! When to scan /proc, and how much of it. Scans are limited to a share of the CPU whatever the number of processes: each one has to be
//! followed by a rest in proportion to its CPU time. Nothing is scanned here.

use std::time::Duration;

use tokio::time::Instant;

use crate::procfs::scanner::Scope;

/// Rest per CPU time, for each scope: scans take at most 0.4 % of one core, and the agent as a whole 0.5 %.
const REST: u32 = 500;
/// Rest that a search may defer, because a sandbox that is not found in time ends unseen. What is not urgent waits until all of it is over.
const SEARCH_DEFERRED_MAX: Duration = Duration::from_secs(300);
/// Rest that a scan of pods may defer: that of 0.12 s of CPU time more, so that no number of searches keeps it waiting.
const PODS_DEFERRED_MAX: Duration = Duration::from_secs(360);
/// Least time between scans of pods: a single pod could need them all the time.
const PODS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Longest time between scans of all processes, if the CPU share allows it.
    pub interval: Duration,
    /// Whether something about pods is unknown until their processes are scanned.
    pub are_pods_urgent: bool,
}

#[derive(Debug, Default)]
pub struct ScanSchedule {
    /// End of the rest after scans of all processes, and after others: no number of searches keeps counts waiting.
    all_rested_at: Option<Instant>,
    other_rested_at: Option<Instant>,
    all_at: Option<Instant>,
    pods_at: Option<Instant>,
    search_at: Option<Instant>,
    is_all_requested: bool,
}

impl ScanSchedule {
    pub fn search_at(&mut self, at: Instant) {
        self.search_at = Some(self.search_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub fn request_all(&mut self) {
        self.is_all_requested = true;
    }

    pub fn due(&self, need: Need, now: Instant) -> Option<Scope> {
        let has_passed = |since: Option<Instant>, time: Duration| since.is_none_or(|at| now >= at + time);
        let may_start = |rested_at: Option<Instant>, deferred_max: Duration| {
            rested_at.is_none_or(|rested| now + deferred_max >= rested)
        };
        if has_passed(self.all_at, need.interval) && may_start(self.all_rested_at, Duration::ZERO)
            || self.is_all_requested && may_start(self.all_rested_at, SEARCH_DEFERRED_MAX)
        {
            return Some(Scope::All);
        }
        let is_urgent = need.are_pods_urgent && has_passed(self.pods_at, PODS_INTERVAL);
        if is_urgent && may_start(self.other_rested_at, PODS_DEFERRED_MAX) {
            return Some(Scope::Pods);
        }
        self.next_search().is_some_and(|at| at <= now).then_some(Scope::New)
    }

    pub fn next_search(&self) -> Option<Instant> {
        let (at, rested) = (self.search_at?, self.other_rested_at);
        Some(
            rested.and_then(|rested| rested.checked_sub(SEARCH_DEFERRED_MAX)).map_or(at, |from| at.max(from)),
        )
    }

    /// Whether the rest after the last searches is over.
    pub fn is_rested(&self, now: Instant) -> bool {
        self.other_rested_at.is_none_or(|rested| now >= rested)
    }

    pub fn started(&mut self, scope: Scope, now: Instant) {
        self.search_at = self.search_at.filter(|at| *at > now);
        if scope == Scope::All {
            self.is_all_requested = false;
            self.all_at = Some(now);
        }
        if scope != Scope::New {
            self.pods_at = Some(now);
        }
    }

    pub fn finished(&mut self, scope: Scope, cpu: Duration, now: Instant) {
        let rested_at = if scope == Scope::All { &mut self.all_rested_at } else { &mut self.other_rested_at };
        // The first scan reads what is kept of each process for its life: it costs ten times as much, and no rest.
        *rested_at = Some(rested_at.map_or(now, |rested| rested.max(now) + cpu * REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_10_S: Need = Need { interval: Duration::from_secs(10), are_pods_urgent: false };
    const URGENT: Need = Need { are_pods_urgent: true, ..EVERY_10_S };

    /// CPU time of a node's scans in an hour, and their number, where each takes `cpu` and something asks every 100 ms.
    fn scans_of_an_hour(
        cpu: Duration,
        mut need: impl FnMut(&mut ScanSchedule, Instant) -> Need,
    ) -> (Duration, u32) {
        let (mut schedule, start) = (ScanSchedule::default(), Instant::now());
        let (mut total, mut number, mut now) = (Duration::ZERO, 0, start);
        while now < start + Duration::from_secs(3600) {
            let need = need(&mut schedule, now);
            if let Some(scope) = schedule.due(need, now) {
                schedule.started(scope, now);
                now += cpu;
                schedule.finished(scope, cpu, now);
                (total, number) = (total + cpu, number + 1);
            }
            now += Duration::from_millis(100);
        }
        (total, number)
    }

    #[test]
    fn small_node_is_scanned_at_the_interval() {
        let (_, number) = scans_of_an_hour(Duration::from_millis(9), |_, _| EVERY_10_S);
        assert!((350..=360).contains(&number), "{number}");
    }

    #[test]
    fn scans_take_a_fixed_share_of_a_core_at_any_size() {
        for millis in [90, 900, 5000] {
            let (total, number) = scans_of_an_hour(Duration::from_millis(millis), |_, _| EVERY_10_S);
            assert!(
                total <= Duration::from_millis(7_200) + Duration::from_millis(2 * millis),
                "{millis}: {total:?}"
            );
            assert!(number > 1, "{millis}");
        }
    }

    #[test]
    fn searches_and_scans_of_pods_defer_the_rest_within_a_limit() {
        let cpu = Duration::from_millis(90);
        let (total, _) = scans_of_an_hour(cpu, |schedule, now| {
            schedule.search_at(now);
            schedule.request_all();
            URGENT
        });
        assert!(total <= Duration::from_millis(14_400 + 1_320 + 4 * 90), "{total:?}");
    }

    #[test]
    fn searches_keep_no_scan_of_pods_or_count_waiting() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.finished(Scope::New, Duration::ZERO, now);
        schedule.finished(Scope::New, Duration::from_millis(700), now);
        schedule.started(Scope::All, now);
        schedule.search_at(now);
        let in_10_s = now + EVERY_10_S.interval;
        assert_eq!(schedule.due(EVERY_10_S, in_10_s), Some(Scope::All));
        schedule.started(Scope::All, in_10_s);
        let later = in_10_s + PODS_INTERVAL;
        assert_eq!([EVERY_10_S, URGENT].map(|need| schedule.due(need, later)), [None, Some(Scope::Pods)]);
    }

    #[test]
    fn scan_of_pods_does_not_wait_for_the_interval_but_for_a_second() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.started(Scope::All, now);
        schedule.finished(Scope::All, Duration::from_secs(1), now);
        let due = |millis| schedule.due(URGENT, now + Duration::from_millis(millis));
        assert_eq!([999, 1000].map(due), [None, Some(Scope::Pods)]);
    }

    #[test]
    fn requested_search_runs_once_at_its_time() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.started(Scope::All, now);
        let at = now + Duration::from_millis(200);
        schedule.search_at(at);
        schedule.search_at(at + Duration::from_secs(1));
        assert_eq!((schedule.next_search(), schedule.due(EVERY_10_S, now)), (Some(at), None));
        assert_eq!(schedule.due(EVERY_10_S, at), Some(Scope::New));
        schedule.started(Scope::New, at);
        assert_eq!((schedule.next_search(), schedule.due(EVERY_10_S, at)), (None, None));
    }
}
