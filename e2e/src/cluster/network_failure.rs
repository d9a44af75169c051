//! A network plugin (CNI) that fails at first, as one does whose own pod is not up yet: a script that counts what it is asked
//! and then hands over to the bridge plugin. It must leave sandboxes alone that are in the network already.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::files;
use super::plan::Layout;

/// Where Debian has its plugins.
pub(super) const PLUGINS: &str = "/usr/lib/cni";
/// The plugin that works.
pub(super) const WORKING: &str = "bridge";
const FAILING: &str = "fails-at-first";

fn asked(layout: &Layout) -> PathBuf {
    layout.run("cni-additions")
}

/// Writes the script and returns its name as a plugin.
pub(super) fn write(layout: &Layout, times: u32) -> Result<&'static str> {
    let asked = asked(layout);
    fs::write(&asked, "").with_context(|| format!("writing {}", asked.display()))?;
    let script = files::cni_plugins(layout).join(FAILING);
    fs::write(&script, text(&asked.display().to_string(), times))
        .with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(FAILING)
}

/// The script. An error goes to stdout (CNI specification, section 5); 11 is "try again later".
fn text(asked: &str, times: u32) -> String {
    format!(
        r#"#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
  echo "$CNI_CONTAINERID" >> '{asked}'
  if [ "$(wc -l < '{asked}')" -le {times} ]; then
    echo '{{"cniVersion": "1.0.0", "code": 11, "msg": "the network is not up yet"}}'
    exit 1
  fi
fi
exec {PLUGINS}/{WORKING}
"#
    )
}

/// How often it was asked to add a sandbox.
pub(super) fn additions(layout: &Layout) -> Result<usize> {
    let asked = asked(layout);
    let lines = fs::read_to_string(&asked).with_context(|| format!("reading {}", asked.display()))?;
    Ok(lines.lines().count())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn it_fails_so_often_and_then_hands_over() {
        let folder = std::env::temp_dir().join(format!("fails-at-first-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (asked, script) = (folder.join("asked"), folder.join("plugin"));
        fs::write(&asked, "").unwrap();
        // What it hands over to is another program here.
        let text =
            text(&asked.display().to_string(), 2).replace(&format!("{PLUGINS}/{WORKING}"), "echo works");
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
            let (succeeded, said) = call("ADD");
            assert!(!succeeded && said.contains(r#""code": 11"#), "{said}");
        }
        assert_eq!(call("ADD"), works);
        assert_eq!(fs::read_to_string(&asked).unwrap(), "a\n".repeat(3));
        fs::remove_dir_all(folder).unwrap();
    }
}
