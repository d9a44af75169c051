//! The operator's program and image as they ship. The program must not depend on who builds it, nor where, but for the
//! compiler, the linker and what Cargo's own configuration files say of them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::cargo::{cargo, executable, folders, host_triple, without_the_users_flags};
use crate::build::debian_toolchain;
use crate::build::oci::{About, Archive, Platform, archive};

const ABOUT: About = About {
    program: "sandbox-health",
    arguments: &[],
    description: "Agent and controller that show the restarts and zombies of Kubernetes pod sandboxes",
    user: "64535:64535",
};

/// Static, for its image holds nothing else.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Builds it for this machine with the user's compiler, as the node of the tests runs it.
pub(crate) fn program(project: &Path) -> Result<PathBuf> {
    let triple = host_triple()?;
    let mut flags = vec![STATIC.to_owned()];
    // Panics name the file that they are in.
    for (folder, name) in folders(project, &[])? {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    // A list of strings is written alike in JSON and TOML.
    let flags = format!("target.{triple}.rustflags={}", serde_json::to_string(&flags)?);
    let mut build = build_command(project);
    executable(build.args(["--target", &triple, "--config", &flags])).context("the operator's program")
}

/// Builds it for a platform as it ships, with Debian's compiler. `environment` is what Cargo is given besides its own.
///
/// # Errors
///
/// When it cannot be built, or the compiler not be fetched.
pub fn released_program(
    project: &Path,
    platform: Platform,
    environment: &[(&'static str, OsString)],
) -> Result<PathBuf> {
    let mut build = build_command(project);
    build.arg("--locked").envs(environment.iter().map(|(name, value)| (name, value)));
    debian_toolchain::configure(&mut build, platform, project, environment, &[STATIC])?;
    executable(&mut build).with_context(|| format!("the operator's program for {platform}"))
}

fn build_command(project: &Path) -> Command {
    let mut build = cargo(project);
    without_the_users_flags(&mut build);
    build.args(["build", "--release", "--package", "sandbox-health"]);
    build
}

/// The image of a release for both platforms, as a container runtime imports it by this name.
///
/// # Errors
///
/// When a program cannot be built.
pub(crate) fn image(project: &Path, name: &str, revision: Option<&str>) -> Result<Archive> {
    let mut programs = vec![];
    for platform in Platform::ALL {
        let path = released_program(project, platform, &[])?;
        let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        programs.push((platform, program));
    }
    archive(&ABOUT, name, revision, &programs)
}
