//! A mount of proc(5) and the processes in it. Everything read here is world-readable, and every read is bounded: the content
//! is a tenant's. A process is held by its open directory, which a process of the same PID can never take over.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pause_status::stat::Stat;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open, openat};

/// Bytes read of a file of a process, unless its reader says otherwise; each is far smaller.
pub const FILE_MAX: usize = 16 * 1024;

/// A mount of proc(5).
#[derive(Debug, Clone)]
pub struct Proc {
    path: PathBuf,
    root: Arc<OwnedFd>,
    ticks_per_second: u64,
}

/// A process for as long as it lives: its number, and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// In the PID namespace of the /proc that is read.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
}

/// One run of the machine, from its boot to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Random UUID of this boot (random(4)).
    pub id: String,
    /// When it was, by the machine's present clock.
    pub at: Timestamp,
}

/// The directory of a process, held open.
#[derive(Debug)]
pub struct ProcessDirectory(OwnedFd);

impl Proc {
    /// The proc(5) mounted at `path`.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
        let ticks_per_second = ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        let root = Arc::new(open_directory(&path)?);
        Ok(Self { path, root, ticks_per_second })
    }

    /// The boot that the machine runs since.
    pub fn boot(&self) -> io::Result<Boot> {
        let id =
            String::from_utf8_lossy(&self.read("sys/kernel/random/boot_id", FILE_MAX)?).trim().to_owned();
        // With many CPUs it is long, and what is asked for stands near its end.
        let stat = std::fs::read_to_string(self.path.join("stat"))?;
        let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let at = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no btime in /proc/stat"))?;
        Ok(Boot { id, at })
    }

    /// Clock ticks since boot, by which processes tell their start.
    pub fn uptime_ticks(&self) -> io::Result<u64> {
        let text = self.read("uptime", FILE_MAX)?;
        let text = String::from_utf8_lossy(&text);
        let mut parts = text.split([' ', '.']).map(str::parse::<u64>);
        match (parts.next(), parts.next()) {
            (Some(Ok(seconds)), Some(Ok(hundredths))) => {
                Ok(seconds * self.ticks_per_second + hundredths * self.ticks_per_second / 100)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no seconds in /proc/uptime")),
        }
    }

    /// This many seconds in clock ticks.
    #[must_use]
    pub const fn ticks(&self, seconds: u64) -> u64 {
        seconds * self.ticks_per_second
    }

    /// Whether processes of other users can be seen. With the mount option `hidepid` they cannot, and PID 1 is never ours.
    #[must_use]
    pub fn shows_others(&self) -> bool {
        self.read("1/stat", FILE_MAX).is_ok()
    }

    /// PIDs of all processes.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    /// A process, to read more than one file of.
    pub fn process(&self, pid: i32) -> io::Result<ProcessDirectory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(ProcessDirectory(openat(&*self.root, pid.to_string(), flags, Mode::empty())?))
    }

    /// The line of a process's `stat`, of which nothing else is wanted. It costs as few calls as can be, for it's read of
    /// every process there is: the kernel makes the line at once, and it fits.
    pub fn stat_line(&self, pid: i32) -> io::Result<Vec<u8>> {
        let file = open_file(self.root.as_fd(), &format!("{pid}/stat"))?;
        let mut line = vec![0; 1024];
        let len = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *line))?;
        line.truncate(len);
        Ok(line)
    }

    /// When a process started that says so in ticks.
    #[must_use]
    pub fn started_at(&self, boot: &Boot, start_ticks: u64) -> Timestamp {
        let seconds = i64::try_from(start_ticks / self.ticks_per_second.max(1)).unwrap_or(i64::MAX);
        boot.at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(boot.at)
    }

    fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        read_file(self.root.as_fd(), name, limit)
    }
}

