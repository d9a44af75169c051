//! A node as users have it: Debian with systemd and cgroup v2 in a virtual machine, which joins a cluster of [`crate::cluster`] as another
//! node. The control plane stays outside of it, at native speed.
//!
//! QEMU runs inside of the cluster's namespaces, so it exits whenever the cluster ends; its disk and its keys are in the cluster's state
//! directory and are removed with it. Nothing here decides what is tested.

mod acceleration;
mod disk;
mod machine;
mod node_files;
mod rootfs;

pub use machine::{Kernel, Vm};
pub use node_files::Runtime;
pub use rootfs::{DEBIAN, DEBIAN_CONTAINERD, DEBIAN_KERNEL};

use crate::host::apt;

/// Why no virtual machine can run here and how to fix that; `None` if one can.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root is needed: the root file system is built by chroot(8) (try sudo)".into());
    }
    let packages = apt::missing_for_vm();
    if packages.is_empty() || apt::is_available() {
        return None;
    }
    Some(format!("QEMU and its tools are needed ({})", apt::install_command(&packages)))
}
