//! Tools that a release, the gate or `cargo docs` runs, at fixed versions. `cargo install` builds each once into the cache; nothing is
//! installed into the user's own directories.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::build::cargo::{cargo, project};
use crate::host::cache;
use crate::host::lock::Lock;

/// A tool whose binary has the name of its package.
pub struct Tool {
    name: &'static str,
    version: &'static str,
    options: &'static [&'static str],
}

/// Writes a bill of materials from Cargo.lock.
pub const CYCLONEDX: Tool = Tool { name: "cargo-cyclonedx", version: "0.5.9", options: &[] };
/// Checks licences, sources and duplicates of dependencies. Without its default features it cannot fetch advisories, which the
/// gate has no network for.
pub const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", options: &["--no-default-features"] };
/// Makes a site of docs/. Without its default features it does not watch files.
pub const MDBOOK: Tool = Tool {
    name: "mdbook",
    version: "0.5.4",
    options: &["--no-default-features", "--features", "search,serve"],
};

impl Tool {
    /// A command that runs it in the project. The first call builds it.
    ///
    /// # Errors
    ///
    /// When it cannot be built; Cargo's error is on stderr.
    pub fn command(&self) -> Result<Command> {
        let tools = cache::root()?.join("cargo-tools");
        let this = format!("{}-{}", self.name, self.version);
        let directory = tools.join(&this);
        let program = directory.join("bin").join(self.name);
        if !program.is_file() {
            fs::create_dir_all(&tools)?;
            let lock = tools.join(format!("{this}.lock"));
            let _lock = Lock::wait(&lock, &format!("it builds {}", self.name))?;
            if !program.is_file() {
                self.install(&directory)?;
            }
        }
        let mut command = Command::new(program);
        command.current_dir(project()).stdin(Stdio::null());
        Ok(command)
    }

    fn install(&self, directory: &Path) -> Result<()> {
        eprintln!("building {} {} (once)", self.name, self.version);
        let begun = Instant::now();
        // Cargo renames the finished file into place. A debug build is faster, and the tools run for a second only.
        let status = cargo(&project())
            .args(["install", "--quiet", "--locked", "--debug", "--version", self.version, "--root"])
            .arg(directory)
            .args(self.options)
            .arg(self.name)
            // Its dependencies are of no use to other builds.
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            // Our stdout is for results.
            .stdout(std::io::stderr())
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "cargo install {} failed (see above)", self.name);
        eprintln!("built {} in {} s", self.name, begun.elapsed().as_secs());
        Ok(())
    }
}
