//! The pause program as it ships, for each platform: by `cargo pause` and the user's compiler where that knows the
//! platform, else by Debian's ([`super::debian_toolchain`]). It must not depend on who builds it, nor where, but
//! for the compiler, the linker and what Cargo's own configuration files say of them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::debian_toolchain;
use crate::build::cargo::{cargo, executable, host_triple, rustc, without_the_users_flags};
use crate::build::oci::Platform;
use crate::host::command::{find_here, output};

/// How a program for another platform than the host's is made.
enum CrossCompiler {
    /// The user's compiler has the platform's library; only a linker is named.
    Own { linker: PathBuf },
    /// Neither is the user's.
    Debian(debian_toolchain::Toolchain),
}

/// Builds it in a checkout. `environment` is what Cargo is told besides its own.
pub(super) fn build(
    project: &Path,
    platform: Platform,
    environment: &[(&'static str, OsString)],
) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.arg("pause").envs(environment.iter().map(|(name, value)| (name, value)));
    without_the_users_flags(&mut build);
    if platform.triple() != host_triple()? {
        build.args(["--target", platform.triple()]);
        let linker = match cross_compiler(platform)? {
            CrossCompiler::Own { linker } => linker,
            CrossCompiler::Debian(toolchain) => {
                build.env("RUSTC", &toolchain.rustc);
                toolchain.linker
            }
        };
        let variable = platform.triple().to_uppercase().replace('-', "_");
        build.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
    }
    executable(&mut build).with_context(|| format!("the pause program for {platform}"))
}

/// The one for this machine, built in the checkout that we were built from.
#[cfg(feature = "measure")]
pub(crate) fn pause_program() -> Result<PathBuf> {
    build(&crate::build::cargo::project(), Platform::host().context("no pause for this architecture")?, &[])
}

/// Makes sure that the compiler for this platform is there, with progress on stderr.
///
/// # Errors
///
/// When it must be fetched and cannot be.
pub fn ensure_compiler(platform: Platform) -> Result<()> {
    if platform.triple() != host_triple()? {
        cross_compiler(platform)?;
    }
    Ok(())
}

/// Why no program can be built for this platform here; `None` when one can.
///
/// # Errors
///
/// When the user's own compiler cannot be asked.
pub fn lacking(platform: Platform) -> Result<Option<String>> {
    if platform.triple() == host_triple()? || own(platform)?.is_some() {
        return Ok(None);
    }
    debian_toolchain::lacking(platform)
}

fn cross_compiler(platform: Platform) -> Result<CrossCompiler> {
    Ok(match own(platform)? {
        Some(own) => own,
        None => CrossCompiler::Debian(debian_toolchain::ensure(platform)?),
    })
}

fn own(platform: Platform) -> Result<Option<CrossCompiler>> {
    // Of a platform that isn't installed, rustc names the folder where its library would be.
    let asked = ["--print", "target-libdir", "--target", platform.triple()];
    let library = output(rustc().args(asked))?;
    if !fs::exists(library.trim())? {
        return Ok(None);
    }
    // A C compiler of the host links for the host alone; lld does for all. rustc finds the one that comes with it by itself.
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let shipped = Path::new(sysroot.trim()).join("lib/rustlib").join(host_triple()?).join("bin/rust-lld");
    let linker = if shipped.is_file() { Some("rust-lld".into()) } else { find_here("ld.lld") };
    Ok(linker.map(|linker| CrossCompiler::Own { linker }))
}
