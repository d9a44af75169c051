//! The Debian packages whose programs a node or a test runs. Missing packages are installed, after the command has been printed; nothing is
//! ever removed or upgraded.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::host::command::which;

/// A program and its package. A path must exist; a name is looked up in PATH.
struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 12] = [
    Need { program: "runc", package: "runc" },
    Need { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Need { program: "iptables", package: "iptables" },
    Need { program: "conntrack", package: "conntrack" },
    Need { program: "buildah", package: "buildah" },
    Need { program: "ip", package: "iproute2" },
    Need { program: "unshare", package: "util-linux" },
    Need { program: "nsenter", package: "util-linux" },
    // Runs the pause binary of the other platform, for its tests.
    Need { program: "qemu-aarch64-static", package: "qemu-user-static" },
    // PID 1 programs that pause is compared with.
    Need { program: "tini", package: "tini" },
    Need { program: "dumb-init", package: "dumb-init" },
    Need { program: "catatonit", package: "catatonit" },
];

/// Tools that build and run virtual machines. Only tests that have one need them.
const VM_NEEDS: [Need; 5] = [
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { program: "qemu-img", package: "qemu-utils" },
    Need { program: "mmdebstrap", package: "mmdebstrap" },
    Need { program: "mke2fs", package: "e2fsprogs" },
    Need { program: "ssh-keygen", package: "openssh-client" },
];

/// The renderer of the dashboard's picture and its font. No test needs them.
const PICTURE_NEEDS: [Need; 2] = [
    Need { program: "rsvg-convert", package: "librsvg2-bin" },
    Need { program: "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", package: "fonts-dejavu-core" },
];

/// Installs the additional tools of `cargo dashboard` if they are missing; needs root.
///
/// # Errors
///
/// As [`ensure_installed`].
pub fn ensure_picture_tools() -> Result<()> {
    install(&missing_where(&PICTURE_NEEDS, is_installed))
}

/// Installs missing programs; needs root.
///
/// # Errors
///
/// When something is missing and cannot be installed: the error names it.
pub fn ensure_installed() -> Result<()> {
    install(&missing())
}

/// Installs missing tools of virtual machines; needs root.
///
/// # Errors
///
/// As [`ensure_installed`].
pub(crate) fn ensure_installed_for_vm() -> Result<()> {
    install(&missing_for_vm())
}

/// Packages of virtual machines whose programs are missing.
pub(crate) fn missing_for_vm() -> Vec<&'static str> {
    missing_where(&VM_NEEDS, is_installed)
}

/// Whether packages can be installed.
pub(crate) fn is_available() -> bool {
    which("apt-get").is_some()
}

/// Installs packages, if there are any to install.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        is_available(),
        "programs are missing, and there is no apt-get; install what these Debian packages have: {}",
        missing.join(" ")
    );
    eprintln!("installing Debian packages: {}", install_command(missing));
    apt_get(&["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt_get(&install.into_iter().chain(missing.iter().copied()).collect::<Vec<_>>())
}

/// Packages whose programs are missing.
pub(crate) fn missing() -> Vec<&'static str> {
    missing_where(&NEEDS, is_installed)
}

fn is_installed(program: &str) -> bool {
    if program.starts_with('/') { Path::new(program).exists() } else { which(program).is_some() }
}

/// The command that installs packages by hand.
pub(crate) fn install_command(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

fn missing_where(needs: &[Need], present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        needs.iter().filter(|need| !present(need.program)).map(|need| need.package).collect();
    packages.dedup();
    packages
}

/// The machine's apt-get.
pub(crate) fn apt_get(arguments: &[&str]) -> Result<()> {
    run_apt_get(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive"), arguments)
}

/// Runs an apt-get that has its own environment.
pub(crate) fn run_apt_get(apt_get: &mut Command, arguments: &[&str]) -> Result<()> {
    let status = apt_get
        .arg("-q")
        .args(arguments)
        .stdin(Stdio::null())
        // Our stdout is for results; the output of apt-get is progress.
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
    fn missing_packages_are_installed_once() {
        assert_eq!(missing_where(&NEEDS, |_| true), Vec::<&str>::new());
        assert_eq!(missing_where(&NEEDS, |program| program != "runc"), ["runc"]);
        assert_eq!(
            missing_where(&NEEDS, |program| !["unshare", "nsenter"].contains(&program)),
            ["util-linux"]
        );
    }

    #[test]
    fn install_command_lists_packages() {
        assert_eq!(
            install_command(&["runc", "buildah"]),
            "apt-get install --no-install-recommends runc buildah"
        );
    }
}
