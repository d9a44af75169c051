//! The process's arguments as the kernel laid them out, and the second execution that makes room among them for a
//! status. Every raw pointer of the start of the process stays in this file.

use core::ffi::CStr;

use pause_status::ROOM;
use rustix::io::Errno;
use syscalls::{Sysno, syscall};

/// Tag of the auxiliary vector for the path that was executed (getauxval(3)).
const AT_EXECFN: usize = 31;

/// What the second execution passes so that the kernel keeps the space for us: `ROOM` spaces and the NUL that ends them.
static SPACES: [u8; ROOM + 1] = {
    let mut spaces = [b' '; ROOM + 1];
    spaces[ROOM] = 0;
    spaces
};

/// `--status-file` stands without an absolute path. Pause works in `/`, so any other would be somewhere else than meant.
pub(crate) struct NoPath;

pub(crate) struct Arguments {
    /// How many strings there are; then pointers to them, NUL-terminated, and a null pointer after the last.
    stack: *mut usize,
    count: usize,
    /// How many at the front are not options: the name, and the room where it is there.
    taken: usize,
}

impl Arguments {
    /// # Safety
    ///
    /// `stack` is the stack pointer of a new process, as the kernel set it.
    pub(crate) unsafe fn from_stack(stack: *mut usize) -> Self {
        // SAFETY: argc stands at the stack pointer.
        let count = unsafe { stack.read() };
        Self { stack, count, taken: 1 }
    }

    /// Where the pointer to this string stands; `index` is at most `count`, where the null pointer is.
    fn place(&self, index: usize) -> *mut *mut u8 {
        // SAFETY: argv follows argc, and has one place more than strings.
        unsafe { self.stack.add(1 + index).cast() }
    }

    fn get(&self, index: usize) -> Option<&'static CStr> {
        if index >= self.count {
            return None;
        }
        // SAFETY: index < argc, so there is a pointer to a NUL-terminated string that lives as long as the process.
        // Only the room is ever written to, and `options` passes over it once it is taken.
        Some(unsafe { CStr::from_ptr(self.place(index).read().cast()) })
    }

    fn options(&self) -> impl Iterator<Item = &'static CStr> {
        (self.taken..self.count).filter_map(|index| self.get(index))
    }

    pub(crate) fn asks_for_version(&self) -> bool {
        let mut options = self.options();
        while let Some(option) = options.next() {
            match option.to_bytes() {
                b"-v" | b"-V" | b"--version" => return true,
                // What follows is its path.
                b"--status-file" => drop(options.next()),
                _ => {}
            }
        }
        false
    }

    pub(crate) fn status_file(&self) -> Result<Option<&'static CStr>, NoPath> {
        let mut options = self.options();
        while let Some(option) = options.next() {
            let path = match option.to_bytes_with_nul().strip_prefix(b"--status-file") {
                Some(b"\0") => options.next(),
                Some([b'=', path @ ..]) => CStr::from_bytes_with_nul(path).ok(),
                _ => continue,
            };
            return path.filter(|path| path.to_bytes().first() == Some(&b'/')).map(Some).ok_or(NoPath);
        }
        Ok(None)
    }

    /// The room for a status, with the NUL that ends it, if an execution of ours made it.
    pub(crate) fn take_room(&mut self) -> Option<&'static mut [u8]> {
        if self.taken > 1 || self.get(1)?.to_bytes_with_nul() != SPACES {
            return None;
        }
        self.taken = 2;
        // SAFETY: the string has ROOM bytes and a NUL, the kernel put it into our writable stack, and since `taken` is
        // 2 from here on, no other reference to it is made.
        Some(unsafe { core::slice::from_raw_parts_mut(self.place(1).read(), ROOM + 1) })
    }

    /// Executes the program once more with room for a status. Returns only if that fails.
    pub(crate) fn execute_with_room(&self) -> Errno {
        let Some(name) = self.get(0) else { return Errno::INVAL };
        let environment = self.place(self.count).wrapping_add(1);
        let path = executed_path(environment).unwrap_or(name);
        // The new list takes argc's place for the name and the name's for the room; however many options follow, they
        // stand where they should.
        let strings = self.stack.cast::<*const u8>();
        // SAFETY: both places are ours to write, and nobody reads them again: `count` is kept, and options start at 1.
        // The path is NUL-terminated, and both lists are of such strings and end in null. On success nothing of this
        // program is left.
        unsafe {
            strings.write(name.as_ptr().cast());
            strings.add(1).write(SPACES.as_ptr());
            match syscall!(Sysno::execve, path.as_ptr(), strings, environment) {
                Ok(_) => Errno::INVAL,
                Err(error) => Errno::from_raw_os_error(error.into_raw()),
            }
        }
    }
}

/// The path that this program was executed by. Through `/proc/self/exe` the process would be called `exe`.
fn executed_path(environment: *const *mut u8) -> Option<&'static CStr> {
    let mut environment = environment;
    // SAFETY: the environment ends in a null pointer; the auxiliary vector follows it as pairs of words and ends in a
    // pair whose tag is 0. AT_EXECFN's value points to a NUL-terminated string.
    unsafe {
        while !environment.read().is_null() {
            environment = environment.add(1);
        }
        let mut pair = environment.add(1).cast::<[usize; 2]>();
        loop {
            match pair.read() {
                [0, _] => return None,
                [AT_EXECFN, path] => return Some(CStr::from_ptr(path as *const _)),
                _ => pair = pair.add(1),
            }
        }
    }
}
