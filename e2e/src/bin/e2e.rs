//! `cargo e2e`: every test there is. Prepares what they need with progress, runs `cargo test`, and adds up what its
//! runners say.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use e2e::images::Image;
use e2e::oci_image::Platform;
use e2e::{Setup, chaos, pause_image, prerequisites};

/// Set by a gate that must not pass with tests skipped, those that need a node above all.
const REQUIRE_NODE: &str = "SANDBOX_HEALTH_REQUIRE_NODE";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    match prerequisites::missing() {
        None => drop(Setup::prepare(&Image::ALL)?),
        Some(lack) if std::env::var_os(REQUIRE_NODE).is_some() => bail!("{REQUIRE_NODE} is set, and {lack}"),
        Some(lack) => eprintln!("tests that need a node will be skipped: {lack}"),
    }
    for platform in Platform::ALL {
        match pause_image::lacking(platform)? {
            None => pause_image::ensure_compiler(platform)?,
            Some(lack) => eprintln!("tests of the pause image for {platform} will be skipped: {lack}"),
        }
    }
    let chaos::Arguments { environment, rest } = chaos::from_arguments(std::env::args().skip(1))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut testing = Command::new(cargo)
        .args(["test", "--workspace", "--no-fail-fast"])
        // Options after `--` are for the runners, such as a part of a test's name.
        .args(rest.first().map(|_| "--"))
        .args(&rest)
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut total = Counts::default();
    for line in BufReader::new(testing.stdout.take().context("cargo has no stdout")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(counts) = Counts::of(&line) {
            total.add(&counts);
        }
    }
    let status = testing.wait()?;
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.ignored);
    if std::env::var_os(REQUIRE_NODE).is_some() && total.ignored > 0 {
        bail!("{REQUIRE_NODE} is set, and tests were skipped (each says why)");
    }
    Ok(if status.success() && total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What one runner sums up in its last line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
    fn of(line: &str) -> Option<Self> {
        let mut counts = Self::default();
        let (_, counted) = line.strip_prefix("test result: ")?.split_once(". ")?;
        for part in counted.split("; ") {
            let (number, what) = part.split_once(' ')?;
            match what {
                "passed" => counts.passed = number.parse().ok()?,
                "failed" => counts.failed = number.parse().ok()?,
                "ignored" => counts.ignored = number.parse().ok()?,
                _ => {}
            }
        }
        Some(counts)
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runners_of_both_kinds_are_understood() {
        let libtest =
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(Counts::of(libtest), Some(Counts { passed: 3, failed: 0, ignored: 1 }));
        let mimic = "test result: FAILED. 26 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 33.02s";
        assert_eq!(Counts::of(mimic), Some(Counts { passed: 26, failed: 1, ignored: 0 }));
        assert_eq!(Counts::of("test a ... ok"), None);
    }
}
