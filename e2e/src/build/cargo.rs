//! Cargo builds of the binaries that ship. Each is built from a checkout of the project by the project's own alias or profile, so it is the
//! binary that a user builds by hand.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::host::command::output;

/// The checkout that this crate was built from.
pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The path of a file of the project, which is the same on the node.
///
/// # Errors
///
/// When there is none.
pub fn project_file(path: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    Ok(file.canonicalize().with_context(|| path.to_owned())?.display().to_string())
}

/// Cargo in that checkout.
pub fn cargo(project: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(project);
    remove_outer_cargo_variables(&mut cargo);
    cargo
}

/// Removes the variables that an outer Cargo sets. A build script that reads one of them runs again when it changes, and everything that
/// depends on its package is rebuilt; this code runs both below Cargo and without it.
pub(crate) fn remove_outer_cargo_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_set_by_cargo) {
            command.env_remove(&name);
        }
    }
}

/// Whether Cargo sets this variable for the programs that it runs. The variables by which a user configures Cargo have other names.
fn is_set_by_cargo(variable: &str) -> bool {
    ["CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_PACKAGE"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

/// Removes the user's flags and profiles: they would change the binary.
pub(crate) fn remove_user_flags(build: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.ends_with("RUSTFLAGS") || text.starts_with("CARGO_PROFILE_") {
            build.env_remove(&name);
        }
    }
}

/// The directories whose paths would be embedded in binaries, each with its replacement: Cargo's, the checkout and the target directory.
/// `environment` is added to Cargo's environment.
pub(crate) fn directories(
    project: &Path,
    environment: &[(&'static str, OsString)],
) -> Result<[(PathBuf, &'static str); 3]> {
    let mut cargo = cargo(project);
    cargo.envs(environment.iter().map(|(name, value)| (name, value)));
    let metadata = output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let directory = |key: &str| {
        metadata[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata has no {key}"))
    };
    let given = environment.iter().find(|(name, _)| *name == "CARGO_HOME").map(|(_, value)| value.clone());
    let home = match given.or_else(|| std::env::var_os("CARGO_HOME")) {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("no home directory")?.join(".cargo"),
    };
    // rustc applies the last match: the target directory may be inside the checkout.
    Ok([
        (home, "/cargo"),
        (directory("workspace_root")?, "/sandbox-health"),
        (directory("target_directory")?, "/target"),
    ])
}

/// The compiler that Cargo calls.
pub(crate) fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

pub(crate) fn host_triple() -> Result<String> {
    let version = output(rustc().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.into())
}

/// Runs the build of one binary; returns its path, which Cargo reports for any target directory.
pub(crate) fn executable(build: &mut Command) -> Result<PathBuf> {
    // Cargo's stderr has the progress, and after a failure the whole error.
    let build = build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = output(build)?;
    let path = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("Cargo reported no executable")?;
    ensure!(path.is_file(), "Cargo did not build {}", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_cargo_variables_are_removed_and_configuration_is_kept() {
        for variable in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_BIN_EXE_e2e"] {
            assert!(is_set_by_cargo(variable), "{variable}");
        }
        for variable in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_NET_OFFLINE"] {
            assert!(!is_set_by_cargo(variable), "{variable}");
        }
    }
}
