//! The process's arguments as the kernel laid them out. Raw pointers to them stay in this file.

use core::ffi::CStr;

use pause_status::ROOM;

pub(crate) struct Arguments {
    /// Pointers to NUL-terminated strings.
    argv: *const *mut u8,
    count: usize,
}

#[derive(Default)]
pub(crate) struct Options {
    /// The room for a status with the NUL at its end; empty where the first argument is not the image's `Cmd`.
    pub(crate) room: &'static mut [u8],
    pub(crate) is_version: bool,
    pub(crate) status_file: Option<&'static CStr>,
    /// `--status-file` without an absolute path: pause changes to `/`.
    pub(crate) is_path_missing: bool,
}

impl Arguments {
    /// # Safety
    ///
    /// `stack` is the stack pointer of a new process, as the kernel set it.
    pub(crate) unsafe fn from_stack(stack: *const usize) -> Self {
        // SAFETY: argc is at the stack pointer, and argv follows it.
        unsafe { Self { argv: stack.add(1).cast(), count: stack.read() } }
    }

    fn get(&self, index: usize) -> Option<&'static CStr> {
        // SAFETY: index < argc, so this is a NUL-terminated string that lives as long as the process.
        (index < self.count).then(|| unsafe { CStr::from_ptr(self.argv.add(index).read().cast()) })
    }

    pub(crate) fn parse(self) -> Options {
        let is_room =
            |text: &CStr| text.to_bytes().iter().all(|&byte| byte == b' ') && text.count_bytes() == ROOM;
        let has_room = self.get(1).is_some_and(is_room);
        let mut options = Options::default();
        let mut arguments = (1 + usize::from(has_room)..self.count).filter_map(|index| self.get(index));
        while let Some(argument) = arguments.next() {
            let path = match argument.to_bytes_with_nul() {
                b"-v\0" | b"-V\0" | b"--version\0" => {
                    options.is_version = true;
                    continue;
                }
                b"--status-file\0" => arguments.next(),
                other => match other.strip_prefix(b"--status-file=") {
                    Some(path) => CStr::from_bytes_with_nul(path).ok(),
                    None => continue,
                },
            };
            options.status_file = path.filter(|path| path.to_bytes().first() == Some(&b'/'));
            options.is_path_missing = options.status_file.is_none();
        }
        if has_room {
            // SAFETY: the string has ROOM bytes and a NUL, lies in our writable stack, and no reference to it is left.
            options.room = unsafe { core::slice::from_raw_parts_mut(self.argv.add(1).read(), ROOM + 1) };
        }
        options
    }
}
