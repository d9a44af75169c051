//! Some lanes run at once; the test binaries of a lane run one after the other. Each group of scenarios has its own cluster, and so its own
//! lane; the tests of what ships have one, and all other tests share one. No lane may depend on files of another.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::iter;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::output::{Counts, Failure, FailureList};
use super::test_binaries::TestBinary;
use crate::build::cargo::{cargo, project};
use crate::cluster::kept_audit_log;
use crate::kube::audit_log::AUDIT_LOGS;

/// The groups of scenarios, those that take longest first. Their API requests are checked afterwards.
const SCENARIOS: [&str; 5] = ["real_node", "security", "lifecycle", "observability", "quiet"];
/// Tests that wait for long builds.
const ARTIFACTS: [&str; 2] = ["images", "release"];
/// The test that reads the audit logs of all scenarios.
const AFTER: &str = "api_requests";

/// Binaries that run one after the other.
pub(super) struct Lane {
    pub(super) name: &'static str,
    binaries: Vec<TestBinary>,
    with_doc_tests: bool,
    /// Whether its compilers leave the processors to the clusters of the other lanes.
    has_low_priority: bool,
}

pub(super) struct Lanes {
    /// They run beside each other, as many at once as there is room for.
    pub(super) beside: Vec<Lane>,
    /// It runs after all others have ended.
    pub(super) after: Lane,
}

/// The outcome of a lane.
#[derive(Debug, Default)]
pub(super) struct LaneOutcome {
    pub(super) counts: Counts,
    pub(super) failed: Vec<Failure>,
    pub(super) took: Duration,
    /// Binaries that ended with an error, even if they named no failed test.
    pub(super) broken: Vec<String>,
}

/// Assigns each binary to a lane.
pub(super) fn lanes(binaries: Vec<TestBinary>) -> Lanes {
    let lane = |name| Lane { name, binaries: vec![], with_doc_tests: false, has_low_priority: false };
    let mut beside: Vec<_> = SCENARIOS.iter().map(|name| lane(*name)).collect();
    let mut artifacts = Lane { has_low_priority: true, ..lane("artifacts") };
    let mut others = Lane { with_doc_tests: true, ..lane("others") };
    let mut after = lane("after all");
    for binary in binaries {
        match beside.iter_mut().find(|lane| lane.name == binary.name) {
            Some(lane) => lane.binaries.push(binary),
            None if ARTIFACTS.contains(&&*binary.name) => artifacts.binaries.push(binary),
            None if binary.name == AFTER => after.binaries.push(binary),
            None => others.binaries.push(binary),
        }
    }
    beside.extend([artifacts, others]);
    Lanes { beside, after }
}

/// The environment of the binary that runs after a complete run.
pub(super) fn after_all() -> Result<Vec<(&'static str, String)>> {
    let logs = SCENARIOS
        .iter()
        .map(|name| kept_audit_log(&name.replace('_', "-")).map(|path| path.display().to_string()));
    Ok(vec![(AUDIT_LOGS, logs.collect::<Result<Vec<_>>>()?.join(":"))])
}

