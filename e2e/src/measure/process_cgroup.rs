//! The cgroup of a process in the hierarchy that counts processes. Reads only.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The mount point of the hierarchy that counts processes: cgroup v2, or the pids hierarchy of v1.
pub(crate) fn of_processes() -> Result<PathBuf> {
    hierarchy_of_processes(&fs::read_to_string("/proc/self/mountinfo")?)
        .context("no hierarchy counts processes")
}

/// As above, from the text of proc_pid_mountinfo(5): the last field has the controllers of v1.
fn hierarchy_of_processes(mountinfo: &str) -> Option<PathBuf> {
    let has_pids = |line: &&str| {
        let (_, filesystem) = line.split_once(" - ").unwrap_or_default();
        let options = filesystem.rsplit(' ').next().unwrap_or_default();
        filesystem.starts_with("cgroup ") && options.split(',').any(|option| option == "pids")
    };
    let line = mountinfo.lines().find(has_pids).or_else(|| {
        mountinfo.lines().find(|line| line.contains(" - cgroup2 ") && !mountinfo.contains(" - cgroup "))
    })?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}

/// The directory of a process in that hierarchy.
pub(crate) fn directory_of(pid: u32) -> Result<PathBuf> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = path_of_processes(&cgroup).context("the process is in no cgroup that counts processes")?;
    Ok(of_processes()?.join(path.trim_start_matches('/')))
}

/// From the text of proc_pid_cgroup(5), `hierarchy:controllers:path`.
fn path_of_processes(cgroup: &str) -> Option<&str> {
    let fields = |line: &'_ str| -> Option<(bool, bool)> {
        let mut fields = line.splitn(3, ':');
        let (number, controllers) = (fields.next()?, fields.next()?);
        Some((controllers.split(',').any(|controller| controller == "pids"), number == "0"))
    };
    let line =
        |wanted: fn((bool, bool)) -> bool| cgroup.lines().find(|line| fields(line).is_some_and(wanted));
    line(|(pids, _)| pids).or_else(|| line(|(_, unified)| unified))?.splitn(3, ':').nth(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchy_of_processes_is_found_in_both_versions() {
        let v1 = "34 31 0:31 / /sys/fs/cgroup/cpuset rw shared:9 - cgroup cgroup rw,cpuset\n\
                  39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchy_of_processes(v1), Some("/sys/fs/cgroup/pids".into()));
        let v2 = "34 31 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(hierarchy_of_processes(v2), Some("/sys/fs/cgroup".into()));
        assert_eq!(hierarchy_of_processes("31 23 0:28 / / rw - ext4 /dev/vda rw\n"), None);
        assert_eq!(path_of_processes("9:name=systemd:/a\n8:pids:/b:c\n0::/d\n"), Some("/b:c"));
        assert_eq!(path_of_processes("0::/d\n"), Some("/d"));
        assert_eq!(path_of_processes(""), None);
    }
}
