//! Tests whose runner is libtest-mimic: a test that cannot run on this machine is reported as ignored with the reason, and each test's
//! duration is recorded for the summary of `cargo e2e`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Completion, Failed, Trial};

/// A file that each test appends its duration to. `cargo e2e` sets it.
pub(crate) const DURATIONS: &str = "SANDBOX_HEALTH_DURATIONS";

/// A test that is ignored if `missing` returns a missing requirement of this machine. It is called when the test starts.
pub fn trial(
    name: &str,
    missing: impl FnOnce() -> Option<String> + Send + 'static,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    let recorded = name.to_owned();
    Trial::ignorable_test(name, move || {
        if let Some(missing) = missing() {
            return Ok(Completion::ignored_with(missing));
        }
        let begun = Instant::now();
        let outcome = test();
        record(&recorded, begun.elapsed());
        outcome.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Requires nothing of the machine.
#[must_use]
pub fn nothing() -> Option<String> {
    None
}

/// Requires root.
#[must_use]
pub fn root() -> Option<String> {
    (!nix::unistd::geteuid().is_root()).then(|| "root is needed".to_owned())
}

/// An incomplete summary must not fail a test.
fn record(name: &str, duration: Duration) {
    let Some(file) = std::env::var_os(DURATIONS) else { return };
    let line = format!("{}\t{name}\n", duration.as_millis());
    let file = OpenOptions::new().append(true).create(true).open(Path::new(&file));
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}