impl Lanes {
    /// Runs those that run beside each other, in their order: one more than there are processors, since most of a lane is waiting. Five
    /// clusters on two processors answer so late that the operator's requests time out and its leader changes. A lane of low
    /// priority waits for no other.
    pub(super) fn run_beside(
        &self,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> Vec<(&'static str, Result<LaneOutcome>)> {
        let run = |lane: &Lane| (lane.name, lane.run(arguments, environment));
        let (low, usual): (Vec<_>, Vec<_>) = self.beside.iter().partition(|lane| lane.has_low_priority);
        let waiting = Mutex::new(usual.into_iter());
        let next = || waiting.lock().ok()?.next();
        let at_once = thread::available_parallelism().map_or(1, usize::from) + 1;
        let mut outcomes: BTreeMap<_, _> = thread::scope(|scope| {
            let usual =
                (0..at_once).map(|_| scope.spawn(|| iter::from_fn(next).map(run).collect::<Vec<_>>()));
            let low = low.into_iter().map(|lane| scope.spawn(move || vec![run(lane)]));
            let threads: Vec<_> = usual.chain(low).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        let mut outcome =
            |name| outcomes.remove(name).unwrap_or_else(|| Err(anyhow!("the lane {name} panicked")));
        self.beside.iter().map(|lane| (lane.name, outcome(lane.name))).collect()
    }
}

impl Lane {
    /// Runs its binaries. Each line that they print is passed on under the lane's name.
    pub(super) fn run(&self, arguments: &[String], environment: &[(&str, String)]) -> Result<LaneOutcome> {
        let begun = Instant::now();
        let mut outcome = LaneOutcome::default();
        for binary in &self.binaries {
            let mut command = binary.command();
            if self.has_low_priority {
                command = with_low_priority(&command);
            }
            command.args(arguments);
            self.run_one(&binary.name, command, environment, &mut outcome)?;
        }
        if self.with_doc_tests {
            let mut command = cargo(&project());
            command.args(["test", "--workspace", "--doc", "--quiet", "--"]).args(arguments);
            self.run_one("doc tests", command, environment, &mut outcome)?;
        }
        outcome.took = begun.elapsed();
        Ok(outcome)
    }

    fn run_one(
        &self,
        name: &str,
        mut command: Command,
        environment: &[(&str, String)],
        outcome: &mut LaneOutcome,
    ) -> Result<()> {
        let begun = Instant::now();
        println!("[{}] running {name}", self.name);
        // One pipe for both, so that lines keep their order.
        let (reader, writer) = std::io::pipe()?;
        command.envs(environment.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut process = command.spawn().with_context(|| format!("cannot run {name}"))?;
        // It holds the pipe's other end, too, and so would we.
        drop(command);
        let mut failures = FailureList::default();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("[{}] {line}", self.name);
            outcome.failed.extend(failures.read(&line));
            if let Some(counts) = Counts::parse(&line) {
                outcome.counts.add(counts);
            }
        }
        if !process.wait()?.success() {
            outcome.broken.push(name.to_owned());
        }
        println!("[{}] {name} took {:.0} s", self.name, begun.elapsed().as_secs_f32());
        Ok(())
    }
}

/// The command as a process that gets a tenth of the CPU time of one with the usual priority, by nice(1).
fn with_low_priority(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        nice.current_dir(directory);
    }
    nice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_priority_keeps_arguments_environment_and_directory() {
        let mut script = Command::new("sh");
        script.args(["-c", "pwd; echo $ADDED ${HOME-removed}"]).env("ADDED", "yes").env_remove("HOME");
        let ran = with_low_priority(script.current_dir("/")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "/\nyes removed\n");
    }

    #[test]
    fn each_lane_has_an_outcome_in_its_place() {
        let lane =
            |name| Lane { name, binaries: vec![], with_doc_tests: false, has_low_priority: name == "low" };
        let names = ["1", "2", "low", "3", "4", "5", "6", "7"];
        let lanes = Lanes { beside: names.map(lane).into(), after: lane("after") };
        let outcomes = lanes.run_beside(&[], &[]);
        assert_eq!(outcomes.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    }

    #[test]
    fn each_scenario_group_has_its_own_lane() {
        let binary =
            |name: &str| TestBinary { name: name.into(), package: "/".into(), executable: "/x".into() };
        let names = |lane: &Lane| lane.binaries.iter().map(|binary| binary.name.clone()).collect::<Vec<_>>();
        let Lanes { beside, after } = lanes(
            ["security", "chart", "images", "release", "api_requests", "e2e (unit tests)"].map(binary).into(),
        );
        let of = |name: &str| names(beside.iter().find(|lane| lane.name == name).unwrap());
        assert_eq!(of("security"), ["security"]);
        assert_eq!(of("artifacts"), ["images", "release"]);
        assert_eq!(of("others"), ["chart", "e2e (unit tests)"]);
        assert_eq!(of("lifecycle"), Vec::<String>::new());
        assert_eq!(names(&after), ["api_requests"]);
    }
}
