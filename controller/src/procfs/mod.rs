//! A mount of proc(5) and the processes in it. Everything read here is world-readable, and every read is bounded, because its content
//! is tenant input. A process is held by its open directory, which never refers to a later process of the same PID. Nothing here
//! decides what a reading means.

pub mod cgroup;
#[cfg(test)]
pub(crate) mod fake;
pub mod pause;
pub mod pidfd;
pub mod scanner;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::time::{ClockId, clock_gettime};

/// Limit in bytes of a file of a process; each is far smaller.
pub const FILE_MAX: usize = 16 * 1024;
/// Limit in bytes of `/proc/<pid>/stat`.
pub const STAT_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct Proc {
    path: PathBuf,
    root: Arc<OwnedFd>,
    ticks_per_second: u64,
    boot_id: Arc<OnceLock<String>>,
}

/// A process for as long as it exists: its PID and its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// PID in the PID namespace of the mount.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

#[derive(Debug)]
pub struct ProcessDirectory(OwnedFd);

impl Proc {
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
        let ticks_per_second = ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100).max(1);
        let root =
            Arc::new(open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        Ok(Self { path, root, ticks_per_second, boot_id: Arc::default() })
    }

    /// Random UUID of the present boot (random(4)), read once; `None` while it cannot be read.
    pub fn boot_id(&self) -> Option<&str> {
        if self.boot_id.get().is_none() {
            let id = self.read("sys/kernel/random/boot_id").ok()?;
            let id = String::from_utf8_lossy(&id).trim().to_owned();
            // Only this thread of the agent reads it.
            let _ = self.boot_id.set(id);
        }
        self.boot_id.get().map(String::as_str)
    }

    /// Clock ticks since boot, the unit of start times.
    pub fn uptime_ticks(&self) -> io::Result<u64> {
        let text = self.read("uptime")?;
        let text = String::from_utf8_lossy(&text);
        let mut parts = text.split([' ', '.']).map(str::parse::<u64>);
        match (parts.next(), parts.next()) {
            (Some(Ok(seconds)), Some(Ok(hundredths))) => {
                Ok(seconds * self.ticks_per_second + hundredths * self.ticks_per_second / 100)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/uptime has no seconds")),
        }
    }

    /// Processes that the OOM killer has killed since boot (Linux 4.13).
    pub fn oom_kills(&self) -> Option<u64> {
        let text = self.read("vmstat").ok()?;
        let text = String::from_utf8_lossy(&text);
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
    }

    pub const fn ticks(&self, seconds: u64) -> u64 {
        seconds * self.ticks_per_second
    }

    /// The API time of a start time, in whole seconds as the API stores it, where it was `uptime_ticks` at `now`.
    pub fn start_time(&self, start_ticks: u64, uptime_ticks: u64, now: Timestamp) -> Timestamp {
        let age = uptime_ticks.saturating_sub(start_ticks) * 1000 / self.ticks_per_second;
        let age = SignedDuration::from_millis(i64::try_from(age).unwrap_or(i64::MAX));
        let start = now.checked_sub(age).unwrap_or(now);
        Timestamp::from_second(start.as_second()).unwrap_or(start)
    }

    /// Whether processes of other users are visible. With the mount option `hidepid` they are not, PID 1 among them.
    pub fn shows_other_users(&self) -> bool {
        self.read("1/stat").is_ok()
    }

    /// Whether it is mounted with an option that hides processes of other users (proc(5)).
    pub fn has_hidepid(&self) -> bool {
        let mounts = self.read("self/mounts").unwrap_or_default();
        String::from_utf8_lossy(&mounts).lines().any(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let &[_, path, "proc", options, ..] = &fields[..] else { return false };
            let hides =
                |option: &str| option.strip_prefix("hidepid=").is_some_and(|it| it != "0" && it != "off");
            self.path.as_os_str() == path && options.split(',').any(hides)
        })
    }

    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    pub fn process(&self, pid: i32) -> io::Result<ProcessDirectory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(ProcessDirectory(openat(&*self.root, pid.to_string(), flags, Mode::empty())?))
    }

    /// `/proc/<pid>/stat` in as few system calls as possible, for it is read of every process: the kernel returns it in one read.
    pub fn stat_line(&self, pid: i32) -> io::Result<Vec<u8>> {
        let file = open_file(self.root.as_fd(), &format!("{pid}/stat"))?;
        let mut line = vec![0; STAT_MAX];
        let len = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *line))?;
        line.truncate(len);
        Ok(line)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_file(self.root.as_fd(), name, FILE_MAX)
    }
}

