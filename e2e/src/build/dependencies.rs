//! `cargo dependencies`: whether each dependency has a licence and a source that `deny.toml` allows, and which are there twice.
//! It needs no network but Cargo's registry.

use std::process::ExitCode;

use super::cargo_tools::DENY;
use anyhow::{Context as _, Result};

/// Checks them.
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
