//! Finds pause processes in /proc and reads them. Everything read here is world-readable, and everything is bounded: the
//! content is a tenant's. A process is held by its open directory, which a process of the same PID can never take over.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pause_status::stat::Stat;
use pause_status::{Refusal, Status};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::{CgroupIdentity, identify};

/// Name of every pause process, ours and others'.
const PAUSE_COMM: &[u8] = b"pause";
/// How often a status is read that may be torn.
const READS: usize = 3;
/// Bytes read of a command line: the program's name, the room for a status, and what options may follow.
const CMDLINE_MAX: usize = 4096;
/// Bytes read of the other files of a process; each is far smaller.
const FILE_MAX: usize = 16 * 1024;

/// A mount of proc(5).
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
    ticks_per_second: i64,
}

/// A process for as long as it lives: its number, and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// In the PID namespace of the /proc that is read.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
}

/// A pause process that was found, held open.
#[derive(Debug)]
pub struct Pause {
    /// Which process it is.
    pub id: ProcessId,
    /// Whose it is.
    pub identity: CgroupIdentity,
    /// When it started.
    pub started_at: Timestamp,
    directory: OwnedFd,
}

/// Why the status of a pause process could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The process is gone.
    #[error("the pause process has ended")]
    Gone,
    /// The kernel refused.
    #[error("its command line could not be read: {0}")]
    Io(String),
    /// There was something else than a status.
    #[error("{0}")]
    Refused(Refusal),
    /// Pause itself could not count.
    #[error("pause could not count the processes of its PID namespace")]
    NotCounted,
}

impl ReadError {
    /// A word for it in CamelCase, as metrics and conditions take it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "PauseGone",
            Self::Io(_) => "CmdlineUnreadable",
            Self::Refused(refusal) => refusal.reason(),
            Self::NotCounted => "NotCounted",
        }
    }

    /// Every reason there is.
    pub fn all_reasons() -> impl Iterator<Item = &'static str> {
        let own = [Self::Gone, Self::Io(String::new()), Self::NotCounted];
        own.map(|error| error.reason()).into_iter().chain(Refusal::ALL.map(Refusal::reason))
    }
}

/// One reading of a pause's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Zombies in the pod.
    pub zombies: u32,
    /// Most zombies at any scan of pause.
    pub peak: u32,
    /// Processes in the pod.
    pub processes: u32,
    /// Orphans reaped since pause started.
    pub reaped: u64,
    /// Version of the pause program.
    pub version: String,
}

impl Proc {
    /// The proc(5) mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
        Ok(Self { root: root.into(), ticks_per_second: ticks.unwrap_or(100) })
    }

    /// When the machine was booted, by its present clock.
    pub fn booted_at(&self) -> io::Result<Timestamp> {
        let stat = std::fs::read_to_string(self.root.join("stat"))?;
        let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let booted = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        booted.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no btime in /proc/stat"))
    }

    /// Every pause that is PID 1 of a pod's PID namespace, but for those in `known`.
    pub fn find_pauses(&self, known: &HashSet<ProcessId>) -> io::Result<Vec<Pause>> {
        let booted = self.booted_at()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that ends while we look is none that we look for.
            found.extend(self.look_at(pid, known, booted).unwrap_or_default());
        }
        Ok(found)
    }

    fn look_at(&self, pid: i32, known: &HashSet<ProcessId>, booted: Timestamp) -> io::Result<Option<Pause>> {
        let directory = open_directory(&self.root.join(pid.to_string()))?;
        let stat = read_file(&directory, "stat", FILE_MAX)?;
        let Some(stat) = Stat::parse(&stat) else {
            return Ok(None);
        };
        let id = ProcessId { pid, start_ticks: stat.start_ticks };
        if stat.comm != PAUSE_COMM || stat.state == b'Z' || known.contains(&id) {
            return Ok(None);
        }
        let status = read_file(&directory, "status", FILE_MAX)?;
        if !is_first_of_a_pod(&String::from_utf8_lossy(&status)) {
            return Ok(None);
        }
        let cgroup = read_file(&directory, "cgroup", FILE_MAX)?;
        let Some(identity) = identify(&String::from_utf8_lossy(&cgroup)) else {
            return Ok(None);
        };
        let started_at = self.started_at(booted, stat.start_ticks);
        Ok(Some(Pause { id, identity, started_at, directory }))
    }

    fn started_at(&self, booted: Timestamp, start_ticks: u64) -> Timestamp {
        let seconds = i64::try_from(start_ticks).unwrap_or(i64::MAX) / self.ticks_per_second;
        booted.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(booted)
    }
}

impl Pause {
    /// Reads the status, more than once if it's torn.
    pub fn read(&self) -> Result<Reading, ReadError> {
        let mut last = ReadError::Gone;
        for _ in 0..READS {
            match self.read_once() {
                Err(ReadError::Refused(refusal)) if refusal != Refusal::NoStatus => {
                    last = ReadError::Refused(refusal)
                }
                outcome => return outcome,
            }
        }
        Err(last)
    }

