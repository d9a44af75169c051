//! Counts the processes of pause's PID namespace, and the zombies among them, in /proc. What it cannot see for sure it does
//! not count: a number that is too low would say that all is well.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use pause_status::stat::Stat;
use rustix::fs::{Mode, OFlags, RawDir, open, openat, readlinkat_raw};
use rustix::io::{Errno, read};

#[derive(Default)]
pub(crate) struct Census {
    /// Zombies included.
    pub(crate) processes: u32,
    pub(crate) zombies: u32,
}

/// Longest name of a process in /proc (PID_MAX_LIMIT has 7 digits), with room to spare.
const PID_DIGITS: usize = 10;
const READ_ONLY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Whether a /proc is mounted so that processes of other users are left out of it (proc(5), `hidepid`).
pub(crate) fn is_hidden() -> bool {
    // Shown only where it is not off; the comma is nowhere else in it, so a failed match can only begin anew with one.
    const OPTION: &[u8] = b",hidepid=";
    let Ok(mounts) = open(c"/proc/self/mounts", READ_ONLY, Mode::empty()) else { return false };
    let mut buffer = [0_u8; 512];
    let mut matched = 0;
    while let Ok(len @ 1..) = read(&mounts, &mut buffer) {
        for byte in buffer.iter().take(len) {
            matched =
                if OPTION.get(matched) == Some(byte) { matched + 1 } else { usize::from(*byte == b',') };
            if matched == OPTION.len() {
                return true;
            }
        }
    }
    false
}

/// Counts; fails where /proc is not there, is another namespace's, or cannot be read throughout. A process that ends
/// meanwhile is counted or not.
pub(crate) fn count() -> Result<Census, Errno> {
    let proc = open(c"/proc", READ_ONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    // In any other namespace's /proc we are not process 1.
    let mut own = [0_u8; 2];
    if readlinkat_raw(&proc, c"self", &mut own)? != 1 || own[0] != b'1' {
        return Err(Errno::XDEV);
    }
    let mut entries = RawDir::new(&proc, &mut buffer);
    let mut census = Census::default();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.len() > PID_DIGITS || !name.iter().all(u8::is_ascii_digit) {
            continue;
        }
        match is_zombie(&proc, name) {
            Ok(zombie) => {
                census.processes += 1;
                census.zombies += u32::from(zombie);
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(census)
}

/// ENOENT or ESRCH when the process is gone.
fn is_zombie(proc: &impl rustix::fd::AsFd, pid: &[u8]) -> Result<bool, Errno> {
    const STAT: &[u8] = b"/stat";
    let mut path = [0; PID_DIGITS + STAT.len() + 1];
    for (place, &byte) in path.iter_mut().zip(pid.iter().chain(STAT)) {
        *place = byte;
    }
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?;
    let file = openat(proc, path, READ_ONLY, Mode::empty())?;
    // A line has 52 numbers and a name; all that we take stands in front.
    let mut line = [0_u8; 512];
    let len = read(&file, &mut line)?;
    line.get(..len).and_then(Stat::parse).map(|stat| stat.is_zombie()).ok_or(Errno::SRCH)
}
