//! Checks whether a kernel boots with hardware virtualisation. The device alone proves nothing: on some hosts it exists, and no stock
//! kernel gets past its first instructions.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::rootfs::Rootfs;
use crate::cluster::{Node, kill_inside};
use crate::host::retry;

/// A kernel that runs natively prints its first line within a second.
const PROBE: Duration = Duration::from_secs(10);

/// The arguments of QEMU for the fastest acceleration that works.
pub(super) fn arguments(node: &Node, rootfs: &Rootfs, directory: &Path) -> &'static [&'static str] {
    if Path::new("/dev/kvm").exists() && probe(node, rootfs, directory).is_ok() {
        &["-machine", "q35,accel=kvm", "-cpu", "host"]
    } else {
        &["-machine", "q35,accel=tcg", "-cpu", "max"]
    }
}

/// Boots the kernel without a disk, until it reports that it has none.
fn probe(node: &Node, rootfs: &Rootfs, directory: &Path) -> Result<()> {
    let console = directory.join("probe.console");
    let mut qemu = node.command("qemu-system-x86_64");
    qemu.args([
        "-machine",
        "q35,accel=kvm",
        "-cpu",
        "host",
        "-m",
        "512M",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ])
    .arg("-kernel")
    .arg(rootfs.boot_file("stable", "vmlinuz"))
    .args(["-append", "console=ttyS0 panic=-1", "-serial"])
    .arg(format!("file:{}", console.display()));
    let mut process = qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let outcome = retry::until("a kernel boots with KVM", PROBE, || {
        let text = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
        ensure!(text.contains("Unable to mount root fs"), "it has not reached its root file system");
        Ok(())
    });
    // QEMU may be paused, and would not exit by itself.
    kill_inside(&mut process);
    outcome
}
