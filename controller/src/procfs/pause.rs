//! A pause process: held, so that its exit is noticed and a reused PID is never read for it, and read. Its command line is tenant
//! input: bounded, and every failure is a typed result.

use std::io::ErrorKind;

use jiff::Timestamp;
use pause_status::{Refusal, Status, stat};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use strum::EnumCount;

use super::cgroup::CgroupIdentity;
use super::{ProcessDirectory, ProcessId, STAT_MAX};
use crate::crd::Source;

/// Attempts to read a status that may be torn.
const ATTEMPTS: usize = 3;
/// Limit in bytes of a command line: the program's name, the room for a status, and options that may follow.
const CMDLINE_MAX: usize = 4096;

/// A pause process, held by its open directory.
#[derive(Debug)]
pub struct PauseProcess {
    pub id: ProcessId,
    pub identity: CgroupIdentity,
    pub started_at: Timestamp,
    /// Started only some seconds before it was found.
    pub is_new: bool,
    pub directory: ProcessDirectory,
}

/// Opens a pidfd. A test has others than [`open_pidfd`].
pub type OpenPidfd = fn(Pid) -> rustix::io::Result<OwnedFd>;

/// Without flags: PIDFD_NONBLOCK requires Linux 5.10.
pub fn open_pidfd(pid: Pid) -> rustix::io::Result<OwnedFd> {
    pidfd_open(pid, PidfdFlags::empty())
}

/// Why the sandbox or the processes of a pod could not be read.
#[derive(Debug, Clone, PartialEq, Eq, EnumCount, thiserror::Error)]
pub enum ReadError {
    #[error(
        "pause has exited, but its PID namespace has not ended; look for processes of the pod in state D on the node"
    )]
    Gone,
    #[error("the command line of pause cannot be read: {0}")]
    Io(String),
    #[error("{0}")]
    Refused(Refusal),
    #[error(
        "/proc is mounted with hidepid (proc(5)): processes of other users are hidden from the agent; remount it on the node without hidepid"
    )]
    Hidden,
    #[error(
        "a security module denies the agent access to processes in /proc; if it is SELinux, set the chart's value agent.podSecurityContext.seLinuxOptions.type to spc_t"
    )]
    Denied,
    #[error("no sandbox of the pod was found among the processes of its node")]
    NotFound,
    #[error("the kubelet has not created the pod's sandbox")]
    NotCreated,
    #[error(
        "no pause process of the pod is visible on the node: sandbox restarts and processes that the node does not see are not observed"
    )]
    NoPause,
    #[error("pause could not count all processes of its PID namespace")]
    NotCounted(PauseReport),
}

impl ReadError {
    /// Why the sandbox is not observed, so that restarts are not either.
    pub const WITHOUT_SANDBOX: [Self; 5] =
        [Self::Hidden, Self::Denied, Self::NotFound, Self::NotCreated, Self::NoPause];

    /// The reason in CamelCase, for conditions and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "PauseGone",
            Self::Io(_) => "CmdlineUnreadable",
            Self::Refused(refusal) => refusal.reason(),
            Self::Hidden => "ProcHidden",
            Self::Denied => "ProcDenied",
            Self::NotFound => "SandboxNotFound",
            Self::NotCreated => "SandboxNotCreated",
            Self::NoPause => "NoPauseProcess",
            Self::NotCounted(_) => "NotCounted",
        }
    }

    /// All errors but [`Self::NotCounted`].
    pub fn all() -> impl Iterator<Item = Self> {
        let own = [Self::Gone, Self::Io(String::new())].into_iter().chain(Self::WITHOUT_SANDBOX);
        own.chain(Refusal::ALL.map(Self::Refused))
    }

    /// The reasons for which a pod is unreadable. Those for which the agent counts instead are not among them.
    pub fn all_reasons() -> impl Iterator<Item = &'static str> {
        Self::all().filter(|error| !error.needs_count()).map(|error| error.reason())
    }

    /// Whether the agent has to count, because this pause cannot count.
    pub const fn needs_count(&self) -> bool {
        matches!(self, Self::Refused(Refusal::NoStatus) | Self::NotCounted(_))
    }
}

