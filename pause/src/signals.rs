//! Signals that mean something to pause are blocked for good and taken one by one (sigtimedwait(2)): no handler runs, so
//! nothing can be interrupted, and nothing is lost between the first instruction and the loop. All others are ignored,
//! which costs pause nothing, however many a pod sends.

use core::ptr;

use syscalls::{Errno, Sysno, syscall};

use crate::clock::Timespec;

/// The kernel's signal set: bit n - 1 stands for signal n, in 8 bytes on every architecture that we build for.
type SignalSet = u64;
const SET_SIZE: usize = size_of::<SignalSet>();

const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const SIG_IGN: u64 = 1;
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
    /// The time is over, or the wait was disturbed.
    Nothing,
    /// The kernel refuses to wait; asking again would keep a core busy for nothing.
    Refused,
}

/// Those that mean something.
const OURS: SignalSet = bit(SIGINT) | bit(SIGALRM) | bit(SIGTERM) | bit(SIGCHLD);

const fn bit(signal: usize) -> SignalSet {
    1 << (signal - 1)
}

/// What the kernel takes as `struct sigaction`, with room for the fields that x86_64 has and others lack.
#[repr(C)]
struct SignalAction([u64; 4]);

const DEFAULT: SignalAction = SignalAction([0; 4]);
const IGNORE: SignalAction = SignalAction([SIG_IGN, 0, 0, 0]);

/// Blocks every signal that can be, until it is settled what becomes of each.
pub(crate) fn block_all() -> bool {
    set_mask(SIG_BLOCK, SignalSet::MAX)
}

/// Ignores all that mean nothing, those that are waiting included, and leaves blocked those that do.
pub(crate) fn ignore_others() -> bool {
    for signal in 1..=SignalSet::BITS as usize {
        // Ours may have been ignored by who executed us: with SIGCHLD so, the kernel would reap behind our back. SIGKILL and
        // SIGSTOP are the kernel's own affair.
        set_action(signal, if OURS & bit(signal) == 0 { &IGNORE } else { &DEFAULT });
    }
    set_mask(SIG_SETMASK, OURS)
}

fn set_action(signal: usize, action: &SignalAction) {
    // SAFETY: the kernel reads an action, and the set in it has the size told; the old one is not asked for.
    let _ =
        unsafe { syscall!(Sysno::rt_sigaction, signal, ptr::from_ref(action), ptr::null::<u8>(), SET_SIZE) };
}

fn set_mask(how: usize, set: SignalSet) -> bool {
    // SAFETY: the kernel reads a set of the size told; the old one is not asked for.
    unsafe { syscall!(Sysno::rt_sigprocmask, how, &raw const set, ptr::null::<u8>(), SET_SIZE).is_ok() }
}

/// Waits for a signal, for `ms` milliseconds at most.
pub(crate) fn wait(ms: Option<u64>) -> Woken {
    let ours = OURS;
    let time = ms.map(Timespec::from_milliseconds);
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set has the size told, and `time` is null or points to a timespec that lives until the call returns.
    let taken =
        unsafe { syscall!(Sysno::rt_sigtimedwait, &raw const ours, ptr::null::<u8>(), time, SET_SIZE) };
    match taken {
        Ok(SIGCHLD) => Woken::Child,
        Ok(SIGALRM) => Woken::Alarm,
        Ok(SIGINT) => Woken::Interrupt,
        Ok(SIGTERM) => Woken::Terminate,
        // EAGAIN is the end of the time; EINTR comes with a debugger or a freezer.
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Woken::Nothing,
        Err(_) => Woken::Refused,
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
