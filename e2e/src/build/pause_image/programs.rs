//! The pause binary as it ships, for each platform: `cargo pause` builds it with the user's compiler if that supports the platform, else
//! with Debian's ([`debian_toolchain`]), which builds all of a release. The binary must not depend on the user or the directory, but only
//! on the compiler, the linker and Cargo's own configuration files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Compiler;
use crate::build::cargo::{cargo, executable, host_triple, remove_user_flags, rustc};
use crate::build::debian_toolchain;
use crate::build::oci::Platform;
use crate::host::command::{output, which};

/// Builds it in a checkout. `environment` is added to Cargo's environment.
pub(super) fn build(
    project: &Path,
    platform: Platform,
    compiler: Compiler,
    environment: &[(&'static str, OsString)],
) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.arg("pause").envs(environment.iter().map(|(name, value)| (name, value)));
    remove_user_flags(&mut build);
    if compiler == Compiler::Debian || !is_known_to_user_compiler(platform)? {
        debian_toolchain::configure(&mut build, platform, project, environment, &[])?;
    } else if platform.triple() != host_triple()? {
        let variable = platform.triple().to_uppercase().replace('-', "_");
        let linker = user_linker()?.context("neither rust-lld nor ld.lld was found")?;
        build.args(["--target", platform.triple()]).env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
    }
    executable(&mut build).with_context(|| format!("the pause binary for {platform}"))
}

/// The binary for this machine, built in the checkout that this crate was built from.
#[cfg(feature = "measure")]
pub(crate) fn pause_program() -> Result<PathBuf> {
    let platform = Platform::host().context("there is no pause for this machine's architecture")?;
    build(&crate::build::cargo::project(), platform, Compiler::User, &[])
}

/// Downloads the compiler for this platform unless it is available, with progress on stderr.
///
/// # Errors
///
/// When it cannot be downloaded.
pub fn ensure_compiler(platform: Platform) -> Result<()> {
    if !is_known_to_user_compiler(platform)? {
        debian_toolchain::Toolchain::ensure()?;
    }
    Ok(())
}

/// Why no binary can be built for this platform; `None` if one can.
///
/// # Errors
///
/// When the user's compiler cannot be run.
pub fn missing(platform: Platform) -> Result<Option<String>> {
    if is_known_to_user_compiler(platform)? { Ok(None) } else { debian_toolchain::missing() }
}

/// Whether the user's compiler has the platform's library, and there is a linker.
fn is_known_to_user_compiler(platform: Platform) -> Result<bool> {
    if platform.triple() == host_triple()? {
        return Ok(true);
    }
    // Of a platform that isn't installed, rustc names the directory where its library would be.
    let library = output(rustc().args(["--print", "target-libdir", "--target", platform.triple()]))?;
    Ok(fs::exists(library.trim())? && user_linker()?.is_some())
}

/// The host's C compiler links for the host only; lld links for all platforms. rustc finds the lld that ships with it.
fn user_linker() -> Result<Option<PathBuf>> {
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let shipped = Path::new(sysroot.trim()).join("lib/rustlib").join(host_triple()?).join("bin/rust-lld");
    Ok(if shipped.is_file() { Some("rust-lld".into()) } else { which("ld.lld") })
}
