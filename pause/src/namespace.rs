//! Counts the processes of pause's PID namespace, and the zombies among them, in /proc.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use pause_status::stat::Stat;
use rustix::fs::{Mode, OFlags, RawDir, open, openat};
use rustix::io::{Errno, read};

#[derive(Default)]
pub(crate) struct Census {
    /// Zombies included.
    pub(crate) processes: u32,
    pub(crate) zombies: u32,
}

/// Longest name of a process in /proc (PID_MAX_LIMIT has 7 digits), with room to spare.
const PID_DIGITS: usize = 10;

/// Counts; fails only where /proc cannot be listed. A process that ends meanwhile is counted or not.
pub(crate) fn count() -> Result<Census, Errno> {
    let proc = open(c"/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&proc, &mut buffer);
    let mut census = Census::default();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.len() > PID_DIGITS || !name.iter().all(u8::is_ascii_digit) {
            continue;
        }
        if let Some(zombie) = is_zombie(&proc, name) {
            census.processes += 1;
            census.zombies += u32::from(zombie);
        }
    }
    Ok(census)
}

/// `None` when the process is gone.
fn is_zombie(proc: &impl rustix::fd::AsFd, pid: &[u8]) -> Option<bool> {
    const STAT: &[u8] = b"/stat";
    let mut path = [0; PID_DIGITS + STAT.len() + 1];
    for (place, &byte) in path.iter_mut().zip(pid.iter().chain(STAT)) {
        *place = byte;
    }
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    let file = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // A line has 52 numbers and a name; all that we take stands in front.
    let mut line = [0_u8; 512];
    let len = read(&file, &mut line).ok()?;
    Some(Stat::parse(line.get(..len)?)?.is_zombie())
}
