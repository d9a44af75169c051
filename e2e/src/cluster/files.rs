//! Where the files of the components are, and containerd's socket. Names only: [`super::configuration`] writes the files.

use std::path::PathBuf;

use super::plan::Layout;

/// Where containerd listens.
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) fn containerd(layout: &Layout) -> PathBuf {
    layout.run("containerd.toml")
}

/// Where containerd reads drop-in files.
pub(super) fn containerd_drop_ins(layout: &Layout) -> PathBuf {
    layout.run("containerd.d")
}

pub(super) fn kubelet(layout: &Layout) -> PathBuf {
    layout.run("kubelet.yaml")
}

/// Where the kubelet finds static pods.
pub(super) fn static_pods(layout: &Layout) -> PathBuf {
    layout.run("static-pods")
}

pub(super) fn audit_policy(layout: &Layout) -> PathBuf {
    layout.run("audit-policy.yaml")
}

pub(super) fn admission(layout: &Layout) -> PathBuf {
    layout.run("admission.yaml")
}

pub(super) fn cni(layout: &Layout) -> PathBuf {
    layout.run("cni")
}

/// The only file of the CNI configuration.
pub(super) fn network(layout: &Layout) -> PathBuf {
    cni(layout).join("10-bridge.conflist")
}

/// Network plugins of our own; Debian's are elsewhere.
pub(super) fn cni_plugins(layout: &Layout) -> PathBuf {
    layout.run("cni-plugins")
}
