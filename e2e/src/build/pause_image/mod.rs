//! The pause image as it ships: an OCI archive for every platform, made from a checkout and nothing else. The same
//! commit, compilers and name give the same bytes. `pause/Containerfile` makes the same image for those who have Docker.

mod command;
mod programs;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use command::{CommandLine, run};
#[cfg(feature = "measure")]
pub(crate) use programs::pause_program;
pub use programs::{ensure_compiler, lacking};

use crate::build::cargo;
use crate::build::oci::{About, Archive, Platform, archive};
use crate::names;

const ABOUT: About = About {
    program: "pause",
    arguments: &[pause_status::ROOM_ARGUMENT],
    description: "PID 1 of a Kubernetes pod sandbox that shows what it reaped",
    user: "65535:65535",
};

/// The compiler that binaries are built by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    /// The user's where it knows the platform, else Debian's.
    User,
    /// Debian's for all platforms, so that all of a release is built by one compiler.
    Debian,
}

/// What an archive is made from.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The checkout.
    pub project: PathBuf,
    /// The name that a container runtime imports it by.
    pub name: String,
    /// In the order in which the index has them.
    pub platforms: Vec<Platform>,
    /// What the binaries are built by.
    pub compiler: Compiler,
    /// The commit, for the label; see [`crate::build::oci::revision`].
    pub revision: Option<String>,
    /// What Cargo is told besides our own environment.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Recipe {
    /// From the checkout that this program was built from, without a revision.
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

    /// Builds the programs and packs them.
    ///
    /// # Errors
    ///
    /// When a program cannot be built, or its compiler not be fetched.
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
