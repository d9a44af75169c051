//! A clock that never goes back, and advances by the waits where the kernel refuses one. By system call: the vDSO would be 2.5 kB of code.

use core::mem::MaybeUninit;

use syscalls::{Sysno, syscall};

/// `struct __kernel_timespec`: seconds and nanoseconds, neither of them negative here.
pub(crate) type Timespec = [u64; 2];
/// In nanoseconds, the unit of all times here.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// Clocks of clock_gettime(2).
pub(crate) const CLOCK_PROCESS_CPUTIME_ID: usize = 2;
pub(crate) const CLOCK_BOOTTIME: usize = 7;

#[derive(Clone, Copy, Default)]
pub(crate) struct Clock {
    /// Nanoseconds since an arbitrary moment, suspended time included.
    pub(crate) now: u64,
    /// How far it is ahead of the kernel's clock, which may go back where a checkpoint is restored.
    ahead: u64,
}

impl Clock {
    /// To the kernel's time, or by the time of a wait at most.
    #[inline]
    pub(crate) fn advance(&mut self, kernel: Option<u64>, [seconds, nanoseconds]: Timespec) {
        match kernel.map(|kernel| kernel.wrapping_add(self.ahead)) {
            Some(time) if time >= self.now => self.now = time,
            Some(time) => self.ahead = self.ahead.wrapping_add(self.now - time),
            None => self.now += (seconds * SECOND + nanoseconds).clamp(1, 20 * SECOND),
        }
    }
}

/// What a clock shows; nothing where the kernel refuses it.
#[inline]
pub(crate) fn nanoseconds(clock: usize) -> Option<u64> {
    let mut time = MaybeUninit::<Timespec>::uninit();
    // SAFETY: clock_gettime writes one timespec if it succeeds.
    let [seconds, nanoseconds] = unsafe {
        syscall!(Sysno::clock_gettime, clock, time.as_mut_ptr()).ok()?;
        time.assume_init()
    };
    Some(seconds * SECOND + nanoseconds)
}
