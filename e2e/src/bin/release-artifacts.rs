//! `cargo release-artifacts`: builds a release into one folder (`e2e::release`). It needs Rust and Go, and neither root nor
//! Docker. The checksums are its output, all else is progress on stderr.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use e2e::release;

/// Builds a release: the images and the packaged chart, a bill of materials for each program, and checksums of all.
#[derive(Parser)]
#[command(name = "cargo release-artifacts --", bin_name = "cargo release-artifacts --")]
struct CommandLine {
    /// The folder that it is written to; it must be empty, or not be there yet
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// The registry (and path in it) that the images are named by, and that the chart takes its image from
    #[arg(long, default_value = "localhost/sandbox-health")]
    registry: String,
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("release-artifacts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(CommandLine { output, registry }: &CommandLine) -> Result<()> {
    let checksums = release::build(output, registry)?;
    std::io::stdout().write_all(&fs::read(checksums)?)?;
    Ok(())
}
