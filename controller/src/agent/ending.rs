//! How a process ended, asked of the kernel through its pidfd. This is the one file of the operator with `unsafe`: the
//! request has no wrapper yet.
#![allow(unsafe_code, reason = "PIDFD_GET_INFO is an ioctl that no library wraps")]

use std::fmt;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ending {
    /// From a status as wait(2) gives it.
    fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited(status >> 8 & 0xff),
            signal => Self::Signaled(signal),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signaled(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// `struct pidfd_info` of include/uapi/linux/pidfd.h, in its first size (PIDFD_INFO_SIZE_VER0), which every kernel with the
/// request takes.
#[repr(C)]
#[derive(Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    thread_group: u32,
    parent: u32,
    credentials: [u32; 8],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64, "PIDFD_INFO_SIZE_VER0");

/// Asks for `exit_code` (Linux 6.15 and later), which is there once the parent has reaped the process.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

nix::ioctl_readwrite!(
    /// PIDFD_GET_INFO (Linux 6.13 and later).
    pidfd_get_info, 0xff, 11, PidfdInfo
);

/// Between attempts to learn how a process ended, until its parent has reaped it.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Attempts: a container runtime reaps its pause at once; one that doesn't in two seconds is stuck.
const ATTEMPTS: usize = 40;

/// Waits for the end of a process; says how it ended, where the kernel tells.
pub async fn ended(pidfd: OwnedFd) -> std::io::Result<Option<Ending>> {
    // SAFETY: the AsyncFd owns the descriptor, which stays open and the same until the AsyncFd, dropped, has deregistered it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)? };
    let _ready = pidfd.readable().await?;
    for _ in 0..ATTEMPTS {
        match ask(pidfd.get_ref()) {
            Answer::Ended(ending) => return Ok(Some(ending)),
            Answer::NotYet => tokio::time::sleep(ASK_AGAIN).await,
            Answer::NeverTells => return Ok(None),
        }
    }
    Ok(None)
}

enum Answer {
    Ended(Ending),
    NotYet,
    NeverTells,
}

/// The kernel looks for the ending first and for the process afterwards. When the parent reaps it in between, it has found
/// neither and says ESRCH; the ending is there from then on, if it ever is.
fn ask(pidfd: &OwnedFd) -> Answer {
    match ask_once(pidfd) {
        Err(Errno::ESRCH) => ask_once(pidfd),
        answer => answer,
    }
    // Nothing of it is left, or the request is not known (ENOTTY, EINVAL).
    .unwrap_or(Answer::NeverTells)
}

fn ask_once(pidfd: &OwnedFd) -> Result<Answer, Errno> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the descriptor is open for as long as the borrow, and the kernel writes at most the 64 bytes of `info`, which
    // the request's number tells it.
    match unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) } {
        Ok(_) if info.mask & PIDFD_INFO_EXIT != 0 => {
            Ok(Answer::Ended(Ending::from_wait_status(info.exit_code)))
        }
        // It is a zombie still; a kernel before 6.15 leaves it at that, too.
        Ok(_) | Err(Errno::EINTR) => Ok(Answer::NotYet),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::Command;

    /// Linux 6.15 and later tell.
    fn kernel_tells() -> bool {
        let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }

    async fn ending_of(script: &str) -> Option<Ending> {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        let ending = ended(pidfd).await.unwrap();
        reaper.join().unwrap();
        ending
    }

    #[tokio::test]
    async fn the_kernel_says_how_a_process_ended() {
        let expected = |ending| kernel_tells().then_some(ending);
        assert_eq!(ending_of("sleep 0.1; exit 3").await, expected(Ending::Exited(3)));
        assert_eq!(ending_of("sleep 0.1; kill -9 $$").await, expected(Ending::Signaled(9)));
    }

    /// Some of these are asked about while they are being reaped.
    #[tokio::test]
    async fn an_end_is_not_missed_while_the_parent_reaps() {
        let expected = kernel_tells().then_some(Ending::Exited(3));
        for _ in 0..300 {
            assert_eq!(ending_of("exit 3").await, expected);
        }
    }

    #[test]
    fn an_ending_reads_as_a_sentence() {
        assert_eq!(Ending::from_wait_status(9).to_string(), "was killed by SIGKILL");
        assert_eq!(Ending::from_wait_status(0x80 | 11).to_string(), "was killed by SIGSEGV");
        assert_eq!(Ending::from_wait_status(42 << 8).to_string(), "exited with status 42");
        assert_eq!(Ending::from_wait_status(40).to_string(), "was killed by signal 40");
    }
}
