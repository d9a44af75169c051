//! The pause binary as it ships, for each platform: by `cargo pause` and the user's compiler where that knows the
//! platform, else by Debian's ([`debian_toolchain`]), which builds all of a release. The binary must not depend on the user or the
//! directory, but only on the compiler, the linker and Cargo's own configuration files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Compiler;
use crate::build::cargo::{cargo, executable, host_triple, rustc, without_the_users_flags};
use crate::build::debian_toolchain;
use crate::build::oci::Platform;
use crate::host::command::{find_here, output};

/// Builds it in a checkout. `environment` is what Cargo is given besides its own.
pub(super) fn build(
    project: &Path,
    platform: Platform,
    compiler: Compiler,
    environment: &[(&'static str, OsString)],
) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.arg("pause").envs(environment.iter().map(|(name, value)| (name, value)));
    without_the_users_flags(&mut build);
    if compiler == Compiler::Debian || !is_known_to_user_compiler(platform)? {
        debian_toolchain::configure(&mut build, platform, project, environment, &[])?;
    } else if platform.triple() != host_triple()? {
        let variable = platform.triple().to_uppercase().replace('-', "_");
        let linker = user_linker()?.context("no linker")?;
        build.args(["--target", platform.triple()]).env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
    }
    executable(&mut build).with_context(|| format!("the pause program for {platform}"))
}

/// The one for this machine, built in the checkout that we were built from.
#[cfg(feature = "measure")]
pub(crate) fn pause_program() -> Result<PathBuf> {
    let platform = Platform::host().context("no pause for this architecture")?;
    build(&crate::build::cargo::project(), platform, Compiler::User, &[])
}

/// Makes sure that the compiler for this platform is there, with progress on stderr.
///
/// # Errors
///
/// When it must be fetched and cannot be.
pub fn ensure_compiler(platform: Platform) -> Result<()> {
    if !is_known_to_user_compiler(platform)? {
        debian_toolchain::Toolchain::ensure()?;
    }
    Ok(())
}

/// Why no program can be built for this platform here; `None` when one can.
///
/// # Errors
///
/// When the user's own compiler cannot be asked.
pub fn lacking(platform: Platform) -> Result<Option<String>> {
    if is_known_to_user_compiler(platform)? { Ok(None) } else { debian_toolchain::lacking() }
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

/// A C compiler of the host links for the host alone; lld does for all. rustc finds the one that comes with it by itself.
fn user_linker() -> Result<Option<PathBuf>> {
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let shipped = Path::new(sysroot.trim()).join("lib/rustlib").join(host_triple()?).join("bin/rust-lld");
    Ok(if shipped.is_file() { Some("rust-lld".into()) } else { find_here("ld.lld") })
}
