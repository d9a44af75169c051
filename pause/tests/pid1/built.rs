//! The pause program, built by Cargo as its users build it. Shared with the benchmark.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

/// The pause program as it ships, built once for all tests.
pub(crate) fn shipped() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| build(&["pause"]).map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// The same with a status each millisecond, in a target directory of its own: Cargo would overwrite the other.
pub(crate) fn hasty() -> Result<PathBuf> {
    let target = shipped()?.ancestors().nth(2).context("a program in no target folder")?.join("hasty");
    let target = target.to_str().context("a path in UTF-8")?;
    build(&["pause", "--features", "hasty", "--target-dir", target])
}

fn build(arguments: &[&str]) -> Result<PathBuf> {
    let built = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--quiet", "--message-format", "json"])
        .output()
        .context("running cargo")?;
    ensure!(built.status.success(), "cargo build: {}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout)?;
    let path = messages.split("\"executable\":\"").nth(1).and_then(|rest| rest.split('"').next());
    Ok(path.context("cargo named no executable")?.into())
}
