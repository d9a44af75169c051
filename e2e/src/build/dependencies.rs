//! `cargo dependencies`: checks that each dependency has a licence and a source that `deny.toml` allows, and that none is there in two
//! versions. It needs no network except Cargo's registry.

use std::process::ExitCode;

use super::cargo_tools::DENY;
use anyhow::{Context as _, Result};

/// Checks the dependencies.
///
/// # Errors
///
/// When cargo-deny cannot be built or run.
pub fn run() -> Result<ExitCode> {
    let mut deny = DENY.command()?;
    let status = deny
        .args(["--locked", "--workspace", "--all-features", "check", "bans", "licenses", "sources"])
        .status()
        .context("cannot run cargo-deny")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
