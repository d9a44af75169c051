//! Waits for signals and children. The signals that pause uses are blocked for good and taken one by one (sigtimedwait(2)): there
//! is no handler, so nothing is interrupted or lost. All others are ignored.

use syscalls::{Sysno, raw_syscall, syscall};

use crate::clock::Timespec;

/// Bytes of the kernel's signal set, in which bit n - 1 is signal n.
const SET_SIZE: usize = 8;
const SIG_SETMASK: usize = 2;
const SIG_IGN: u64 = 1;
pub(crate) const SIGINT: isize = 2;
const SIGTERM: isize = 15;
pub(crate) const SIGCHLD: isize = 17;
const SA_NOCLDSTOP: u64 = 1;
pub(crate) const EINTR: isize = -4;
pub(crate) const ECHILD: isize = -10;
pub(crate) const EAGAIN: isize = -11;

/// Sets for [`block`]: all signals, and those that pause takes.
pub(crate) const ALL: u64 = u64::MAX;
pub(crate) static USED: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);

/// Ignores all other signals, pending ones included.
pub(crate) fn ignore_others() {
    for signal in 1..=64 {
        // With an inherited SIG_IGN for SIGCHLD the kernel would reap. SA_NOCLDSTOP: a child that stops sends no SIGCHLD.
        let handler = if USED & 1 << (signal - 1) == 0 { SIG_IGN } else { 0 };
        // `struct sigaction`: handler, flags, restorer, mask.
        let action = [handler, if signal == SIGCHLD { SA_NOCLDSTOP } else { 0 }, 0, 0];
        // SAFETY: the kernel reads an action with a set of this size. It refuses SIGKILL and SIGSTOP.
        let _ = unsafe { syscall!(Sysno::rt_sigaction, signal, &raw const action, 0, SET_SIZE) };
    }
}

/// Blocks these signals and no others; false where the kernel refuses.
pub(crate) fn block(set: u64) -> bool {
    // SAFETY: the kernel reads a set of this size.
    unsafe { syscall!(Sysno::rt_sigprocmask, SIG_SETMASK, &raw const set, 0, SET_SIZE).is_ok() }
}

/// `siginfo_t`, and the place of the sender's PID in it: 0 outside of the PID namespace.
pub(crate) type SignalInfo = [i32; 32];
pub(crate) const SENDER: usize = 4;

/// Waits for a signal. Returns it, or a negative error number.
#[inline(always)]
pub(crate) fn wait(timeout: &Timespec, info: &mut SignalInfo) -> isize {
    // SAFETY: the kernel reads a set of this size and a timespec, and writes one siginfo_t or none.
    unsafe {
        raw_syscall!(Sysno::rt_sigtimedwait, &raw const USED, &raw mut *info, &raw const *timeout, SET_SIZE)
            as isize
    }
}

const ANY_CHILD: isize = -1;
const WNOHANG: usize = 1;
/// Also children with another exit signal than SIGCHLD (wait(2)).
const WALL: usize = 0x4000_0000;

/// Reaps a child that has exited: a positive number, 0 if none has, or a negative error number.
#[inline]
pub(crate) fn reap_child() -> isize {
    // SAFETY: without places for status and usage wait4 writes nothing.
    unsafe { raw_syscall!(Sysno::wait4, ANY_CHILD, 0, WNOHANG | WALL, 0) as isize }
}
