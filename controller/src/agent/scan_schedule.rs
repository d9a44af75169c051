//! When to scan /proc, and how much of it. Scans are limited to a share of the CPU whatever the number of processes: each one has to be
//! followed by a rest in proportion to its CPU time. Nothing is scanned here.

use std::time::Duration;

use tokio::time::Instant;

use crate::procfs::scanner::Scope;

/// Rest per CPU time, for each scope: scans take at most 0.4 % of one core, and the agent as a whole 0.5 %.
const REST: u32 = 500;
/// Rest that an urgent scan may defer: that of 0.12 s of CPU time. What is not urgent waits until all of it is over.
const URGENT_DEFERRED_MAX: Duration = Duration::from_secs(60);
/// Rest that a search may defer, because a sandbox that is not found in time ends unseen.
const SEARCH_DEFERRED_MAX: Duration = Duration::from_secs(300);
/// Least time between urgent scans of all processes: a single pod could make all of them urgent.
const URGENT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Longest time between scans, if the CPU share allows it.
    pub interval: Duration,
    /// Whether something is unknown until the next one.
    pub is_urgent: bool,
}

#[derive(Debug, Default)]
pub struct ScanSchedule {
    /// End of the rest after scans of all processes, and after those of new ones: no number of searches keeps counts waiting.
    all_rested_at: Option<Instant>,
    new_rested_at: Option<Instant>,
    all_at: Option<Instant>,
    urgent_at: Option<Instant>,
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
        let may_defer = |limit: Duration| self.all_rested_at.is_none_or(|rested| now + limit >= rested);
        let is_urgent = need.is_urgent && has_passed(self.urgent_at, URGENT_INTERVAL);
        if is_urgent && may_defer(URGENT_DEFERRED_MAX)
            || has_passed(self.all_at, need.interval) && may_defer(Duration::ZERO)
            || self.is_all_requested && may_defer(SEARCH_DEFERRED_MAX)
        {
            return Some(Scope::All);
        }
        self.next_search().is_some_and(|at| at <= now).then_some(Scope::New)
    }

    pub fn next_search(&self) -> Option<Instant> {
        let (at, rested) = (self.search_at?, self.new_rested_at);
        Some(
            rested.and_then(|rested| rested.checked_sub(SEARCH_DEFERRED_MAX)).map_or(at, |from| at.max(from)),
        )
    }

    /// Whether the rest after the last searches is over.
    pub fn is_rested(&self, now: Instant) -> bool {
        self.new_rested_at.is_none_or(|rested| now >= rested)
    }

    pub fn started(&mut self, scope: Scope, need: Need, now: Instant) {
        self.search_at = self.search_at.filter(|at| *at > now);
        if scope == Scope::All {
            self.is_all_requested = false;
            self.all_at = Some(now);
            if need.is_urgent {
                self.urgent_at = Some(now);
            }
        }
    }

    pub fn finished(&mut self, scope: Scope, cpu: Duration, now: Instant) {
        let rested_at = if scope == Scope::All { &mut self.all_rested_at } else { &mut self.new_rested_at };
        // The first scan reads what is kept of each process for its life: it costs ten times as much, and no rest.
        *rested_at = Some(rested_at.map_or(now, |rested| rested.max(now) + cpu * REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_10_S: Need = Need { interval: Duration::from_secs(10), is_urgent: false };

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
                schedule.started(scope, need, now);
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
    fn urgent_scans_defer_the_rest_within_a_limit() {
        let cpu = Duration::from_millis(90);
        let urgent = Need { is_urgent: true, ..EVERY_10_S };
        let (total, _) = scans_of_an_hour(cpu, |_, _| urgent);
        assert!(total <= Duration::from_millis(7_200 + 120 + 3 * 90), "{total:?}");
        let (total, _) = scans_of_an_hour(cpu, |schedule, now| {
            schedule.search_at(now);
            schedule.request_all();
            EVERY_10_S
        });
        assert!(total <= Duration::from_millis(14_400 + 1200 + 4 * 90), "{total:?}");
    }

    #[test]
    fn searches_keep_no_count_waiting() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.started(Scope::All, EVERY_10_S, now);
        schedule.finished(Scope::New, Duration::ZERO, now);
        schedule.finished(Scope::New, Duration::from_secs(60), now);
        assert_eq!(schedule.due(EVERY_10_S, now + EVERY_10_S.interval), Some(Scope::All));
    }

    #[test]
    fn urgent_scan_does_not_wait_for_the_interval_but_for_a_second() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        let urgent = Need { is_urgent: true, ..EVERY_10_S };
        schedule.started(Scope::All, urgent, now);
        schedule.finished(Scope::All, Duration::from_millis(50), now);
        let due = |millis| schedule.due(urgent, now + Duration::from_millis(millis));
        assert_eq!([999, 1000].map(due), [None, Some(Scope::All)]);
        assert_eq!(schedule.due(EVERY_10_S, now + Duration::from_millis(9_999)), None);
    }

    #[test]
    fn requested_search_runs_once_at_its_time() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.started(Scope::All, EVERY_10_S, now);
        let at = now + Duration::from_millis(200);
        schedule.search_at(at);
        schedule.search_at(at + Duration::from_secs(1));
        assert_eq!((schedule.next_search(), schedule.due(EVERY_10_S, now)), (Some(at), None));
        assert_eq!(schedule.due(EVERY_10_S, at), Some(Scope::New));
        schedule.started(Scope::New, EVERY_10_S, at);
        assert_eq!((schedule.next_search(), schedule.due(EVERY_10_S, at)), (None, None));
    }
}
