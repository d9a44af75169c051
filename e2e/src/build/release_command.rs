//! `cargo release-artifacts`: builds a release into one folder (`e2e::build::release`). It needs Cargo, Go and Debian's apt-get, and
//! neither root nor Docker. The checksums are its output, all else is progress on stderr.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::build::release;
use anyhow::Result;
use clap::Parser;

/// Builds a release: the images and the packaged chart, a bill of materials for each binary, the packages of the toolchain, and
/// checksums of all.
#[derive(Parser)]
#[command(bin_name = "cargo release-artifacts --")]
pub struct CommandLine {
    /// The folder that it is written to; it must be empty, or not be there yet
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// The registry (and path in it) that the images are named by, and that the chart takes its image from
    #[arg(long, default_value = "localhost/sandbox-health")]
    registry: String,
}

/// Builds the release.
///
/// # Errors
///
/// When a part cannot be built.
pub fn run(CommandLine { output, registry }: &CommandLine) -> Result<ExitCode> {
    let checksums = release::build(output, registry)?;
    std::io::stdout().write_all(&fs::read(checksums)?)?;
    Ok(ExitCode::SUCCESS)
}
