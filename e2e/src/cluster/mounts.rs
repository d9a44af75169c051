//! The node's own view of the file system, inside its mount namespace, so that the kubelet writes nothing to the host. The only trace is an
//! empty directory where a mount point did not exist.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::plan::Layout;

/// Sysctls of the whole machine that the kubelet sets. It writes to files instead.
const KUBELET_SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Directories whose paths are compiled into the kubelet, the CNI plugins or containerd.
const PRIVATE: [&str; 3] = ["/var/log", "/var/lib/kubelet", "/var/lib/cni"];

pub(super) fn set_up(layout: &Layout) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making / private")?;
    for hidden in PRIVATE.into_iter().chain(["/run"]) {
        ensure!(
            !layout.state.starts_with(hidden),
            "the cache must not be below {hidden}, which a node mounts over (set SANDBOX_HEALTH_CACHE)"
        );
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mounting /run")?;
    for directory in PRIVATE {
        let own = layout.state.join("private").join(directory.trim_start_matches('/'));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(directory).with_context(|| format!("creating the mount point {directory}"))?;
        bind(&own, Path::new(directory))?;
    }
    for (sysctl, wanted) in KUBELET_SYSCTLS {
        let real = Path::new("/proc/sys").join(sysctl);
        if real.exists() {
            let own = layout.state.join("private/sysctl").join(sysctl);
            fs::create_dir_all(own.parent().unwrap_or(&own))?;
            fs::write(&own, wanted)?;
            bind(&own, &real)?;
        }
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(from), to, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("mounting over {}", to.display()))
}
