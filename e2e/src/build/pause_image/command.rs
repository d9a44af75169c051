//! `cargo pause-image`: writes the pause image as it ships, an OCI archive for every platform. It needs no root, no Docker and no buildah.
//! The digest and the sizes go to stdout, progress to stderr.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::build::oci::{Platform, revision};
use crate::build::pause_image::Recipe;
use crate::names;
use anyhow::{Context as _, Result};
use clap::Parser;

/// Writes the pause image as an OCI archive, for `ctr images import`, `podman load`, `skopeo copy oci-archive:…` and others.
#[derive(Parser)]
#[command(bin_name = "cargo pause-image --")]
pub struct CommandLine {
    /// Path of the archive
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A platform of the image; may be repeated [default: all]
    #[arg(long = "platform", value_name = "PLATFORM")]
    platforms: Vec<Platform>,
    /// The name under which a container runtime imports the image
    #[arg(long, default_value = names::PAUSE)]
    name: String,
}

/// Writes the archive.
///
/// # Errors
///
/// When it cannot be built or written.
pub fn run(CommandLine { output, mut platforms, name }: CommandLine) -> Result<ExitCode> {
    if platforms.is_empty() {
        platforms.extend(Platform::ALL);
    }
    platforms.sort();
    platforms.dedup();
    let mut recipe = Recipe::of_this_project(&platforms);
    recipe.revision = revision(&recipe.project);
    recipe.name = name;
    let archive = recipe.build()?;
    // The rename is atomic: a reader finds the old or the new archive.
    let mut partial = output.clone().into_os_string();
    partial.push(".partial");
    fs::write(&partial, &archive.bytes)
        .and_then(|()| fs::rename(&partial, &output))
        .with_context(|| format!("writing {}", output.display()))?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "{}@{}", recipe.name, archive.digest)?;
    for size in &archive.sizes {
        writeln!(out, "{}: program {} bytes, image {} bytes", size.platform, size.program, size.image)?;
    }
    writeln!(out, "{}: {} bytes", output.display(), archive.bytes.len())?;
    Ok(ExitCode::SUCCESS)
}
