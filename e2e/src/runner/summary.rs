//! What `cargo e2e` prints at its end: how long each lane and the slowest tests took, what failed, and the counts.

use std::time::Duration;

use anyhow::Result;

use super::lanes::LaneOutcome;
use super::output::{Counts, Failure};

/// Number of the slowest tests that are listed.
const SLOWEST: usize = 10;

/// The outcomes of all lanes.
#[derive(Default)]
pub(super) struct Summary {
    lanes: Vec<(&'static str, LaneOutcome)>,
    errors: Vec<String>,
}

impl Summary {
    pub(super) fn add(&mut self, lane: &'static str, outcome: Result<LaneOutcome>) {
        match outcome {
            Ok(outcome) => self.lanes.push((lane, outcome)),
            Err(error) => self.errors.push(format!("{lane}: {error:#}")),
        }
    }

    pub(super) fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, lane) in &self.lanes {
            total.add(lane.counts);
        }
        total
    }

    /// A run without a test is no success.
    pub(super) fn is_success(&self) -> bool {
        let total = self.total();
        let is_broken = self.lanes.iter().any(|(_, lane)| !lane.broken.is_empty());
        self.errors.is_empty() && !is_broken && total.failed == 0 && total.passed > 0
    }

    /// `durations` has a line for each test: milliseconds, a tab, its name.
    pub(super) fn print(&self, built: Duration, took: Duration, durations: &str) {
        println!("\nbuilding the tests took {}, lanes:", minutes(built));
        for (name, lane) in &self.lanes {
            let Counts { passed, failed, ignored } = lane.counts;
            println!(
                "  {:>6}  {name}: {passed} passed, {failed} failed, {ignored} skipped",
                minutes(lane.took)
            );
        }
        println!("  {:>6}  altogether\n\nthe slowest tests:", minutes(took));
        for (duration, name) in slowest(durations) {
            println!("  {:>6}  {name}", minutes(duration));
        }
        let mut problems = self.errors.clone();
        for (lane, outcome) in &self.lanes {
            problems.extend(outcome.failed.iter().map(|Failure { test, output }| {
                let output: String = output.iter().map(|line| format!("\n    {line}")).collect();
                format!("{test} (lane {lane}){output}")
            }));
            if outcome.failed.is_empty() {
                problems.extend(outcome.broken.iter().map(|binary| format!("{binary} (lane {lane})")));
            }
        }
        if !problems.is_empty() {
            println!("\nfailed; the complete output of each is above, after its lane's name:");
        }
        for problem in problems {
            println!("  {problem}");
        }
        let Counts { passed, failed, ignored } = self.total();
        println!("\n{passed} passed, {failed} failed, {ignored} skipped");
    }
}

fn slowest(durations: &str) -> Vec<(Duration, &str)> {
    let parse = |line| -> Option<(Duration, &str)> {
        let (millis, name) = str::split_once(line, '\t')?;
        Some((Duration::from_millis(millis.parse().ok()?), name))
    };
    let mut tests: Vec<_> = durations.lines().filter_map(parse).collect();
    tests.sort_by_key(|(duration, _)| std::cmp::Reverse(*duration));
    tests.truncate(SLOWEST);
    tests
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: u64, broken: &[&str]) -> LaneOutcome {
        let broken = broken.iter().map(|name| (*name).to_owned()).collect();
        LaneOutcome { counts: Counts { passed, ..Counts::default() }, broken, ..LaneOutcome::default() }
    }

    #[test]
    fn run_without_tests_is_no_success() {
        let mut summary = Summary::default();
        summary.add("a", Ok(outcome(0, &[])));
        assert!(!summary.is_success());
        summary.add("b", Ok(outcome(1, &[])));
        assert!(summary.is_success());
    }

    #[test]
    fn broken_binary_and_failed_lane_are_no_success() {
        for bad in [Ok(outcome(1, &["chart"])), Err(anyhow::anyhow!("no pipe"))] {
            let mut summary = Summary::default();
            summary.add("a", Ok(outcome(1, &[])));
            summary.add("b", bad);
            assert!(!summary.is_success());
        }
    }

    #[test]
    fn slowest_tests_come_first() {
        let durations = "5\tquick\n90000\tslow\nnot a line\n700\tbetween\n";
        let names: Vec<_> = slowest(durations).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["slow", "between", "quick"]);
        assert_eq!(minutes(Duration::from_secs(125)), "2:05");
    }
}
