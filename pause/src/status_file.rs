//! Where the status is written: over the process's command line, and to the file of `--status-file`, which is replaced by rename
//! so that a reader sees a complete status.

use core::ffi::CStr;

use pause_status::{ROOM, Separator, Status};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, open, rename, statat, unlink};
use rustix::io::{Errno, write};

/// Bytes of the longest path.
const PATH_MAX: usize = 256;
/// Added to the path for the file that is written and then renamed.
const SUFFIX: &[u8] = b".new";

/// Writes the status into the room, which all users can read as `/proc/<pid>/cmdline`.
pub(crate) fn write_command_line(room: &mut [u8], status: &Status<'_>) {
    // The last byte stays NUL, or the kernel takes the environment for a part of the arguments.
    let Some((_, room)) = room.split_last_mut() else { return };
    let len = status.encode(Separator::Nul, room);
    room.iter_mut().skip(len).for_each(|byte| *byte = 0);
    // The memory is read from outside of this program, so the writes must not be delayed.
    core::hint::black_box(room);
}

pub(crate) fn replace(path: &CStr, status: &Status<'_>) -> Result<(), Errno> {
    if path.count_bytes() > PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let mut new = [0; PATH_MAX + SUFFIX.len() + 1];
    for (place, &byte) in new.iter_mut().zip(path.to_bytes().iter().chain(SUFFIX)) {
        *place = byte;
    }
    let new = CStr::from_bytes_until_nul(&new).map_err(|_| Errno::NAMETOOLONG)?;
    // A link, a device or a socket has another purpose.
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile) {
        return Err(Errno::LOOP);
    }
    // A file of a pause that was killed may be read-only.
    let _ = unlink(new);
    let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
    let file = open(new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, mode)?;
    // Whatever the umask is.
    fchmod(&file, mode)?;
    let mut text = [0; ROOM];
    let len = status.encode(Separator::Newline, &mut text);
    let complete = |written| if written == len { rename(new, path) } else { Err(Errno::NOSPC) };
    let result = write(&file, text.get(..len).unwrap_or_default()).and_then(complete);
    if result.is_err() {
        let _ = unlink(new);
    }
    result
}
