//! Signals are blocked for good and taken one by one (sigtimedwait(2)): no handler runs, so nothing can be interrupted,
//! and nothing is lost between the first instruction and the loop.

use core::ptr;

use syscalls::{Sysno, syscall};

use crate::clock::Timespec;

/// The kernel's signal set: bit n - 1 stands for signal n, in 8 bytes on every architecture that we build for.
type SignalSet = u64;
const SET_SIZE: usize = size_of::<SignalSet>();

const SIG_BLOCK: usize = 0;
const SIGINT: usize = 2;
const SIGALRM: usize = 14;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const ITIMER_REAL: usize = 0;
const PR_SET_TIMERSLACK: usize = 29;

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Interrupt,
    Terminate,
    /// A child ended, stopped or went on.
    Child,
    Alarm,
    /// The time is over, the wait was disturbed, or a signal came that means nothing to pause.
    Other,
}

/// What the kernel takes as `struct sigaction`, with room for the fields that x86_64 has and others lack.
#[repr(C)]
struct SignalAction([u64; 4]);

/// Blocks every signal that can be, and takes back an inherited SIG_IGN for SIGCHLD, with which the kernel would reap
/// our children behind our back.
pub(crate) fn block_all() -> bool {
    let all = SignalSet::MAX;
    let default_action = SignalAction([0; 4]);
    // SAFETY: both calls read a value of the size that they are told, and write nothing.
    unsafe {
        let _ =
            syscall!(Sysno::rt_sigaction, SIGCHLD, &raw const default_action, ptr::null::<u8>(), SET_SIZE);
        syscall!(Sysno::rt_sigprocmask, SIG_BLOCK, &raw const all, ptr::null::<u8>(), SET_SIZE).is_ok()
    }
}

/// Waits for a signal, for `ms` milliseconds at most. Those that mean nothing are taken, too: left alone, queued ones
/// (sigqueue(3)) would pile up in the kernel's memory.
pub(crate) fn wait(ms: Option<u64>) -> Woken {
    let all = SignalSet::MAX;
    let time = ms.map(Timespec::from_milliseconds);
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set has the size told, and `time` is null or points to a timespec that lives until the call returns.
    let taken =
        unsafe { syscall!(Sysno::rt_sigtimedwait, &raw const all, ptr::null::<u8>(), time, SET_SIZE) };
    match taken {
        Ok(SIGCHLD) => Woken::Child,
        Ok(SIGALRM) => Woken::Alarm,
        Ok(SIGINT) => Woken::Interrupt,
        Ok(SIGTERM) => Woken::Terminate,
        // EAGAIN is the end of the time; EINTR comes with a debugger or a freezer.
        Ok(_) | Err(_) => Woken::Other,
    }
}

/// Has the kernel send an alarm in `ms` milliseconds (setitimer(2)); says whether it will.
pub(crate) fn set_alarm(ms: u64) -> bool {
    let (seconds, microseconds) = (ms / 1_000, ms % 1_000 * 1_000);
    // The interval, 0 for a timer that rings once, and the time.
    let timer: [u64; 4] = [0, 0, seconds, microseconds];
    // SAFETY: a struct itimerval is these four words, and is only read; the old one is not asked for.
    unsafe { syscall!(Sysno::setitimer, ITIMER_REAL, &raw const timer, ptr::null::<u8>()).is_ok() }
}

/// Lets the kernel wake us up to `ns` nanoseconds late.
pub(crate) fn set_timer_slack(ns: u64) {
    // SAFETY: this prctl takes an integer.
    let _ = unsafe { syscall!(Sysno::prctl, PR_SET_TIMERSLACK, ns) };
}
