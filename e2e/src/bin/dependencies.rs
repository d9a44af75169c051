//! `cargo dependencies`: whether each dependency has a licence and a source that `deny.toml` allows, and which are there twice.
//! It needs no network but Cargo's registry.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use e2e::cargo_tools::DENY;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dependencies: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut deny = DENY.command()?;
    let status = deny
        .args(["--locked", "--workspace", "--all-features", "check", "bans", "licenses", "sources"])
        .status()
        .context("cannot run cargo-deny")?;
    Ok(status.success())
}
