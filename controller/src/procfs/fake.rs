//! A directory with as much of a proc(5) as the agent reads.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::*;

pub(crate) const UID: &str = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
pub(crate) const SANDBOX: &str = "9c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a5";
pub(crate) const NEXT_SANDBOX: &str = "2222222222222222222222222222222222222222222222222222222222222222";
pub(crate) const CONTAINER: &str = "1111111122222222333333334444444455555555666666667777777788888888";

pub(crate) struct FakeProc(tempfile::TempDir);

/// A process as its files show it.
pub(crate) struct FakeProcess<'a> {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) comm: &'a str,
    pub(crate) state: char,
    pub(crate) threads: u32,
    /// All its PIDs, as `NSpid` has them.
    pub(crate) pids: &'a str,
    /// Its container, in the pod of [`UID`].
    pub(crate) container: Option<&'a str>,
    pub(crate) start_ticks: u64,
    pub(crate) cmdline: &'a [u8],
}

impl Default for FakeProcess<'_> {
    fn default() -> Self {
        Self {
            pid: 1,
            parent: 0,
            comm: "init",
            state: 'S',
            threads: 1,
            pids: "1",
            container: None,
            start_ticks: 1200,
            cmdline: b"",
        }
    }
}

impl FakeProc {
    /// One hour after boot.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("uptime"), "3600.00 7000.00\n").unwrap();
        fs::create_dir_all(directory.path().join("sys/kernel/random")).unwrap();
        let fake = Self(directory);
        fake.set_oom_kills(0);
        fake.set_boot_id(Some("11111111-2222-4333-8444-555555555555"));
        fake
    }

    pub(crate) fn set_boot_id(&self, id: Option<&str>) {
        let file = self.path().join("sys/kernel/random/boot_id");
        match id {
            Some(id) => fs::write(file, format!("{id}\n")).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
    }

    pub(crate) fn set_oom_kills(&self, total: u64) {
        fs::write(self.path().join("vmstat"), format!("nr_free_pages 9\noom_kill {total}\nzswpin 0\n"))
            .unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn proc(&self) -> Proc {
        Proc::new(self.path()).unwrap()
    }

    pub(crate) fn add(&self, process: FakeProcess<'_>) {
        let FakeProcess { pid, parent, comm, state, threads, pids, container, start_ticks, cmdline } =
            process;
        let directory = self.path().join(pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        // A process that has exited has no memory, and so no command line.
        let size = if cmdline.is_empty() { 0 } else { 4096 };
        let stat = format!(
            "{pid} ({comm}) {state} {parent} 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 {start_ticks} {size} 0"
        );
        fs::write(directory.join("stat"), stat).unwrap();
        let status = format!("Name:\t{comm}\nNSpid:\t{pids}\nThreads:\t{threads}\n");
        fs::write(directory.join("status"), status).unwrap();
        let cgroup = container.map_or("/".to_owned(), |id| format!("/kubepods/pod{UID}/{id}"));
        fs::write(directory.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        fs::write(directory.join("cmdline"), cmdline).unwrap();
    }

    /// Denies access to a file of a process until the result is dropped, to root as well: it loses its privilege in this thread.
    pub(crate) fn deny(&self, pid: i32, file: &str) -> DeniedFile {
        let path = self.path().join(format!("{pid}/{file}"));
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        nix::unistd::setfsuid(64535.into());
        DeniedFile(path)
    }

    pub(crate) fn remove(&self, pid: i32) {
        fs::remove_dir_all(self.path().join(pid.to_string())).unwrap();
    }

    /// A live third-party pause that is shown as the one of this sandbox.
    pub(crate) fn start_pause(&self, sandbox: &str, start_ticks: u64) -> FakePause {
        let pause = FakePause(Command::new("sleep").arg("1000").spawn().unwrap());
        let pids = format!("{} 1", pause.pid());
        self.add(FakeProcess {
            pid: pause.pid(),
            comm: "pause",
            pids: &pids,
            container: Some(sandbox),
            start_ticks,
            cmdline: b"/pause\0",
            ..FakeProcess::default()
        });
        pause
    }
}

pub(crate) struct DeniedFile(PathBuf);

impl Drop for DeniedFile {
    fn drop(&mut self) {
        nix::unistd::setfsuid(nix::unistd::getuid());
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o644));
    }
}

/// A real process, because only those have pidfds.
pub(crate) struct FakePause(Child);

impl FakePause {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for FakePause {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