/// Process counts of a pod, by its pause or by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub zombies: u32,
    /// Number of processes, zombies included.
    pub processes: u32,
    /// Number of threads; a zombie counts as one.
    pub threads: u32,
    pub source: Source,
    /// What only sandbox-health's pause reports.
    pub pause: Option<PauseReport>,
}

/// What sandbox-health's pause reports beside the present counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseReport {
    /// Most zombies in any of its scans.
    pub peak_zombies: u32,
    /// Orphans reaped since it started.
    pub reaped: u64,
    pub version: String,
}

impl PauseProcess {
    /// Reads the status, again if it is torn.
    pub fn read(&self) -> Result<Reading, ReadError> {
        retry_torn(|| self.read_once())
    }

    fn read_once(&self) -> Result<Reading, ReadError> {
        let cmdline = self.directory.read("cmdline", CMDLINE_MAX).map_err(|error| match error.kind() {
            _ if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => ReadError::Gone,
            ErrorKind::PermissionDenied => ReadError::Denied,
            _ => ReadError::Io(error.to_string()),
        })?;
        if cmdline.is_empty() {
            // An exiting process has no memory any more; a live one may have cleared its arguments.
            return Err(if self.has_exited() {
                ReadError::Gone
            } else {
                ReadError::Refused(Refusal::NoStatus)
            });
        }
        let status = Status::from_cmdline(&cmdline).map_err(ReadError::Refused)?;
        let pause = PauseReport {
            peak_zombies: status.peak_zombies,
            reaped: status.reaped,
            version: status.version.to_owned(),
        };
        // The agent is in another security domain, and its /proc has other options.
        if !status.is_counted() || status.unreadable > 0 {
            return Err(ReadError::NotCounted(pause));
        }
        Ok(Reading {
            zombies: status.zombies,
            processes: status.processes,
            threads: status.threads,
            source: Source::PauseStatusFile,
            pause: Some(pause),
        })
    }

    /// Whether the process has exited or is about to.
    pub fn has_exited(&self) -> bool {
        self.directory.read("stat", STAT_MAX).map_or(true, |line| has_no_memory(&line))
    }

