//! The node's own cgroup in every hierarchy: created before the kubelet starts, and removed afterwards with everything below it. It must
//! never touch a cgroup of another name.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A cgroup can be removed when its last process has been reaped, which takes the kernel a moment.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq)]
enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

/// Whether this machine has cgroup v2 only.
pub(super) fn is_unified() -> Result<bool> {
    let hierarchies = mounted()?;
    ensure!(!hierarchies.is_empty(), "no cgroup hierarchy is mounted");
    Ok(hierarchies.iter().all(|hierarchy| matches!(hierarchy, Hierarchy::V2(_))))
}

/// Creates it in every hierarchy. The kubelet refuses to start if one is missing.
pub(crate) fn create(root: &str) -> Result<()> {
    let unified = is_unified()?;
    for hierarchy in mounted()? {
        match hierarchy {
            Hierarchy::V1(mount) => create_v1(&mount, root)?,
            Hierarchy::V2(mount) if unified => create_v2(&mount, root)?,
            // Beside v1 hierarchies v2 has no controllers, and is not used.
            Hierarchy::V2(_) => {}
        }
    }
    Ok(())
}

fn create_v1(mount: &Path, root: &str) -> Result<()> {
    let directory = mount.join(root);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    // A new cpuset is empty, and accepts no process until it is filled.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = mount.join(file);
        if from.exists() {
            fs::write(directory.join(file), fs::read_to_string(&from)?)
                .with_context(|| format!("filling {}", directory.join(file).display()))?;
        }
    }
    Ok(())
}

fn create_v2(mount: &Path, root: &str) -> Result<()> {
    let directory = mount.join(root);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let controllers = fs::read_to_string(mount.join("cgroup.controllers"))?;
    for parent in [mount, &directory] {
        for controller in controllers.split_whitespace() {
            // If a controller cannot be delegated, the kubelet reports it in case it needs it.
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

/// Kills the processes in it and removes it. Returns whether there was something to remove.
pub(crate) fn remove(root: &str) -> Result<bool> {
    let mut found = false;
    for hierarchy in mounted()? {
        let (Hierarchy::V1(mount) | Hierarchy::V2(mount)) = hierarchy;
        let directory = mount.join(root);
        if directory.exists() {
            found = true;
            remove_tree_with_retries(&directory)?;
        }
    }
    Ok(found)
}

fn remove_tree_with_retries(directory: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        match remove_tree(directory) {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > TIMEOUT => {
                return Err(error).with_context(|| format!("removing the cgroup {}", directory.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for process in fs::read_to_string(directory.join("cgroup.procs"))?.lines() {
        // 0 is a process of another PID namespace; for kill(2) it is our own process group.
        if let Some(process) = process.parse().ok().filter(|process| *process > 1) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
    fs::remove_dir(directory)
}

fn mounted() -> Result<Vec<Hierarchy>> {
    Ok(hierarchies(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Parses proc_pid_mountinfo(5): the mount point is the fifth field, the type the first after the hyphen.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = PathBuf::from(mount.split(' ').nth(4)?);
        match filesystem.split(' ').next()? {
            "cgroup" => Some(Hierarchy::V1(point)),
            "cgroup2" => Some(Hierarchy::V2(point)),
            _ => None,
        }
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                         34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = hierarchies(mountinfo);
        assert_eq!(
            found,
            [Hierarchy::V1("/sys/fs/cgroup/cpuset".into()), Hierarchy::V2("/sys/fs/cgroup/unified".into())]
        );
        assert_eq!(hierarchies("31 23 0:28 / / rw - ext4 /dev/vda rw\n"), []);
    }
}
