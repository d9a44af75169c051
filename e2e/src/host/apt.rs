//! The Debian packages whose programs a node or a test calls. Installs what is missing, and says so before it does; it never
//! removes or upgrades anything.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::host::command::find_here;

/// A program by which a package is recognized. A path is looked for as it is, a name in PATH.
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
    // Runs the pause program of the other platform, for its tests.
    Need { program: "qemu-aarch64-static", package: "qemu-user-static" },
    // What pause is compared with.
    Need { program: "tini", package: "tini" },
    Need { program: "dumb-init", package: "dumb-init" },
    Need { program: "catatonit", package: "catatonit" },
];

/// What virtual machines are made of and run by. Only the tests that have one need them.
const VM_NEEDS: [Need; 5] = [
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { program: "qemu-img", package: "qemu-utils" },
    Need { program: "mmdebstrap", package: "mmdebstrap" },
    Need { program: "mke2fs", package: "e2fsprogs" },
    Need { program: "ssh-keygen", package: "openssh-client" },
];

/// What turns a drawing into a picture, and the font that it is written in. No test needs them.
const PICTURE_NEEDS: [Need; 2] = [
    Need { program: "rsvg-convert", package: "librsvg2-bin" },
    Need { program: "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", package: "fonts-dejavu-core" },
];

/// Makes sure of what `cargo dashboard` calls besides; only root can.
///
/// # Errors
///
/// As [`ensure_installed`].
pub fn ensure_picture_tools() -> Result<()> {
    install(&missing_where(&PICTURE_NEEDS, is_there))
}

/// Makes sure that every program is there; only root can.
///
/// # Errors
///
/// When something is missing and cannot be installed: the error names it.
pub fn ensure_installed() -> Result<()> {
    install(&missing())
}

/// Makes sure of what virtual machines need; only root can.
///
/// # Errors
///
/// As [`ensure_installed`].
pub(crate) fn ensure_installed_for_vm() -> Result<()> {
    install(&missing_for_vm())
}

/// The packages that virtual machines need and whose programs are not there.
pub(crate) fn missing_for_vm() -> Vec<&'static str> {
    missing_where(&VM_NEEDS, is_there)
}

/// Whether packages can be installed.
pub(crate) fn is_available() -> bool {
    find_here("apt-get").is_some()
}

/// Installs packages, if there are any to install.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        is_available(),
        "programs are missing and there is no apt-get to install them with; as Debian packages: {}",
        missing.join(" ")
    );
    eprintln!("installing Debian packages: {}", install_command(missing));
    apt_get(&["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt_get(&install.into_iter().chain(missing.iter().copied()).collect::<Vec<_>>())
}

/// The packages whose programs are not there.
pub(crate) fn missing() -> Vec<&'static str> {
    missing_where(&NEEDS, is_there)
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') { Path::new(program).exists() } else { find_here(program).is_some() }
}

/// As somebody types it who installs them by hand.
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

/// An apt-get that was told where to work.
pub(crate) fn run_apt_get(apt_get: &mut Command, arguments: &[&str]) -> Result<()> {
    let status = apt_get
        .arg("-q")
        .args(arguments)
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
        assert_eq!(missing_where(&NEEDS, |_| true), Vec::<&str>::new());
        assert_eq!(missing_where(&NEEDS, |program| program != "runc"), ["runc"]);
        assert_eq!(
            missing_where(&NEEDS, |program| !["unshare", "nsenter"].contains(&program)),
            ["util-linux"]
        );
    }

    #[test]
    fn the_command_can_be_typed() {
        assert_eq!(
            install_command(&["runc", "buildah"]),
            "apt-get install --no-install-recommends runc buildah"
        );
    }
}
