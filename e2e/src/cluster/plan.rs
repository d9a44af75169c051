//! The specification of a node, which its owner passes to the guard and the guard to the node's PID 1. Both are this binary, so it is
//! passed as command-line arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// Longer ones would not fit into the names of sockets and cgroups that are made from it.
const NAME_MAX: usize = 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) name: String,
    /// Whether it ends with its owner.
    pub(super) tied: bool,
    /// Whether it runs Kubernetes. A bare node has namespaces, mounts, cgroups and a network only.
    pub(super) has_components: bool,
    pub(super) cache: PathBuf,
    pub(super) images: Vec<PathBuf>,
}

impl Plan {
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let life = if self.tied { "tied" } else { "detached" };
        let content = if self.has_components { "kubernetes" } else { "bare" };
        let mut arguments: Vec<OsString> =
            vec![(&self.name).into(), life.into(), content.into(), (&self.cache).into()];
        arguments.extend(self.images.iter().map(OsString::from));
        arguments
    }

    pub(super) fn from_arguments(mut arguments: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut next = || arguments.next().context("a node's process needs more arguments");
        let text = |word: OsString| word.into_string().ok().context("not UTF-8");
        let plan = Self {
            name: text(next()?)?,
            tied: next()? == "tied",
            has_components: next()? == "kubernetes",
            cache: next()?.into(),
            images: vec![],
        };
        Ok(Self { images: arguments.map(PathBuf::from).collect(), ..plan })
    }

    pub(super) fn nodes(&self) -> PathBuf {
        nodes(&self.cache)
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::new(&self.cache, &self.name)
    }
}

pub(super) fn nodes(cache: &Path) -> PathBuf {
    cache.join("nodes")
}

/// Checks that a name is valid for a host, a directory and a cgroup.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fits =
        |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    ensure!(
        (1..=NAME_MAX).contains(&name.len())
            && name.chars().all(fits)
            && !name.starts_with('-')
            && !name.ends_with('-'),
        "node name {name:?}: 1 to {NAME_MAX} lower-case letters, digits and inner hyphens are needed"
    );
    Ok(())
}

/// The paths of a node's state directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) name: String,
    pub(super) state: PathBuf,
    cache: PathBuf,
}

impl Layout {
    pub(super) fn new(cache: &Path, name: &str) -> Self {
        Self { name: name.into(), state: nodes(cache).join(name), cache: cache.into() }
    }

    /// The guard holds it for as long as it lives. It is never removed: a process that waits must open the locked file.
    pub(super) fn lock(&self) -> PathBuf {
        self.state.with_extension("lock")
    }

    /// The node's cgroup in each hierarchy. Nodes of other caches may have the same name, and must not share it.
    pub(super) fn cgroup(&self) -> String {
        let cache = format!("{:x}", Sha256::digest(self.cache.as_os_str().as_encoded_bytes()));
        format!("sandbox-health-{}-{}", self.name, &cache[..8])
    }

    /// The list of the archives that it was started from.
    pub(super) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The directory that the logs are moved to when the node ends. They stay until another node of this name ends.
    pub(super) fn kept_logs(&self) -> PathBuf {
        self.cache.join("logs").join(&self.name)
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    /// Exists once the node is Ready.
    pub(super) fn ready(&self) -> PathBuf {
        self.state.join("ready")
    }

    pub(super) fn guard_pid(&self) -> PathBuf {
        self.state.join("guard.pid")
    }

    /// As seen from outside the node's PID namespace.
    pub(super) fn init_pid(&self) -> PathBuf {
        self.state.join("init.pid")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.state.join("control")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub(super) fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    pub(super) fn pki(&self, file: &str) -> PathBuf {
        self.state.join("pki").join(file)
    }

    /// Written by the components as they run.
    pub(super) fn run(&self, file: &str) -> PathBuf {
        self.state.join("run").join(file)
    }

    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.pki(&format!("{user}.conf"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_survives_command_line() {
        let plan = Plan {
            name: "a".into(),
            tied: true,
            has_components: true,
            cache: "/c d".into(),
            images: vec!["/x.tar".into(), "/y.tar".into()],
        };
        assert_eq!(Plan::from_arguments(plan.arguments().into_iter()).unwrap(), plan);
        let detached = Plan { tied: false, has_components: false, images: vec![], ..plan };
        assert_eq!(Plan::from_arguments(detached.arguments().into_iter()).unwrap(), detached);
        assert!(Plan::from_arguments(["a".into()].into_iter()).is_err());
    }

    #[test]
    fn node_name_must_be_host_name() {
        for good in ["a", "demo", "node-1"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a.b", "..", &"a".repeat(31)] {
            check_name(bad).unwrap_err();
        }
    }
}
