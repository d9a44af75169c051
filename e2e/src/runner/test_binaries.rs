//! The test binaries of the workspace, built by one call of Cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::build::cargo::{cargo, project, remove_outer_cargo_variables};
use crate::host::command::output;

/// A binary that runs tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestBinary {
    /// The target's name, or that of the package for its unit tests.
    pub(super) name: String,
    /// The package's directory, the working directory of its tests.
    pub(super) package: PathBuf,
    pub(super) executable: PathBuf,
}

impl TestBinary {
    /// A command in the package's directory, as `cargo test` runs it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.package);
        // A test that runs Cargo must find this build up to date.
        remove_outer_cargo_variables(&mut command);
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

/// Parses one of Cargo's messages; `None` if it is not about a test binary.
fn parse(line: &str) -> Result<Option<TestBinary>> {
    let message: Value = serde_json::from_str(line).context("a message of Cargo is not JSON")?;
    let Some(executable) = message["executable"].as_str() else { return Ok(None) };
    if message["profile"]["test"] != true {
        return Ok(None);
    }
    let manifest = Path::new(message["manifest_path"].as_str().context("a target without a manifest")?);
    let package = manifest.parent().context("a manifest without a directory")?.to_owned();
    let target = message["target"]["name"].as_str().context("a target without a name")?;
    let is_test = message["target"]["kind"][0] == "test";
    let name = if is_test { target.to_owned() } else { format!("{target} (unit tests)") };
    Ok(Some(TestBinary { name, package, executable: executable.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_parsed_from_cargo_messages() {
        let message = |test: bool, kind: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/p/e2e/Cargo.toml", "executable": "/t/lifecycle-1",
                "target": {"name": "lifecycle", "kind": [kind]}, "profile": {"test": test},
            })
            .to_string()
        };
        let binary = parse(&message(true, "test")).unwrap().unwrap();
        assert_eq!((binary.name.as_str(), binary.package.to_str()), ("lifecycle", Some("/p/e2e")));
        assert_eq!(parse(&message(true, "lib")).unwrap().unwrap().name, "lifecycle (unit tests)");
        assert_eq!(parse(&message(false, "bin")).unwrap(), None);
        assert_eq!(parse(r#"{"reason": "build-finished", "success": true}"#).unwrap(), None);
    }
}