    fn read_once(&self) -> Result<Reading, ReadError> {
        let cmdline = read_file(&self.directory, "cmdline", CMDLINE_MAX).map_err(|error| {
            if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
                ReadError::Gone
            } else {
                ReadError::Io(error.to_string())
            }
        })?;
        // A process that is ending has no memory any more, so its command line is empty.
        if cmdline.is_empty() {
            return Err(ReadError::Gone);
        }
        let status = Status::from_cmdline(&cmdline).map_err(ReadError::Refused)?;
        if !status.counted() {
            return Err(ReadError::NotCounted);
        }
        Ok(Reading {
            zombies: status.zombies,
            peak: status.peak,
            processes: status.processes,
            reaped: status.reaped,
            version: status.version.to_owned(),
        })
    }

    /// A descriptor that becomes readable when the process ends (pidfd_open(2)); `None` if it has ended already.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.id.pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Our directory still answers, so the PID was not given to another process in between.
        read_file(&self.directory, "stat", FILE_MAX).ok()?;
        Some(pidfd)
    }
}

/// Whether a process is PID 1 of a PID namespace that is a child of ours, as the sandbox of a pod with a shared PID
/// namespace is, and no other process of that pod can be: the `NSpid` line of proc_pid_status(5).
fn is_first_of_a_pod(status: &str) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let mut pids = pids.split_whitespace();
    pids.next().is_some() && pids.next() == Some("1") && pids.next().is_none()
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn read_file(directory: &OwnedFd, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
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
mod tests {
    use super::*;
    use pause_status::{ROOM, Separator};
    use std::fs;

    const UID: &str = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
    const ID: &str = "9c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a5";

    struct FakeProc(tempfile::TempDir);

    impl FakeProc {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("stat"), "cpu 1\nbtime 1700000000\n").unwrap();
            fs::create_dir(folder.path().join("sys")).unwrap();
            Self(folder)
        }

        fn process(&self, pid: i32, comm: &str, ns_pid: &str, cmdline: &[u8]) {
            let folder = self.0.path().join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            let stat = format!("{pid} ({comm}) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 1200 0 0");
            fs::write(folder.join("stat"), stat).unwrap();
            fs::write(folder.join("status"), format!("Name:\t{comm}\nNSpid:\t{ns_pid}\nThreads:\t1\n"))
                .unwrap();
            fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{UID}/{ID}\n")).unwrap();
            fs::write(folder.join("cmdline"), cmdline).unwrap();
        }

        fn find(&self, known: &HashSet<ProcessId>) -> Vec<Pause> {
            Proc::new(self.0.path()).unwrap().find_pauses(known).unwrap()
        }
    }

    fn cmdline(status: &Status<'_>) -> Vec<u8> {
        let mut room = [0; ROOM];
        let len = status.encode(Separator::Nul, &mut room);
        [b"/pause\0", &room[..len]].concat()
    }

    fn status() -> Status<'static> {
        Status {
            zombies: 2,
            reaped: 7,
            processes: 5,
            peak: 3,
            init: true,
            version: "0.1.0",
            ..Status::default()
        }
    }

    #[test]
    fn a_pause_is_found_and_read() {
        let proc = FakeProc::new();
        proc.process(40, "pause", "40\t1", &cmdline(&status()));
        proc.process(41, "nginx", "41\t7", b"nginx\0");
        let found = proc.find(&HashSet::new());
        let [pause] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (pause.id.pid, pause.identity.pod.as_str(), pause.identity.container.as_str()),
            (40, UID, ID)
        );
        assert_eq!(pause.started_at, Timestamp::from_second(1_700_000_012).unwrap());
        let reading = Reading { zombies: 2, peak: 3, processes: 5, reaped: 7, version: "0.1.0".to_owned() };
        assert_eq!(pause.read(), Ok(reading));
        assert!(proc.find(&HashSet::from([pause.id])).is_empty());
    }

    #[test]
    fn an_ordinary_process_cannot_pose_as_a_pause() {
        let proc = FakeProc::new();
        proc.process(50, "pause", "50\t12", b"/pause\0");
        proc.process(51, "pause", "51\t13\t1", b"/pause\0");
        proc.process(52, "pause", "52", b"/pause\0");
        proc.process(53, "pausing", "53\t1", b"/pause\0");
        assert!(proc.find(&HashSet::new()).is_empty());
    }

    #[test]
    fn what_is_no_status_is_a_typed_error() {
        let proc = FakeProc::new();
        let mut altered = cmdline(&status());
        altered[15] = b'9';
        let uncounted = cmdline(&Status { processes: 0, ..status() });
        for (text, error) in [
            (b"/pause\0".to_vec(), ReadError::Refused(Refusal::NoStatus)),
            (b"".to_vec(), ReadError::Gone),
            (altered, ReadError::Refused(Refusal::WrongSum)),
            (uncounted, ReadError::NotCounted),
            (vec![0xff; 9000], ReadError::Refused(Refusal::NoStatus)),
        ] {
            proc.process(40, "pause", "40\t1", &text);
            assert_eq!(proc.find(&HashSet::new())[0].read(), Err(error));
        }
        let pause = proc.find(&HashSet::new()).remove(0);
        fs::remove_file(proc.0.path().join("40/cmdline")).unwrap();
        assert!(matches!(pause.read(), Err(ReadError::Io(_))));
    }

    #[test]
    fn each_read_error_has_a_reason_of_its_own() {
        let reasons: Vec<_> = ReadError::all_reasons().collect();
        assert_eq!(reasons.iter().collect::<HashSet<_>>().len(), reasons.len());
    }
}
