//! The status in a file of its own (`--status-file`), for runtimes that give pause a writable directory. A reader sees
//! a whole status or none: it's written beside the path and renamed to it.

use core::ffi::CStr;

use pause_status::{ROOM, Separator, Status};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, open, rename, statat, unlink};
use rustix::io::{Errno, write};

/// What the file is called while it is written: the path and this.
const SUFFIX: &[u8] = b".new";
/// Bytes of the longest path that is taken.
const PATH_MAX: usize = 256;

pub(crate) struct StatusFile {
    path: Option<&'static CStr>,
    /// A failure is told once, not every time.
    told: bool,
}

impl StatusFile {
    pub(crate) fn new(path: Option<&'static CStr>) -> Self {
        Self { path, told: false }
    }

    pub(crate) fn write(&mut self, status: &Status<'_>) {
        let Some(path) = self.path else { return };
        match replace(path, status) {
            Ok(()) => self.told = false,
            Err(_) if self.told => {}
            Err(error) => {
                crate::warn_of(b"pause: cannot write the status file ", path.to_bytes(), error);
                self.told = true;
            }
        }
    }
}

fn replace(path: &CStr, status: &Status<'_>) -> Result<(), Errno> {
    let mut beside = [0; PATH_MAX + SUFFIX.len() + 1];
    if path.count_bytes() > PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    for (place, &byte) in beside.iter_mut().zip(path.to_bytes().iter().chain(SUFFIX)) {
        *place = byte;
    }
    let beside = CStr::from_bytes_until_nul(&beside).map_err(|_| Errno::NAMETOOLONG)?;
    // What somebody else put there for another purpose is not ours to replace: a link, a device, a socket.
    if is_no_file(path) || is_no_file(beside) {
        return Err(Errno::LOOP);
    }
    let mut text = [0; ROOM];
    let len = status.encode(Separator::Newline, &mut text);
    // Left over from an earlier pause, it may be read-only.
    let _ = unlink(beside);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let readable = Mode::RUSR | Mode::RGRP | Mode::ROTH;
    let file = open(beside, flags, readable)?;
    // Whatever umask we were started with.
    fchmod(&file, readable)?;
    let text = text.get(..len).unwrap_or_default();
    let written = match write(&file, text) {
        Ok(written) if written != len => Err(Errno::NOSPC),
        Ok(_) => rename(beside, path),
        Err(error) => Err(error),
    };
    if written.is_err() {
        let _ = unlink(beside);
    }
    written
}

/// There is something, and it is not a regular file.
fn is_no_file(path: &CStr) -> bool {
    statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|there| FileType::from_raw_mode(there.st_mode) != FileType::RegularFile)
}
