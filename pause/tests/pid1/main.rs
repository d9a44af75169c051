//! Tests of the pause program as it ships, as PID 1 of its own PID namespace. Most need root, for the namespace; without it they are
//! reported as ignored.

mod built;
mod degraded;
mod helper;
mod peers;
mod program;
mod reaping;
mod sandbox;
mod signals;
mod status;
mod status_file;
mod upstream;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test and its name.
type Named = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    helper::run_if_asked();
    let root = nix::unistd::geteuid().is_root();
    let trial = |(name, test): Named| Trial::test(name, move || ran(test()));
    let needs_root =
        |named| trial(named).with_ignored_flag(!root).with_kind(if root { "" } else { "needs root" });
    let mut tests: Vec<_> = program::TESTS.into_iter().map(trial).collect();
    for topic in [reaping::TESTS, signals::TESTS, status::TESTS, status_file::TESTS, degraded::TESTS] {
        tests.extend(topic.iter().copied().map(needs_root));
    }
    tests.extend(peers::tests(root));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn ran(outcome: Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| format!("{error:#}").into())
}

/// A negative control: the same check must fail, and for the reason that it checks.
fn must_fail(outcome: Result<()>, why: &str) -> Result<()> {
    match outcome {
        Ok(()) => bail!("the check passes with a PID 1 that never waits: it shows nothing"),
        Err(error) if error.to_string().contains(why) => Ok(()),
        Err(error) => Err(error).context("the control failed, but for another reason"),
    }
}
