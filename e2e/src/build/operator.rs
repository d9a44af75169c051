//! The operator's program and image as they ship. The program must not depend on who builds it, nor where, but for the
//! compiler, the linker and what Cargo's own configuration files say of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::cargo::{cargo, executable, folders, host_triple, without_the_users_flags};
use crate::build::oci::{About, Archive, Platform, archive};

const ABOUT: About = About {
    program: "sandbox-health",
    arguments: &[],
    description: "Agent and controller that show the restarts and zombies of Kubernetes pod sandboxes",
    user: "64535:64535",
};

/// Builds the program in a checkout: static, for its image holds nothing else.
pub(crate) fn program(project: &Path) -> Result<PathBuf> {
    let triple = host_triple()?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // Panics name the file that they are in.
    for (folder, name) in folders(project)? {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    // A list of strings is written alike in JSON and TOML.
    let flags = format!("target.{triple}.rustflags={}", serde_json::to_string(&flags)?);
    let mut build = cargo(project);
    without_the_users_flags(&mut build);
    build.args([
        "build",
        "--release",
        "--package",
        "sandbox-health",
        "--target",
        &triple,
        "--config",
        &flags,
    ]);
    executable(&mut build).context("the operator's program")
}

/// The image for this machine's platform, as a container runtime imports it by this name.
///
/// # Errors
///
/// When the program cannot be built, or this machine's architecture is none that an image is made for.
pub(crate) fn image(project: &Path, name: &str, revision: Option<&str>) -> Result<Archive> {
    let platform = Platform::host().context("there is no image for this machine's architecture")?;
    let path = program(project)?;
    let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    archive(&ABOUT, name, revision, &[(platform, program)])
}
