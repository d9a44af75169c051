//! Cargo, called for the programs that ship. Each is built from a checkout of the project by the project's own alias or
//! profile, so that it is the one that a user builds by hand.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::host::command::output;

/// The checkout that this program was built from.
pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the project, as the node finds it, too.
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
    without_outer_cargo(&mut cargo);
    cargo
}

/// Removes what an outer Cargo set for us. Build scripts that read such a variable run again when it changes, and with them everything that
/// depends on their package; we run below Cargo and without it, in turns.
pub(crate) fn without_outer_cargo(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_running_cargo) {
            command.env_remove(&name);
        }
    }
}

/// Whether Cargo sets this variable for the programs that it runs. What a user configures Cargo with has other names.
fn is_of_a_running_cargo(variable: &str) -> bool {
    ["CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_PACKAGE"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

/// Takes away flags and profiles of the user's own: they would make another program.
pub(crate) fn without_the_users_flags(build: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.ends_with("RUSTFLAGS") || text.starts_with("CARGO_PROFILE_") {
            build.env_remove(&name);
        }
    }
}

/// The directories whose paths get into binaries, each with the name that it should have there: of Cargo, of the checkout and the target
/// directory. `environment` is what Cargo is given besides its own.
pub(crate) fn folders(
    project: &Path,
    environment: &[(&'static str, OsString)],
) -> Result<[(PathBuf, &'static str); 3]> {
    let mut cargo = cargo(project);
    cargo.envs(environment.iter().map(|(name, value)| (name, value)));
    let metadata = output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let folder = |key: &str| {
        metadata[key].as_str().map(PathBuf::from).with_context(|| format!("cargo names no {key}"))
    };
    let given = environment.iter().find(|(name, _)| *name == "CARGO_HOME").map(|(_, value)| value.clone());
    let home = match given.or_else(|| std::env::var_os("CARGO_HOME")) {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("no home folder")?.join(".cargo"),
    };
    // The last that fits is taken: the target folder may be in the project's.
    Ok([
        (home, "/cargo"),
        (folder("workspace_root")?, "/sandbox-health"),
        (folder("target_directory")?, "/target"),
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

/// Runs a build of one program. Cargo says where it puts it, whatever target folder is configured.
pub(crate) fn executable(build: &mut Command) -> Result<PathBuf> {
    // What Cargo says meanwhile is progress, and what it says of an error is all there is to say.
    let build = build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = output(build)?;
    let path = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo named no executable")?;
    ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_cargo_variables_are_removed_and_configuration_is_kept() {
        for variable in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_BIN_EXE_e2e"] {
            assert!(is_of_a_running_cargo(variable), "{variable}");
        }
        for variable in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_NET_OFFLINE"] {
            assert!(!is_of_a_running_cargo(variable), "{variable}");
        }
    }
}
