//! When to scan /proc, and how much of it. Scans are limited to a share of the CPU whatever the number of processes: each one has to be
//! followed by a rest in proportion to its CPU time. Nothing is scanned here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::procfs::scanner::Scope;

/// Rest per CPU time, for each scope: scans take at most 0.4 % of one core, and the agent as a whole 0.5 %.
const REST: u32 = 750;
/// Rest that a search may defer, because a sandbox that is not found in time ends unseen.
const SEARCH_DEFERRED_MAX: Duration = Duration::from_secs(300);
/// Rest that a scan of pods may defer, because a report waits for it: that of 0.08 s of CPU time.
const PODS_DEFERRED_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct ScanSchedule {
    /// End of the rest after scans, for each scope: no scope delays another. Searches of all processes share the rest of searches of new ones.
    rested_at: HashMap<Scope, Instant>,
    all_at: Option<Instant>,
    search_at: Option<Instant>,
    is_all_requested: bool,
    /// Whether the running scan of all processes was started by a request alone.
    is_search: bool,
}

impl ScanSchedule {
    pub fn search_at(&mut self, at: Instant) {
        self.search_at = Some(self.search_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub fn request_all(&mut self) {
        self.is_all_requested = true;
    }

    /// The scan that is due: of all processes after `interval`, of pods of which something is unknown until then, or a search.
    pub fn due(&self, interval: Duration, are_pods_waiting: bool, now: Instant) -> Option<Scope> {
        let is_all_due = self.all_at.is_none_or(|at| now >= at + interval);
        if is_all_due && self.is_rested(Scope::All, Duration::ZERO, now)
            || self.is_all_requested && self.is_rested(Scope::New, SEARCH_DEFERRED_MAX, now)
        {
            return Some(Scope::All);
        }
        if are_pods_waiting && self.is_rested(Scope::Pods, PODS_DEFERRED_MAX, now) {
            return Some(Scope::Pods);
        }
        self.next_search().is_some_and(|at| at <= now).then_some(Scope::New)
    }

    pub fn next_search(&self) -> Option<Instant> {
        let (at, rested) = (self.search_at?, self.rested_at.get(&Scope::New));
        let from = rested.and_then(|rested| rested.checked_sub(SEARCH_DEFERRED_MAX));
        Some(from.map_or(at, |from| at.max(from)))
    }

    /// Whether the rest after scans of this scope is over but for what may be deferred.
    pub fn is_rested(&self, scope: Scope, deferred: Duration, now: Instant) -> bool {
        self.rested_at.get(&scope).is_none_or(|rested| now + deferred >= *rested)
    }

    pub fn started(&mut self, scope: Scope, now: Instant) {
        self.search_at = self.search_at.filter(|at| *at > now);
        self.is_search = scope == Scope::All && !self.is_rested(Scope::All, Duration::ZERO, now);
        if scope == Scope::All {
            self.is_all_requested = false;
            self.all_at = Some(now);
        }
    }

    pub fn finished(&mut self, scope: Scope, cpu: Duration, now: Instant) {
        // The first scan reads what later ones remember: it costs ten times as much, and no rest follows it.
        let scope = if self.is_search { Scope::New } else { scope };
        let rested_at = self.rested_at.get(&scope).map_or(now, |rested| now.max(*rested) + cpu * REST);
        self.rested_at.insert(scope, rested_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    /// CPU time of a node's scans in an hour, and their number, where each takes `cpu` and something asks every 100 ms.
    fn scans_of_an_hour(
        cpu: Duration,
        mut asks: impl FnMut(&mut ScanSchedule, Instant) -> bool,
    ) -> (Duration, u32) {
        let (mut schedule, start) = (ScanSchedule::default(), Instant::now());
        let (mut total, mut number, mut now) = (Duration::ZERO, 0, start);
        while now < start + Duration::from_secs(3600) {
            let are_pods_waiting = asks(&mut schedule, now);
            if let Some(scope) = schedule.due(INTERVAL, are_pods_waiting, now) {
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
        let (_, number) = scans_of_an_hour(Duration::from_millis(9), |_, _| false);
        assert!((350..=360).contains(&number), "{number}");
    }

    #[test]
    fn scans_take_a_fixed_share_of_a_core_at_any_size() {
        for millis in [90, 900, 5000] {
            let (total, number) = scans_of_an_hour(Duration::from_millis(millis), |_, _| false);
            assert!(
                total <= Duration::from_millis(4_800) + Duration::from_millis(2 * millis),
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
            true
        });
        assert!(total <= Duration::from_millis(14_400 + 880 + 6 * 90), "{total:?}");
    }

    #[test]
    fn scans_of_one_scope_keep_no_other_waiting() {
        let now = Instant::now();
        let due_after = |busy: Scope| {
            let mut schedule = ScanSchedule::default();
            schedule.started(Scope::All, now);
            for cpu in [Duration::ZERO, Duration::from_secs(1)] {
                schedule.finished(busy, cpu, now);
            }
            let later = now + INTERVAL - Duration::from_secs(1);
            let pods = schedule.due(INTERVAL, true, later);
            schedule.search_at(now);
            [pods, schedule.due(INTERVAL, false, later), schedule.due(INTERVAL, false, now + INTERVAL)]
        };
        let (pods, new, all) = (Some(Scope::Pods), Some(Scope::New), Some(Scope::All));
        assert_eq!(due_after(Scope::Pods), [None, new, all]);
        assert_eq!(due_after(Scope::New), [pods, None, all]);
        assert_eq!(due_after(Scope::All), [pods, new, new]);
    }

    #[test]
    fn requested_scans_of_all_processes_keep_no_count_waiting() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        let cpu = Duration::from_millis(500);
        let scan = |schedule: &mut ScanSchedule| {
            schedule.started(Scope::All, now);
            schedule.finished(Scope::All, cpu, now);
        };
        // The first two are counts, of which the first has no rest; the others are requested.
        for _ in 0..4 {
            scan(&mut schedule);
            schedule.request_all();
        }
        let due = |seconds| schedule.due(INTERVAL, false, now + Duration::from_secs(seconds));
        assert_eq!(due(74), None, "a search may defer 300 s of 375");
        schedule.is_all_requested = false;
        let due = |seconds| schedule.due(INTERVAL, false, now + Duration::from_secs(seconds));
        assert_eq!([374, 375].map(due), [None, Some(Scope::All)]);
    }

    #[test]
    fn requested_search_runs_once_at_its_time() {
        let (mut schedule, now) = (ScanSchedule::default(), Instant::now());
        schedule.started(Scope::All, now);
        let at = now + Duration::from_millis(200);
        schedule.search_at(at);
        schedule.search_at(at + Duration::from_secs(1));
        let due = |schedule: &ScanSchedule, at| schedule.due(INTERVAL, false, at);
        assert_eq!((schedule.next_search(), due(&schedule, now)), (Some(at), None));
        assert_eq!(due(&schedule, at), Some(Scope::New));
        schedule.started(Scope::New, at);
        assert_eq!((schedule.next_search(), due(&schedule, at)), (None, None));
    }
}
