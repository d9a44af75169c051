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

/// Why there is no count.
pub(crate) enum Uncounted {
    /// Processes of other users are left out of /proc.
    Hidden,
    /// It is not there, is another namespace's (EXDEV), or cannot be read throughout.
    Unreadable(Errno),
}

impl From<Errno> for Uncounted {
    fn from(error: Errno) -> Self {
        Self::Unreadable(error)
    }
}

/// Longest name of a process in /proc (PID_MAX_LIMIT has 7 digits), with room to spare.
const PID_DIGITS: usize = 10;
const READ_ONLY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Whether a /proc is mounted so that processes of other users are left out of it (proc(5), `hidepid`).
fn is_hidden() -> Result<bool, Errno> {
    // Shown only where it is not off; the comma is nowhere else in it, so a failed match can only begin anew with one.
    const OPTION: &[u8] = b",hidepid=";
    let mounts = open(c"/proc/self/mounts", READ_ONLY, Mode::empty())?;
    let mut buffer = [0_u8; 512];
    let mut matched = 0;
    loop {
        let len = read(&mounts, &mut buffer)?;
        if len == 0 {
            return Ok(false);
        }
        for byte in buffer.iter().take(len) {
            matched =
                if OPTION.get(matched) == Some(byte) { matched + 1 } else { usize::from(*byte == b',') };
            if matched == OPTION.len() {
                return Ok(true);
            }
        }
    }
}

/// Counts. A process that ends meanwhile is counted or not.
pub(crate) fn count() -> Result<Census, Uncounted> {
    let proc = open(c"/proc", READ_ONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    // In any other namespace's /proc we are not process 1.
    let mut own = [0_u8; 2];
    if readlinkat_raw(&proc, c"self", &mut own)? != 1 || own[0] != b'1' {
        return Err(Errno::XDEV.into());
    }
    if is_hidden()? {
        return Err(Uncounted::Hidden);
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
            Err(error) => return Err(error.into()),
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
    line.get(..len).and_then(Stat::parse).map(|stat| stat.is_zombie()).ok_or(Errno::IO)
}
