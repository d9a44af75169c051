//! A pause process that was found: held, so that its end is noticed and a recycled PID never read as the old one, and read.
//! Its command line is input from a tenant: bounded, and every failure is a typed outcome.

use jiff::Timestamp;
use pause_status::{Refusal, Status};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::CgroupIdentity;
use super::proc::{ProcessDirectory, ProcessId};
use crate::resource::PROC_HIDDEN;

/// Name of every pause process, ours and others'.
pub const PAUSE_COMM: &[u8] = b"pause";
/// How often a status is read that may be torn.
const READS: usize = 3;
/// Bytes read of a command line: the program's name, the room for a status, and what options may follow.
const CMDLINE_MAX: usize = 4096;

/// A pause process, held open.
#[derive(Debug)]
pub struct Pause {
    /// Which process it is.
    pub id: ProcessId,
    /// Whose it is.
    pub identity: CgroupIdentity,
    /// When it started.
    pub started_at: Timestamp,
    /// Its files.
    pub directory: ProcessDirectory,
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
    /// The kernel shows us no process of another user.
    #[error("the agent sees no other user's processes in /proc: it is mounted with hidepid (proc(5))")]
    Hidden,
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
            Self::Hidden => PROC_HIDDEN,
            Self::NotCounted => "NotCounted",
        }
    }

    /// Every reason for which nothing is known of a pod. Where pause says nothing, the agent counts.
    pub fn all_reasons() -> impl Iterator<Item = &'static str> {
        let own = [Self::Gone, Self::Io(String::new()), Self::Hidden, Self::NotCounted];
        let all = own.into_iter().chain(Refusal::ALL.map(Self::Refused));
        all.filter(|error| !error.says_nothing()).map(|error| error.reason())
    }

    /// Whether the agent must count by itself: the pause says nothing of processes, and never will.
    #[must_use]
    pub const fn says_nothing(&self) -> bool {
        matches!(self, Self::Refused(Refusal::NoStatus) | Self::NotCounted)
    }
}

/// One count of a pod's processes, by its pause or by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Zombies in the pod.
    pub zombies: u32,
    /// Processes in the pod.
    pub processes: u32,
    /// What only a pause of ours says.
    pub told: Option<Told>,
}

/// What a pause of ours says beside the present numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Most zombies at any scan of pause.
    pub peak: u32,
    /// Orphans reaped since pause started.
    pub reaped: u64,
    /// Version of the pause program.
    pub version: String,
}

impl Pause {
    /// Reads the status, more than once if it's torn.
    pub fn read(&self) -> Result<Reading, ReadError> {
        read_again_if_torn(|| self.read_once())
    }

    fn read_once(&self) -> Result<Reading, ReadError> {
        let cmdline = self.directory.read("cmdline", CMDLINE_MAX).map_err(|error| {
            if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
                ReadError::Gone
            } else {
                ReadError::Io(error.to_string())
            }
        })?;
        if cmdline.is_empty() {
            // A process that is ending has no memory any more. One that lives may have emptied its arguments by itself.
            let gone = self.directory.read("stat", 1024).is_ok_and(|line| has_ended(&line));
            return Err(if gone { ReadError::Gone } else { ReadError::Refused(Refusal::NoStatus) });
        }
        let status = Status::from_cmdline(&cmdline).map_err(ReadError::Refused)?;
        if !status.counted() {
            return Err(ReadError::NotCounted);
        }
        let told = Told { peak: status.peak, reaped: status.reaped, version: status.version.to_owned() };
        Ok(Reading { zombies: status.zombies, processes: status.processes, told: Some(told) })
    }

    /// A descriptor that becomes readable when the process ends (pidfd_open(2)); `None` if it has ended already.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.id.pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Our directory still answers, so the PID was not given to another process in between.
        self.directory.read("stat", 1024).ok()?;
        Some(pidfd)
    }
}

/// What is torn is whole a moment later; what is not after some reads is no status.
fn read_again_if_torn<T>(mut read: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    let mut last = ReadError::Gone;
    for _ in 0..READS {
        match read() {
            Err(ReadError::Refused(refusal)) if refusal != Refusal::NoStatus => {
                last = ReadError::Refused(refusal)
            }
            outcome => return outcome,
        }
    }
    Err(last)
}

/// Whether a line of `stat` is a process's that has no memory any more. It has none from before it is a zombie (state `Z`,
/// `X`); its virtual size, field 23, tells.
fn has_ended(line: &[u8]) -> bool {
    let Some(close) = line.iter().rposition(|&byte| byte == b')') else { return true };
    let mut fields = line.get(close + 1..).unwrap_or_default().split(|&byte| byte == b' ');
    fields.nth(21).is_none_or(|size| size == b"0")
}

#[cfg(test)]
mod tests {
    use super::super::proc::fake::{FakeProc, FakeProcess, SANDBOX, UID};
    use super::*;
    use pause_status::{ROOM, Separator};
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
            peak: 3,
            init: true,
            version: "0.1.0",
            ..Status::default()
        }
    }

    fn read(cmdline: &[u8]) -> Result<Reading, ReadError> {
        let fake = FakeProc::new();
        fake.add(FakeProcess { cmdline, ..FakeProcess::default() });
        let identity = CgroupIdentity { pod: UID.to_owned(), container: SANDBOX.to_owned() };
        let directory = fake.proc().process(1).unwrap();
        let id = ProcessId { pid: 1, start_ticks: 1200 };
        Pause { id, identity, started_at: Timestamp::UNIX_EPOCH, directory }.read()
    }

    #[test]
    fn what_a_pause_of_ours_says_is_read() {
        let told = Told { peak: 3, reaped: 7, version: "0.1.0".to_owned() };
        assert_eq!(read(&cmdline(&status())), Ok(Reading { zombies: 2, processes: 5, told: Some(told) }));
    }

    #[test]
    fn what_is_no_status_is_a_typed_error() {
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
            assert_eq!(read(&text), Err(error));
        }
    }

    #[test]
    fn a_status_that_is_torn_is_read_again_three_times_in_all() {
        let torn = || Err(ReadError::Refused(Refusal::WrongSum));
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
            let outcome = read_again_if_torn(|| {
                count += 1;
                reads.next().unwrap()
            });
            assert_eq!((outcome, count), (expected, made));
        }
    }

    #[test]
    fn a_process_without_memory_has_ended_and_one_with_some_hides_its_arguments() {
        let line = |size: &str| format!("1 (pau)se) S 0 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 1200 {size} 0");
        assert!(has_ended(line("0").as_bytes()) && has_ended(b"1 (pause) S 0"));
        assert!(!has_ended(line("4096").as_bytes()));
    }

    #[test]
    fn each_read_error_has_a_reason_of_its_own() {
        let reasons: Vec<_> = ReadError::all_reasons().collect();
        assert_eq!(reasons.iter().collect::<HashSet<_>>().len(), reasons.len());
    }
}
