//! A network plugin (CNI) that fails at first, like one whose own pod does not run yet: a script that counts its calls and then executes
//! the bridge plugin. It must not affect sandboxes that are in the network already.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::files;
use super::plan::Layout;

/// Debian's directory of plugins.
pub(super) const PLUGINS: &str = "/usr/lib/cni";
/// The plugin that the script executes.
pub(super) const WORKING: &str = "bridge";
const FAILING: &str = "fails-at-first";

fn calls_file(layout: &Layout) -> PathBuf {
    layout.run("cni-additions")
}

/// Writes the script and returns its name as a plugin.
pub(super) fn write(layout: &Layout, times: u32) -> Result<&'static str> {
    let calls = calls_file(layout);
    fs::write(&calls, "").with_context(|| format!("writing {}", calls.display()))?;
    let script = files::cni_plugins(layout).join(FAILING);
    fs::write(&script, text(&calls.display().to_string(), times))
        .with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(FAILING)
}

/// The script. An error goes to stdout (CNI specification, section 5); code 11 means that the runtime should retry.
fn text(calls: &str, times: u32) -> String {
    format!(
        r#"#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
  echo "$CNI_CONTAINERID" >> '{calls}'
  if [ "$(wc -l < '{calls}')" -le {times} ]; then
    echo '{{"cniVersion": "1.0.0", "code": 11, "msg": "the network is not up yet"}}'
    exit 1
  fi
fi
exec {PLUGINS}/{WORKING}
"#
    )
}

/// How often it was called to add a sandbox.
pub(super) fn additions(layout: &Layout) -> Result<usize> {
    let calls = calls_file(layout);
    let lines = fs::read_to_string(&calls).with_context(|| format!("reading {}", calls.display()))?;
    Ok(lines.lines().count())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn plugin_fails_given_times_and_then_works() {
        let directory = std::env::temp_dir().join(format!("fails-at-first-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (calls, script) = (directory.join("calls"), directory.join("plugin"));
        fs::write(&calls, "").unwrap();
        // Another command stands in for the bridge plugin.
        let text =
            text(&calls.display().to_string(), 2).replace(&format!("{PLUGINS}/{WORKING}"), "echo works");
        fs::write(&script, text).unwrap();
        let call = |command: &str| {
            let mut shell = Command::new("sh");
            let ran =
                shell.arg(&script).env("CNI_COMMAND", command).env("CNI_CONTAINERID", "a").output().unwrap();
            (ran.status.success(), String::from_utf8(ran.stdout).unwrap())
        };
        let works = (true, "works\n".to_owned());
        for _ in 0..2 {
            assert_eq!(call("DEL"), works);
            let (succeeded, output) = call("ADD");
            assert!(!succeeded && output.contains(r#""code": 11"#), "{output}");
        }
        assert_eq!(call("ADD"), works);
        assert_eq!(fs::read_to_string(&calls).unwrap(), "a\n".repeat(3));
        fs::remove_dir_all(directory).unwrap();
    }
}
