//! The pause image as it ships: an OCI archive for every platform, built from a checkout and nothing else. The same commit, compilers and
//! name give the same bytes. `pause/Containerfile` builds the same image with Docker.

mod command;
mod programs;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use command::{CommandLine, run};
#[cfg(feature = "measure")]
pub(crate) use programs::pause_program;
pub use programs::{ensure_compiler, missing};

use crate::build::cargo;
use crate::build::oci::{About, Archive, Platform, archive};
use crate::names;

const ABOUT: About = About {
    program: "pause",
    arguments: &[pause_status::ROOM_ARGUMENT],
    description: "PID 1 of a Kubernetes pod sandbox that shows what it reaped",
    user: "65535:65535",
};

/// The compiler that builds the binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    /// The user's if it supports the platform, else Debian's.
    User,
    /// Debian's for all platforms, so that all of a release is built by one compiler.
    Debian,
}

/// The inputs of an archive.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The checkout.
    pub project: PathBuf,
    /// The name under which a container runtime imports it.
    pub name: String,
    /// In the order in which the index has them.
    pub platforms: Vec<Platform>,
    /// The compiler of the binaries.
    pub compiler: Compiler,
    /// The commit, for the label; see [`crate::build::oci::revision`].
    pub revision: Option<String>,
    /// Variables that are added to Cargo's environment.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Recipe {
    /// The inputs from the checkout that this crate was built from, without a revision.
    #[must_use]
    pub fn of_this_project(platforms: &[Platform]) -> Self {
        Self {
            project: cargo::project(),
            name: names::PAUSE.into(),
            platforms: platforms.into(),
            compiler: Compiler::User,
            revision: None,
            environment: vec![],
        }
    }

    /// Builds the binaries and packs them.
    ///
    /// # Errors
    ///
    /// When a binary cannot be built, or its compiler cannot be downloaded.
    pub fn build(&self) -> Result<Archive> {
        let mut programs = vec![];
        for &platform in &self.platforms {
            let path = programs::build(&self.project, platform, self.compiler, &self.environment)?;
            let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            programs.push((platform, program));
        }
        archive(&ABOUT, &self.name, self.revision.as_deref(), &programs)
    }
}
