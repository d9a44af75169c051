//! The test binaries of the workspace, built by one call of Cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::build::cargo::{cargo, project, without_outer_cargo};
use crate::host::command::output;

/// A program that runs tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestBinary {
    /// The target's name, or that of the package for the tests beside its code.
    pub(super) name: String,
    /// The package's directory, in which Cargo runs it.
    pub(super) package: PathBuf,
    pub(super) executable: PathBuf,
}

impl TestBinary {
    /// In its package's directory, as `cargo test` starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.package);
        // What a test calls Cargo for must not be built again.
        without_outer_cargo(&mut command);
        command
    }
}

/// Builds all of them. Cargo's progress goes to stderr.
pub(super) fn build() -> Result<Vec<TestBinary>> {
    let mut build = cargo(&project());
    build.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    let messages = output(build.stderr(Stdio::inherit())).context("the tests do not compile (see above)")?;
    messages.lines().filter_map(|line| parse(line).transpose()).collect()
}

/// One of Cargo's messages; `None` when it is not about a test binary.
fn parse(line: &str) -> Result<Option<TestBinary>> {
    let message: Value = serde_json::from_str(line).context("Cargo's messages are no JSON")?;
    let Some(executable) = message["executable"].as_str() else { return Ok(None) };
    if message["profile"]["test"] != true {
        return Ok(None);
    }
    let manifest = Path::new(message["manifest_path"].as_str().context("a target without a manifest")?);
    let package = manifest.parent().context("a manifest without a directory")?.to_owned();
    let target = message["target"]["name"].as_str().context("a target without a name")?;
    let is_test = message["target"]["kind"][0] == "test";
    let name = if is_test { target.to_owned() } else { format!("{target} (beside the code)") };
    Ok(Some(TestBinary { name, package, executable: executable.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_recognized_among_cargos_messages() {
        let message = |test: bool, kind: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/p/e2e/Cargo.toml", "executable": "/t/lifecycle-1",
                "target": {"name": "lifecycle", "kind": [kind]}, "profile": {"test": test},
            })
            .to_string()
        };
        let binary = parse(&message(true, "test")).unwrap().unwrap();
        assert_eq!((binary.name.as_str(), binary.package.to_str()), ("lifecycle", Some("/p/e2e")));
        assert_eq!(parse(&message(true, "lib")).unwrap().unwrap().name, "lifecycle (beside the code)");
        assert_eq!(parse(&message(false, "bin")).unwrap(), None);
        assert_eq!(parse(r#"{"reason": "build-finished", "success": true}"#).unwrap(), None);
    }
}