    /// A descriptor that becomes readable when the process exits (pidfd_open(2), Linux 5.3). `None` if it has exited already.
    pub fn pidfd(&self, open: OpenPidfd) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.id.pid) else { return Ok(None) };
        match open(pid) {
            // The open directory still answers, so the PID was not reused in between.
            Ok(pidfd) => Ok(self.directory.read("stat", STAT_MAX).is_ok().then_some(pidfd)),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl PauseProcess {
    /// A descriptor that becomes readable when the shim of the container runtime exits, which is pause's parent while it lives.
    pub fn shim_pidfd(&self) -> Option<OwnedFd> {
        let parent = || {
            let pid = stat::parent(&self.directory.read("stat", STAT_MAX).ok()?)?;
            Pid::from_raw(i32::try_from(pid).ok()?).filter(|pid| !pid.is_init())
        };
        let shim = parent()?;
        let pidfd = pidfd_open(shim, PidfdFlags::empty()).ok()?;
        // It is the parent still, so the PID was not reused in between.
        (parent() == Some(shim)).then_some(pidfd)
    }
}

/// A torn status is whole a moment later; one that stays invalid is no status.
fn retry_torn<T>(mut read: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    let is_torn = |result: &Result<T, ReadError>| matches!(result, Err(ReadError::Refused(refusal)) if *refusal != Refusal::NoStatus);
    let first = read();
    (1..ATTEMPTS).fold(first, |result, _| if is_torn(&result) { read() } else { result })
}

/// Whether `/proc/<pid>/stat` shows a virtual size (field 23) of 0, as it does from before the process is a zombie.
pub(super) fn has_no_memory(line: &[u8]) -> bool {
    let Some(close) = line.iter().rposition(|&byte| byte == b')') else { return true };
    let mut fields = line.get(close + 1..).unwrap_or_default().split(|&byte| byte == b' ');
    fields.nth(21).is_none_or(|size| size == b"0")
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeProc, FakeProcess, SANDBOX, UID};
    use super::*;
    use pause_status::{CountError, ROOM, Separator};
    use std::collections::HashSet;

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
            threads: 12,
            peak_zombies: 3,
            version: "0.1.0",
            ..Status::default()
        }
    }

    fn pause(process: FakeProcess<'_>) -> (FakeProc, PauseProcess) {
        let fake = FakeProc::new();
        fake.add(process);
        let identity = CgroupIdentity { pod: UID.to_owned(), container: SANDBOX.to_owned() };
        let directory = fake.proc().process(1).unwrap();
        let id = ProcessId { pid: 1, start_ticks: 1200 };
        let started_at = Timestamp::UNIX_EPOCH;
        (fake, PauseProcess { id, identity, started_at, is_new: false, directory })
    }

    fn read(cmdline: &[u8]) -> Result<Reading, ReadError> {
        pause(FakeProcess { cmdline, ..FakeProcess::default() }).1.read()
    }

    #[test]
    fn shim_is_the_parent_of_pause_unless_that_is_init() {
        let own = i32::try_from(std::process::id()).unwrap();
        for (parent, is_shim) in [(own, true), (1, false), (0, false)] {
            let (_fake, pause) = pause(FakeProcess { parent, ..FakeProcess::default() });
            assert_eq!(pause.shim_pidfd().is_some(), is_shim, "{parent}");
        }
    }

    #[test]
    fn status_of_our_pause_is_read() {
        let pause = PauseReport { peak_zombies: 3, reaped: 7, version: "0.1.0".to_owned() };
        let source = Source::PauseStatusFile;
        let reading = Reading { zombies: 2, processes: 5, threads: 12, source, pause: Some(pause) };
        assert_eq!(read(&cmdline(&status())), Ok(reading));
    }

    #[test]
    fn invalid_status_is_a_typed_error() {
        let mut altered = cmdline(&status());
        altered[15] = b'9';
        let report = || PauseReport { peak_zombies: 3, reaped: 7, version: "0.1.0".to_owned() };
        let uncounted = cmdline(&Status { error: Some(CountError::HidePid), ..status() });
        let incomplete = cmdline(&Status { unreadable: 1, ..status() });
        for (text, error) in [
            (b"/pause\0".to_vec(), ReadError::Refused(Refusal::NoStatus)),
            (b"".to_vec(), ReadError::Gone),
            (altered, ReadError::Refused(Refusal::WrongChecksum)),
            (uncounted, ReadError::NotCounted(report())),
            (incomplete, ReadError::NotCounted(report())),
            (vec![0xff; 9000], ReadError::Refused(Refusal::NoStatus)),
        ] {
            assert_eq!(read(&text), Err(error));
        }
    }

    #[test]
    fn torn_status_is_read_three_times() {
        let torn = || Err(ReadError::Refused(Refusal::WrongChecksum));
        for (reads, expected, made) in [
            (vec![torn(), torn(), Ok(7), torn()], Ok(7), 3),
            (vec![torn(), torn(), torn(), Ok(7)], torn(), 3),
            (
                vec![Err(ReadError::Refused(Refusal::NoStatus)), Ok(7)],
                Err(ReadError::Refused(Refusal::NoStatus)),
                1,
            ),
            (vec![Err(ReadError::Gone), Ok(7)], Err(ReadError::Gone), 1),
        ] {
            let (mut reads, mut count) = (reads.into_iter(), 0);
            let outcome = retry_torn(|| {
                count += 1;
                reads.next().unwrap()
            });
            assert_eq!((outcome, count), (expected, made));
        }
    }

    #[test]
    fn process_without_memory_has_exited() {
        let line = |size: &str| format!("1 (pau)se) S 0 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 1200 {size} 0");
        assert!(has_no_memory(line("0").as_bytes()) && has_no_memory(b"1 (pause) S 0"));
        assert!(!has_no_memory(line("4096").as_bytes()));
    }

    #[test]
    fn read_errors_have_distinct_reasons() {
        let reasons: Vec<_> = ReadError::all_reasons().collect();
        assert_eq!(reasons.iter().collect::<HashSet<_>>().len(), reasons.len());
    }
}
