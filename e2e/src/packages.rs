//! The Debian packages whose programs a node calls. Installs what is missing, and says so before it does; it never
//! removes or upgrades anything.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::prerequisites::in_path;

/// A program by which a package is recognized. A path is looked for as it is, a name in PATH.
struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 9] = [
    Need { program: "runc", package: "runc" },
    Need { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Need { program: "iptables", package: "iptables" },
    Need { program: "conntrack", package: "conntrack" },
    Need { program: "buildah", package: "buildah" },
    Need { program: "ip", package: "iproute2" },
    Need { program: "unshare", package: "util-linux" },
    Need { program: "nsenter", package: "util-linux" },
    Need { program: "sysctl", package: "procps" },
];

/// Makes sure that every program is there.
///
/// # Errors
///
/// When something is missing and cannot be installed: the error has the command to type.
pub fn ensure_installed() -> Result<()> {
    let missing = missing(|program| {
        if program.starts_with('/') { Path::new(program).exists() } else { in_path(program).is_some() }
    });
    if missing.is_empty() {
        return Ok(());
    }
    refuse(&missing, nix::unistd::geteuid().is_root(), in_path("apt-get").is_some())?;
    eprintln!("installing Debian packages: {}", missing.join(" "));
    apt_get(&["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt_get(&install.into_iter().chain(missing.iter().copied()).collect::<Vec<_>>())
}

fn missing(present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        NEEDS.iter().filter(|need| !present(need.program)).map(|need| need.package).collect();
    packages.dedup();
    packages
}

/// An error when this user on this machine cannot install them.
fn refuse(missing: &[&str], root: bool, debian: bool) -> Result<()> {
    let packages = missing.join(" ");
    if !debian {
        bail!(
            "programs are missing and there is no apt-get to install them with; as Debian packages: {packages}"
        );
    }
    if !root {
        bail!("programs are missing; install them: sudo apt-get install --no-install-recommends {packages}");
    }
    Ok(())
}

pub(crate) fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("-q")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Ours is for results; what apt-get says is progress.
        .stdout(std::io::stderr())
        .status()
        .context("cannot run apt-get")?;
    ensure!(status.success(), "apt-get {} failed (see above): {status}", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed_and_once() {
        assert_eq!(missing(|_| true), Vec::<&str>::new());
        assert_eq!(missing(|program| program != "runc"), ["runc"]);
        assert_eq!(missing(|program| !["unshare", "nsenter"].contains(&program)), ["util-linux"]);
    }

    #[test]
    fn without_root_the_error_is_the_command_to_type() {
        let error = refuse(&["runc", "buildah"], false, true).unwrap_err().to_string();
        assert!(error.ends_with("sudo apt-get install --no-install-recommends runc buildah"), "{error}");
    }

    #[test]
    fn another_distribution_is_told_the_packages() {
        let error = refuse(&["runc"], true, false).unwrap_err().to_string();
        assert!(error.contains("no apt-get") && error.ends_with(": runc"), "{error}");
    }
}
