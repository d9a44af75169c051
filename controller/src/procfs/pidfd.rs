//! Waits for the exit of a process through its pidfd and asks the kernel for its exit status. This is the only file of the operator
//! with `unsafe`: no library wraps the ioctl yet.
#![allow(unsafe_code, reason = "PIDFD_GET_INFO is an ioctl that no library wraps")]

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Exited(i32),
    Killed(i32),
}

impl ExitStatus {
    /// From a status as wait(2) returns it.
    fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited(status >> 8 & 0xff),
            signal => Self::Killed(signal),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// `struct pidfd_info` of include/uapi/linux/pidfd.h in its first size, which every kernel with the ioctl accepts.
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

/// Requests `exit_code` (Linux 6.15 and later), which is available once the parent has reaped the process.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

nix::ioctl_readwrite!(
    /// PIDFD_GET_INFO (Linux 6.13 and later).
    pidfd_get_info, 0xff, 11, PidfdInfo
);

/// Interval between requests for the exit status, until the parent has reaped the process.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Limit of requests: container runtimes reap pause at once; one that takes more than two seconds is stuck.
const ATTEMPTS: usize = 40;

/// Waits for a process to exit.
pub async fn wait(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, which stays open and the same until the AsyncFd, dropped, has deregistered it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)? };
    let _ready = pidfd.readable().await?;
    Ok(pidfd)
}

/// The exit status of a process that has exited, if the kernel provides it.
pub async fn exit_status(pidfd: &AsyncFd<OwnedFd>) -> Option<ExitStatus> {
    for _ in 0..ATTEMPTS {
        match request_exit_status(pidfd.get_ref()) {
            Answer::Exit(status) => return Some(status),
            Answer::NotYet => tokio::time::sleep(RETRY_INTERVAL).await,
            Answer::Unavailable => break,
        }
    }
    None
}

enum Answer {
    Exit(ExitStatus),
    NotYet,
    Unavailable,
}

/// If the parent reaps the process during the request, the kernel returns ESRCH, and has the exit status from then on.
fn request_exit_status(pidfd: &OwnedFd) -> Answer {
    match request_info(pidfd) {
        Err(Errno::ESRCH) => request_info(pidfd),
        answer => answer,
    }
    // The process is gone, or the kernel does not know the ioctl (ENOTTY, EINVAL).
    .unwrap_or(Answer::Unavailable)
}

fn request_info(pidfd: &OwnedFd) -> Result<Answer, Errno> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the descriptor is open for as long as the borrow, and the kernel writes at most the 64 bytes of `info`, a size that is
    // part of the request number.
    match unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) } {
        Ok(_) if info.mask & PIDFD_INFO_EXIT != 0 => {
            Ok(Answer::Exit(ExitStatus::from_wait_status(info.exit_code)))
        }
        // Still a zombie. Kernels before 6.15 always answer so.
        Ok(_) | Err(Errno::EINTR) => Ok(Answer::NotYet),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::Command;

    /// Linux 6.15 and later provide the exit status.
    fn is_provided() -> bool {
        let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }

    async fn exit_of(script: &str) -> Option<ExitStatus> {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        let status = exit_status(&wait(pidfd).await.unwrap()).await;
        reaper.join().unwrap();
        status
    }

    #[tokio::test]
    async fn exit_status_is_read_from_the_kernel() {
        let expected = |status| is_provided().then_some(status);
        assert_eq!(exit_of("sleep 0.1; exit 3").await, expected(ExitStatus::Exited(3)));
        assert_eq!(exit_of("sleep 0.1; kill -9 $$").await, expected(ExitStatus::Killed(9)));
    }

    /// Some of the requests are made while the process is being reaped.
    #[tokio::test]
    async fn exit_status_is_not_missed_while_the_parent_reaps() {
        let expected = is_provided().then_some(ExitStatus::Exited(3));
        for _ in 0..100 {
            assert_eq!(exit_of("exit 3").await, expected);
        }
    }

    #[test]
    fn exit_status_is_shown_as_a_predicate() {
        assert_eq!(ExitStatus::from_wait_status(9).to_string(), "was killed by SIGKILL");
        assert_eq!(ExitStatus::from_wait_status(0x80 | 11).to_string(), "was killed by SIGSEGV");
        assert_eq!(ExitStatus::from_wait_status(42 << 8).to_string(), "exited with status 42");
        assert_eq!(ExitStatus::from_wait_status(40).to_string(), "was killed by signal 40");
    }
}
