//! The requirements of a node on this machine, and a message for each that is missing. [`Facts::observe`] collects facts,
//! [`Facts::missing`] evaluates them; nothing is installed here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;

use crate::build::go;
use crate::host::{apt, cache, command};

/// For sources, Go's build cache and the binaries.
const FREE_TO_BUILD_MIB: u64 = 6 * 1024;
/// For images, etcd's log and the writable layers of the pods.
const FREE_TO_RUN_MIB: u64 = 1024;

/// Facts about this machine.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whether the effective user is root.
    pub root: bool,
    /// Debian packages whose programs are missing.
    pub missing_packages: Vec<&'static str>,
    /// Whether `go` is in PATH.
    pub go: bool,
    /// Whether every upstream binary is in the cache.
    pub built: bool,
    /// Free space of the cache's file system for an unprivileged user, in MiB.
    pub free_mib: u64,
    /// The cache directory.
    pub cache: PathBuf,
}

impl Facts {
    /// Collects the facts.
    ///
    /// # Errors
    ///
    /// When there is no cache directory, or the free space of its file system cannot be read.
    pub fn observe() -> Result<Self> {
        let cache = cache::root()?;
        // Before the first run the directory does not exist; its file system is that of the nearest existing parent.
        let existing = cache.ancestors().find(|directory| directory.exists()).unwrap_or(Path::new("/"));
        let room = statvfs(existing).with_context(|| format!("free space of {}", existing.display()))?;
        Ok(Self {
            root: nix::unistd::geteuid().is_root(),
            missing_packages: apt::missing(),
            go: command::which("go").is_some(),
            built: go::is_all_cached()?,
            free_mib: room.blocks_available() * room.fragment_size() / (1024 * 1024),
            cache,
        })
    }

    /// The first missing requirement, in one line: what, why, and how to fix it.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if !self.root {
            let needed = "root is needed: a node is made of namespaces, mounts and cgroups (try sudo)";
            return Some(match &self.missing_packages[..] {
                [] => needed.into(),
                missing => format!("{needed}; as root it would also run: {}", apt::install_command(missing)),
            });
        }
        if !self.built && !self.go {
            let needed = "Go 1.26 or later is needed in PATH: Kubernetes, containerd and etcd are built from source once";
            return Some(needed.into());
        }
        let (needed, purpose) = if self.built {
            (FREE_TO_RUN_MIB, "to run a node")
        } else {
            (FREE_TO_BUILD_MIB, "to build Kubernetes")
        };
        (self.free_mib < needed).then(|| {
            format!(
                "disk too full: {} MiB free in {}, {needed} MiB needed {purpose} (free some, or set SANDBOX_HEALTH_CACHE)",
                self.free_mib,
                self.cache.display()
            )
        })
    }
}

/// Why tests that need a node cannot run here; `None` if they can.
#[must_use]
pub fn missing() -> Option<String> {
    match Facts::observe() {
        Ok(facts) => facts.missing(),
        Err(error) => Some(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
        Facts {
            root: true,
            missing_packages: vec![],
            go: true,
            built: false,
            free_mib: 6 * 1024,
            cache: "/cache".into(),
        }
    }

    #[test]
    fn complete_machine_misses_nothing() {
        assert_eq!(complete().missing(), None);
    }

    #[test]
    fn missing_root_is_reported() {
        let reason = Facts { root: false, go: false, ..complete() }.missing().unwrap();
        assert!(reason.starts_with("root is needed") && reason.ends_with("(try sudo)"), "{reason}");
        let reason =
            Facts { root: false, missing_packages: vec!["runc", "buildah"], ..complete() }.missing().unwrap();
        assert!(reason.ends_with("apt-get install --no-install-recommends runc buildah"), "{reason}");
        assert!(!reason.contains('\n'));
    }

    #[test]
    fn go_is_required_only_for_builds() {
        let reason = Facts { go: false, ..complete() }.missing().unwrap();
        assert!(reason.starts_with("Go 1.26 or later"), "{reason}");
        assert!(!reason.contains('\n'));
        assert_eq!(Facts { go: false, built: true, ..complete() }.missing(), None);
    }

    #[test]
    fn full_disk_is_reported_with_free_and_needed_space() {
        let reason = Facts { free_mib: 6143, ..complete() }.missing().unwrap();
        assert!(reason.contains("6143 MiB free in /cache, 6144 MiB needed to build"), "{reason}");
        assert_eq!(Facts { free_mib: 1024, built: true, ..complete() }.missing(), None);
        let reason = Facts { free_mib: 1023, built: true, ..complete() }.missing().unwrap();
        assert!(reason.contains("1023 MiB free in /cache, 1024 MiB needed to run"), "{reason}");
    }
}
