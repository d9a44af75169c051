//! The node's own view of the file system, inside its mount namespace, so that nothing a kubelet writes lands on the
//! host. The one trace is an empty folder where a mount point did not exist.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::plan::Layout;

/// Sysctls that are the whole machine's and that the kubelet sets. It gets files to write to instead.
const KUBELET_SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Folders at paths that the kubelet, the CNI plugins or containerd have built in.
const PRIVATE: [&str; 3] = ["/var/log", "/var/lib/kubelet", "/var/lib/cni"];

pub(super) fn set_up(layout: &Layout) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making / private")?;
    for hidden in PRIVATE.into_iter().chain(["/run"]) {
        ensure!(
            !layout.state.starts_with(hidden),
            "the cache must not be below {hidden}, which a node hides"
        );
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mounting /run")?;
    for folder in PRIVATE {
        let own = layout.state.join("private").join(folder.trim_start_matches('/'));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(folder).with_context(|| format!("creating the mount point {folder}"))?;
        bind(&own, Path::new(folder))?;
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