impl ProcessDirectory {
    /// A file of the process, up to a limit in bytes.
    pub fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        read_file(self.0.as_fd(), name, limit)
    }

    /// Its PIDs from the outermost PID namespace to its own: the line `NSpid` of proc_pid_status(5).
    pub fn pids(&self) -> Vec<i64> {
        let status = self.read("status", FILE_MAX).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// CPU time of the calling thread so far.
pub fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn open_file(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn read_file(directory: BorrowedFd<'_>, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    // With this capacity, most files take one read: a status that is read in pieces may be torn.
    let mut bytes = Vec::with_capacity(limit);
    File::from(open_file(directory, name)?).take(bytes.capacity() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeProc, FakeProcess};
    use super::*;
    use std::fs;

    const BOOT_ID: &str = "11111111-2222-4333-8444-555555555555";

    #[test]
    fn start_time_is_now_less_the_age() {
        let fake = FakeProc::new();
        let proc = fake.proc();
        let uptime = proc.uptime_ticks().unwrap();
        assert_eq!(uptime, proc.ticks(3600));
        let now = Timestamp::from_millisecond(1_700_003_600_700).unwrap();
        assert_eq!(proc.start_time(proc.ticks(12), uptime, now).as_second(), 1_700_000_012);
    }

    #[test]
    fn unreadable_boot_id_is_unknown_until_it_is_read_once() {
        let fake = FakeProc::new();
        let proc = fake.proc();
        fake.set_boot_id(None);
        assert_eq!(proc.boot_id(), None);
        fake.set_boot_id(Some(BOOT_ID));
        assert_eq!(proc.boot_id(), Some(BOOT_ID));
        fake.set_boot_id(None);
        assert_eq!(proc.boot_id(), Some(BOOT_ID));
    }

    #[test]
    fn proc_without_pid_1_hides_other_users() {
        let fake = FakeProc::new();
        assert!(!fake.proc().shows_other_users());
        fake.add(FakeProcess::default());
        assert!(fake.proc().shows_other_users());
        assert_eq!(fake.proc().pids().unwrap(), [1]);
    }

    #[test]
    fn hidepid_is_an_option_of_this_very_mount() {
        let fake = FakeProc::new();
        let proc = fake.proc();
        assert!(!proc.has_hidepid());
        fs::create_dir(fake.path().join("self")).unwrap();
        let path = fake.path().display();
        for (mounts, expected) in [
            (format!("proc {path} proc rw,relatime,hidepid=2 0 0\n"), true),
            (format!("proc {path} proc rw,hidepid=invisible 0 0\n"), true),
            (format!("proc {path} proc rw,hidepid=off 0 0\n"), false),
            (format!("proc {path} proc rw,hidepid=0 0 0\n"), false),
            (format!("proc /elsewhere proc rw,hidepid=2 0 0\nproc {path} proc rw 0 0\n"), false),
        ] {
            fs::write(fake.path().join("self/mounts"), &mounts).unwrap();
            assert_eq!(proc.has_hidepid(), expected, "{mounts}");
        }
    }

    #[test]
    fn process_has_a_pid_in_each_namespace() {
        let fake = FakeProc::new();
        fake.add(FakeProcess { pids: "1 7", ..FakeProcess::default() });
        let process = fake.proc().process(1).unwrap();
        assert_eq!(process.pids(), [1, 7]);
    }

    #[test]
    fn real_proc_is_readable() {
        let proc = Proc::new("/proc").unwrap();
        assert_eq!(proc.boot_id().unwrap().len(), 36);
        assert!(proc.uptime_ticks().unwrap() > 0);
        assert!(proc.oom_kills().is_some());
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(proc.pids().unwrap().contains(&own));
        assert_eq!(proc.process(own).unwrap().pids().first(), Some(&i64::from(own)));
    }

    #[test]
    fn thread_cpu_time_grows_with_work() {
        let before = thread_cpu_time();
        while thread_cpu_time() == before {
            std::hint::black_box(0);
        }
    }
}