impl ProcessDirectory {
    /// A file of the process, up to a limit in bytes.
    pub fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        read_file(self.0.as_fd(), name, limit)
    }

    /// Whether the process is still the one that it was, and not another of its PID.
    #[must_use]
    pub fn is_still(&self, id: ProcessId) -> bool {
        let Ok(line) = self.read("stat", FILE_MAX) else { return false };
        Stat::parse(&line).is_some_and(|stat| stat.start_ticks == id.start_ticks)
    }

    /// Its PIDs, from the outermost PID namespace to its own: the line `NSpid` of proc_pid_status(5).
    #[must_use]
    pub fn pids(&self) -> Vec<i64> {
        let status = self.read("status", FILE_MAX).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_file(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn read_file(directory: BorrowedFd<'_>, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    let file = open_file(directory, name)?;
    let mut bytes = vec![0; limit];
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *rest))? {
            0 => break,
            read => len += read,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod fake {
    //! A folder with as much of a proc(5) as the agent reads.

    use std::fs;
    use std::process::{Child, Command};

    use super::*;

    pub(crate) const UID: &str = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
    pub(crate) const SANDBOX: &str = "9c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a5";
    pub(crate) const CONTAINER: &str = "1111111122222222333333334444444455555555666666667777777788888888";

    pub(crate) struct FakeProc(tempfile::TempDir);

    /// A process as its files are to show it.
    pub(crate) struct FakeProcess<'a> {
        pub(crate) pid: i32,
        pub(crate) parent: i32,
        pub(crate) comm: &'a str,
        pub(crate) state: char,
        /// All its PIDs, as `NSpid` has them.
        pub(crate) pids: &'a str,
        /// Its container, in the pod of [`UID`]; or none.
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
                pids: "1",
                container: None,
                start_ticks: 1200,
                cmdline: b"",
            }
        }
    }

    impl FakeProc {
        /// An hour after its boot.
        pub(crate) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
            put("stat", "cpu 1\nbtime 1700000000\n");
            put("uptime", "3600.00 7000.00\n");
            fs::create_dir_all(folder.path().join("sys/kernel/random")).unwrap();
            put("sys/kernel/random/boot_id", "11111111-2222-4333-8444-555555555555\n");
            Self(folder)
        }

        pub(crate) fn proc(&self) -> Proc {
            Proc::new(self.0.path()).unwrap()
        }

        pub(crate) fn add(&self, process: FakeProcess<'_>) {
            let FakeProcess { pid, parent, comm, state, pids, container, start_ticks, cmdline } = process;
            let folder = self.0.path().join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            let stat = format!(
                "{pid} ({comm}) {state} {parent} 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 {start_ticks} 0 0"
            );
            fs::write(folder.join("stat"), stat).unwrap();
            let status = format!("Name:\t{comm}\nNSpid:\t{pids}\nThreads:\t1\n");
            fs::write(folder.join("status"), status).unwrap();
            let cgroup = container.map_or("/".to_owned(), |id| format!("/kubepods/pod{UID}/{id}"));
            fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
            fs::write(folder.join("cmdline"), cmdline).unwrap();
        }

        pub(crate) fn remove(&self, pid: i32) {
            fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
        }

        /// A living pause, of another make, that is shown as this container's.
        pub(crate) fn start_pause(&self, container: &str, start_ticks: u64) -> FakePause {
            let pause = FakePause(Command::new("sleep").arg("1000").spawn().unwrap());
            let pids = format!("{} 1", pause.pid());
            self.add(FakeProcess {
                pid: pause.pid(),
                comm: "pause",
                pids: &pids,
                container: Some(container),
                start_ticks,
                cmdline: b"/pause\0",
                ..FakeProcess::default()
            });
            pause
        }
    }

    /// A real process, since no other has a pidfd.
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
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeProc, FakeProcess};
    use super::*;

    #[test]
    fn the_boot_and_the_time_since_are_read() {
        let fake = FakeProc::new();
        let boot = fake.proc().boot().unwrap();
        assert_eq!(
            (boot.id.as_str(), boot.at.as_second()),
            ("11111111-2222-4333-8444-555555555555", 1_700_000_000)
        );
        assert_eq!(fake.proc().uptime_ticks().unwrap(), fake.proc().ticks(3600));
    }

    #[test]
    fn a_proc_without_pid_1_hides_others() {
        let fake = FakeProc::new();
        assert!(!fake.proc().shows_others());
        fake.add(FakeProcess::default());
        assert!(fake.proc().shows_others());
        assert_eq!(fake.proc().pids().unwrap(), [1]);
    }

    #[test]
    fn a_process_of_the_same_pid_is_another() {
        let fake = FakeProc::new();
        fake.add(FakeProcess { pids: "1 7", ..FakeProcess::default() });
        let process = fake.proc().process(1).unwrap();
        assert_eq!(process.pids(), [1, 7]);
        assert!(process.is_still(ProcessId { pid: 1, start_ticks: 1200 }));
        assert!(!process.is_still(ProcessId { pid: 1, start_ticks: 1201 }));
    }

    #[test]
    fn the_real_proc_is_read_the_same() {
        let proc = Proc::new("/proc").unwrap();
        assert_eq!(proc.boot().unwrap().id.len(), 36);
        assert!(proc.uptime_ticks().unwrap() > 0);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(proc.pids().unwrap().contains(&own));
        assert_eq!(proc.process(own).unwrap().pids().first(), Some(&i64::from(own)));
    }
}
