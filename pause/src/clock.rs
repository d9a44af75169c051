//! The time of day and the time since boot, by system call: the vDSO's faster way is 2.5 kB of code for a clock that is
//! read a few times a second at most.

use syscalls::{Sysno, syscall};

/// Clocks of clock_gettime(2), by the kernel's numbers.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// Since the epoch.
    Realtime = 0,
    /// Since boot, suspended time included.
    Boottime = 7,
}

/// What the kernel takes and gives as `struct __kernel_timespec`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Timespec {
    pub(crate) fn from_milliseconds(ms: u64) -> Self {
        // Divided by a thousand, any u64 fits.
        Self { seconds: (ms / 1_000) as i64, nanoseconds: (ms % 1_000) as i64 * 1_000_000 }
    }
}

/// Milliseconds that the clock shows; 0 if there is no such clock.
pub(crate) fn milliseconds(clock: Clock) -> u64 {
    let mut time = Timespec::default();
    // SAFETY: clock_gettime writes one timespec to where it is told.
    let _ = unsafe { syscall!(Sysno::clock_gettime, clock as usize, &raw mut time) };
    // Both clocks count from a past moment, so neither part is negative.
    time.seconds.unsigned_abs() * 1_000 + time.nanoseconds.unsigned_abs() / 1_000_000
}
