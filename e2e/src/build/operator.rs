//! The operator's binary and image as they ship. The binary must depend only on the compiler, the linker and Cargo's own configuration
//! files, not on the user or the directory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::cargo::{cargo, directories, executable, host_triple, remove_user_flags};
use crate::build::debian_toolchain;
use crate::build::oci::{About, Archive, Platform, archive};

const ABOUT: About = About {
    program: "sandbox-health",
    arguments: &[],
    description: "Agent and controller that show the restarts and zombies of Kubernetes pod sandboxes",
    user: "64535:64535",
};

/// Static, because its image has nothing else in it. Packed relocations are 0.4 MiB smaller, all of which each start reads; glibc applies them
/// since 2.36.
const FLAGS: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs"];

/// Builds the binary for this machine with the user's compiler, for the nodes of the tests.
pub(crate) fn build(project: &Path) -> Result<PathBuf> {
    let triple = host_triple()?;
    let mut flags = FLAGS.map(str::to_owned).to_vec();
    // Messages of panics have paths of source files.
    for (directory, name) in directories(project, &[])? {
        flags.push(format!("--remap-path-prefix={}={name}", directory.display()));
    }
    // A list of strings has the same syntax in JSON and TOML.
    let flags = format!("target.{triple}.rustflags={}", serde_json::to_string(&flags)?);
    let mut build = build_command(project);
    executable(build.args(["--target", &triple, "--config", &flags])).context("the operator's binary")
}

/// Builds the binary as it ships for a platform, with Debian's compiler. `environment` is added to Cargo's environment.
///
/// # Errors
///
/// When it cannot be built, or the compiler cannot be downloaded.
pub fn build_released(
    project: &Path,
    platform: Platform,
    environment: &[(&'static str, OsString)],
) -> Result<PathBuf> {
    let mut build = build_command(project);
    build.arg("--locked").envs(environment.iter().map(|(name, value)| (name, value)));
    debian_toolchain::configure(&mut build, platform, project, environment, &FLAGS)?;
    executable(&mut build).with_context(|| format!("the operator's binary for {platform}"))
}

fn build_command(project: &Path) -> Command {
    let mut build = cargo(project);
    remove_user_flags(&mut build);
    build.args(["build", "--release", "--package", "sandbox-health"]);
    build
}

/// The image of a release for both platforms, which a container runtime imports under this name.
///
/// # Errors
///
/// When a binary cannot be built.
pub(crate) fn image(project: &Path, name: &str, revision: Option<&str>) -> Result<Archive> {
    let mut programs = vec![];
    for platform in Platform::ALL {
        let path = build_released(project, platform, &[])?;
        let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        programs.push((platform, program));
    }
    archive(&ABOUT, name, revision, &programs)
}
