//! Counts processes, zombies and threads of pause's PID namespace in /proc. What it could not read is in the counts, too: a number
//! that is too low would show a healthy pod.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use pause_status::stat::Stat;
use pause_status::{CountError, Status};
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::{Errno, read};

/// Processes that are read before `attend` is called.
const BATCH: u32 = 32;
const READ_ONLY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Returns a status with counts alone, and calls `attend` every some hundred microseconds.
pub(crate) fn count(mut attend: impl FnMut()) -> Result<Status<'static>, CountError> {
    let to_error = |error: Errno| CountError::Errno(error.raw_os_error().unsigned_abs());
    let no_proc = |error| if error == Errno::NOENT { CountError::NoProc } else { to_error(error) };
    let proc = openat(CWD, c"/proc", READ_ONLY | OFlags::DIRECTORY, Mode::empty()).map_err(no_proc)?;
    // In the /proc of another PID namespace pause is not process 1.
    let mut own = [0_u8; 2];
    if readlinkat_raw(&proc, c"self", &mut own).map_err(no_proc)? != 1 || own[0] != b'1' {
        return Err(CountError::NoProc);
    }
    if has_hidepid(&proc).map_err(to_error)? {
        return Err(CountError::HidePid);
    }
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&proc, &mut buffer);
    let mut counts = Status::default();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(to_error)?;
        let name = entry.file_name().to_bytes();
        if !name.iter().all(u8::is_ascii_digit) {
            continue;
        }
        if (counts.processes + counts.unreadable) % BATCH == BATCH - 1 {
            attend();
        }
        match count_process(&proc, name, &mut counts) {
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            // A security module's answer for a process of another domain.
            Err(Errno::ACCESS | Errno::PERM) => counts.unreadable += 1,
            Err(error) => return Err(to_error(error)),
        }
    }
    Ok(counts)
}

/// ENOENT or ESRCH when the process is gone.
fn count_process(proc: impl AsFd, pid: &[u8], counts: &mut Status<'_>) -> Result<(), Errno> {
    let mut path = [0; 16];
    for (place, &byte) in path.iter_mut().zip(pid.iter().chain(b"/stat")) {
        *place = byte;
    }
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?;
    let file = openat(proc, path, READ_ONLY, Mode::empty())?;
    let mut line = [0; 512];
    let len = read(&file, &mut line)?;
    let stat = line.get(..len).and_then(Stat::parse).ok_or(Errno::IO)?;
    counts.processes += 1;
    counts.zombies += u32::from(stat.is_zombie());
    counts.threads += stat.threads.max(1);
    Ok(())
}

/// Whether a /proc is mounted with `hidepid` (proc(5)), which mounts(5) lists only where it is not off.
fn has_hidepid(proc: impl AsFd) -> Result<bool, Errno> {
    const OPTION: &[u8] = b",hidepid=";
    let mounts = openat(proc, c"self/mounts", READ_ONLY, Mode::empty())?;
    let (mut buffer, mut matched) = ([0; 512], 0);
    loop {
        let len = read(&mounts, &mut buffer)?;
        for byte in buffer.iter().take(len) {
            // No other byte of the option is a comma, so a failed match can only restart with one.
            matched =
                if OPTION.get(matched) == Some(byte) { matched + 1 } else { usize::from(*byte == b',') };
            if matched == OPTION.len() {
                return Ok(true);
            }
        }
        if len == 0 {
            return Ok(false);
        }
    }
}
