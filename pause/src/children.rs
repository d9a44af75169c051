//! Waits for children that have ended. In a pod that forks a lot this loop is all that pause does, so it makes one system
//! call for each and hardly more than that.

use syscalls::{Sysno, raw_syscall};

/// Any child (wait4(2)).
const ANY: isize = -1;
const WNOHANG: usize = 1;
/// The bits of a wait status that hold the signal that ended the child, or 0 (wait(2)).
const SIGNAL: u32 = 0x7f;

/// Children that ended: how many in all, and by a signal.
#[derive(Clone, Copy)]
pub(crate) struct Reaped {
    pub(crate) all: u64,
    pub(crate) by_signal: u64,
}

/// Adds those that have ended until now, `most` at most; says whether there may be more. Children that only stopped or
/// went on are left alone.
pub(crate) fn reap(reaped: &mut Reaped, most: u64) -> bool {
    let Reaped { mut all, mut by_signal } = *reaped;
    let full = all + most;
    while all != full {
        let mut status = 0_u32;
        // SAFETY: wait4 writes an int to where it is told, and is told of no place for what the child used.
        let pid = unsafe { raw_syscall!(Sysno::wait4, ANY, &raw mut status, WNOHANG, 0) };
        // 0 when none has ended, an error when there is none; with WNOHANG nothing interrupts it.
        if (pid as isize) <= 0 {
            break;
        }
        all += 1;
        by_signal += u64::from(status & SIGNAL != 0);
    }
    *reaped = Reaped { all, by_signal };
    all == full
}
