//! `cargo release-artifacts`: builds a release into one directory (`e2e::build::release`). It needs Cargo, Go and Debian's apt-get, and
//! neither root nor Docker. The checksums go to stdout, progress to stderr.

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
    /// The output directory; it must be empty or not exist
    #[arg(long, value_name = "DIRECTORY")]
    output: PathBuf,
    /// The registry (and path in it) of the images' names, from which the chart takes its image
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
