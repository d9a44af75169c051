//! `cargo e2e`: builds every test once, runs the test binaries in lanes, and sums up their results. [`lanes`] assigns binaries to
//! lanes, [`output`] parses what runners print, [`summary`] prints the summary. Tests are not here.

pub mod arguments;
mod lanes;
mod output;
mod summary;
mod test_binaries;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use self::arguments::Arguments;
use self::lanes::{Lane, after_all, lanes};
use self::summary::Summary;
use crate::build::oci::Platform;
use crate::build::{Image, Setup, pause_image, preflight};
use crate::host::cache;
use crate::host::lock::Lock;
use crate::trial::DURATIONS;

/// Set by a gate that must not pass if a test is skipped, above all one that needs a node.
const REQUIRE_NODE: &str = "SANDBOX_HEALTH_REQUIRE_NODE";

/// The arguments of `cargo e2e`.
#[derive(clap::Args)]
pub struct CommandLine {
    /// Parts of names of tests; `--long` for the long run, `--kubernetes 1.33` for another Kubernetes than the newest (by
    /// default only the demo's steps run there), `--kills N` and `--seed N` for the randomized restart test, and options of the tests'
    /// runners such as `--exact`
    #[arg(value_name = "NAME", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the tests.
///
/// # Errors
///
/// When they cannot be built, or the gate requires something that this machine does not have.
pub fn run(line: CommandLine) -> Result<ExitCode> {
    let must_not_skip = std::env::var_os(REQUIRE_NODE).is_some();
    let arguments = Arguments::parse(line.words)?;
    // Nodes of one name exclude each other, and two cores are not enough for two runs.
    let _lock = Lock::wait(&cache::root()?.join("e2e.lock"), "cargo e2e")?;
    prepare(must_not_skip)?;
    let durations = Durations::new()?;
    let mut environment = arguments.environment.clone();
    environment.push((DURATIONS, durations.0.display().to_string()));
    let begun = Instant::now();
    let binaries = test_binaries::build()?;
    let built = begun.elapsed();
    let lanes = lanes(binaries);
    let mut summary = Summary::default();
    for (name, outcome) in lanes.run_beside(&arguments.runners, &environment) {
        summary.add(name, outcome);
    }
    if arguments.is_everything() && summary.is_success() {
        environment.extend(after_all()?);
    }
    summary.add(lanes.after.name, Lane::run(&lanes.after, &arguments.runners, &environment));
    summary.print(built, begun.elapsed(), &durations.read());
    if must_not_skip && summary.total().ignored > 0 {
        bail!("{REQUIRE_NODE} is set, and tests were skipped (each line above gives the reason)");
    }
    Ok(if summary.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs and builds the requirements of tests, or reports which tests will be skipped.
fn prepare(must_not_skip: bool) -> Result<()> {
    match preflight::missing() {
        None => drop(Setup::prepare(&Image::ALL)?),
        Some(missing) if must_not_skip => bail!("{REQUIRE_NODE} is set, and {missing}"),
        Some(missing) => eprintln!("tests that need a node will be skipped: {missing}"),
    }
    for platform in Platform::ALL {
        match pause_image::missing(platform)? {
            None => pause_image::ensure_compiler(platform)?,
            Some(missing) => eprintln!("tests of the pause image for {platform} will be skipped: {missing}"),
        }
    }
    Ok(())
}

/// The file that tests append their durations to. It is removed when this value is dropped.
struct Durations(PathBuf);

impl Durations {
    fn new() -> Result<Self> {
        let directory = cache::root()?;
        std::fs::create_dir_all(&directory)?;
        Ok(Self(directory.join(format!("durations-{}", std::process::id()))))
    }

    fn read(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Durations {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
