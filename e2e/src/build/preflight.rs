//! What a machine must have before a node of ours can run on it, and how each lack is told. [`Facts::observe`] looks,
//! [`Facts::lacking`] judges; nothing is installed here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;

use crate::build::go;
use crate::host::{apt, cache, command};

/// Sources, Go's build cache and the programs themselves.
const FREE_TO_BUILD_MIB: u64 = 6 * 1024;
/// Images, etcd's log and the writable layers of the pods.
const FREE_TO_RUN_MIB: u64 = 1024;

/// What was seen of this machine.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The effective user is root.
    pub root: bool,
    /// Debian packages whose programs are not there.
    pub missing_packages: Vec<&'static str>,
    /// `go` is in PATH.
    pub go: bool,
    /// Every upstream program is in the cache.
    pub built: bool,
    /// Room in the cache's file system for a user without privileges, in MiB.
    pub free_mib: u64,
    /// The cache folder.
    pub cache: PathBuf,
}

impl Facts {
    /// Looks at the machine.
    ///
    /// # Errors
    ///
    /// When there is no cache folder to speak of, or its file system cannot be asked.
    pub fn observe() -> Result<Self> {
        let cache = cache::root()?;
        // Before the first run the folder does not exist; the file system is that of the nearest folder that does.
        let existing = cache.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let room = statvfs(existing).with_context(|| format!("free space of {}", existing.display()))?;
        Ok(Self {
            root: nix::unistd::geteuid().is_root(),
            missing_packages: apt::missing(),
            go: command::find_here("go").is_some(),
            built: go::all_cached()?,
            free_mib: room.blocks_available() * room.fragment_size() / (1024 * 1024),
            cache,
        })
    }

    /// The first reason why no node can run here, in one line: what, why, and what to do about it.
    #[must_use]
    pub fn lacking(&self) -> Option<String> {
        if !self.root {
            let needed = "root is needed: a node is made of namespaces, mounts and cgroups (try sudo)";
            return Some(match &self.missing_packages[..] {
                [] => needed.into(),
                missing => format!("{needed}; it would also run: {}", apt::install_command(missing)),
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

/// Why the tests that need a node cannot run here; `None` when they can.
#[must_use]
pub fn missing() -> Option<String> {
    match Facts::observe() {
        Ok(facts) => facts.lacking(),
        Err(error) => Some(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Facts {
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
    fn an_able_machine_lacks_nothing() {
        assert_eq!(able().lacking(), None);
    }

    #[test]
    fn without_root_root_is_asked_for() {
        let lack = Facts { root: false, go: false, ..able() }.lacking().unwrap();
        assert!(lack.starts_with("root is needed") && lack.ends_with("(try sudo)"), "{lack}");
        let lack =
            Facts { root: false, missing_packages: vec!["runc", "buildah"], ..able() }.lacking().unwrap();
        assert!(lack.ends_with("apt-get install --no-install-recommends runc buildah"), "{lack}");
        assert!(!lack.contains('\n'));
    }

    #[test]
    fn go_is_asked_for_only_while_there_is_something_to_build() {
        let lack = Facts { go: false, ..able() }.lacking().unwrap();
        assert!(lack.starts_with("Go 1.26 or later"), "{lack}");
        assert!(!lack.contains('\n'));
        assert_eq!(Facts { go: false, built: true, ..able() }.lacking(), None);
    }

    #[test]
    fn a_full_disk_is_told_with_what_is_free_and_what_is_needed() {
        let lack = Facts { free_mib: 6143, ..able() }.lacking().unwrap();
        assert!(lack.contains("6143 MiB free in /cache, 6144 MiB needed to build"), "{lack}");
        assert_eq!(Facts { free_mib: 1024, built: true, ..able() }.lacking(), None);
        let lack = Facts { free_mib: 1023, built: true, ..able() }.lacking().unwrap();
        assert!(lack.contains("1023 MiB free in /cache, 1024 MiB needed to run"), "{lack}");
    }
}
