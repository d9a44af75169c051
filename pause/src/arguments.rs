//! The process's arguments as the kernel laid them out, and the second execution that makes room among them for a
//! status. Every raw pointer of the start of the process stays in this file.

use core::ffi::CStr;
use core::ptr;

use pause_status::ROOM;
use syscalls::{Sysno, syscall};

/// Tag of the auxiliary vector for the path that was executed (getauxval(3)).
const AT_EXECFN: usize = 31;
/// Other arguments that the second execution hands on; pause has one option.
const HANDED_ON: usize = 8;

/// What the second execution passes so that the kernel keeps the space for us: `ROOM` spaces and the NUL that ends them.
static SPACES: [u8; ROOM + 1] = {
    let mut spaces = [b' '; ROOM + 1];
    spaces[ROOM] = 0;
    spaces
};

/// `--status-file` stands without a path.
pub(crate) struct PathMissing;

pub(crate) struct Arguments {
    /// NUL-terminated strings, `count` of them, and a null pointer after the last.
    strings: *const *mut u8,
    count: usize,
    /// How many at the front are not options: the name, and the room where it is there.
    taken: usize,
}

impl Arguments {
    /// # Safety
    ///
    /// `stack` is the stack pointer of a new process, as the kernel set it.
    pub(crate) unsafe fn from_stack(stack: *const usize) -> Self {
        // SAFETY: argc stands at the stack pointer and argv follows it.
        let (count, strings) = unsafe { (stack.read(), stack.add(1).cast::<*mut u8>()) };
        Self { strings, count, taken: 1 }
    }

    fn get(&self, index: usize) -> Option<&'static CStr> {
        if index >= self.count {
            return None;
        }
        // SAFETY: index < argc, so there is a pointer to a NUL-terminated string that lives as long as the process.
        // Only the room is ever written to, and `options` passes over it once it is taken.
        Some(unsafe { CStr::from_ptr((*self.strings.add(index)).cast()) })
    }

    fn options(&self) -> impl Iterator<Item = &'static CStr> {
        (self.taken..self.count).filter_map(|index| self.get(index))
    }

    pub(crate) fn asks_for_version(&self) -> bool {
        self.options().any(|option| matches!(option.to_bytes(), b"-v" | b"-V" | b"--version"))
    }

    pub(crate) fn status_file(&self) -> Result<Option<&'static CStr>, PathMissing> {
        let mut options = self.options();
        match options.find(|option| option.to_bytes() == b"--status-file") {
            Some(_) => options.next().map(Some).ok_or(PathMissing),
            None => Ok(None),
        }
    }

    /// The room for a status, with the NUL that ends it, if an execution of ours made it.
    pub(crate) fn take_room(&mut self) -> Option<&'static mut [u8]> {
        if self.taken > 1 || self.get(1)?.to_bytes_with_nul() != SPACES {
            return None;
        }
        self.taken = 2;
        // SAFETY: the string has ROOM bytes and a NUL, the kernel put it into our writable stack, and since `taken` is
        // 2 from here on, no other reference to it is made.
        Some(unsafe { core::slice::from_raw_parts_mut(*self.strings.add(1), ROOM + 1) })
    }

    /// Executes the program once more with room for a status. Returns only if that fails.
    pub(crate) fn execute_with_room(&self) {
        let mut strings = [ptr::null::<u8>(); 2 + HANDED_ON + 1];
        let Some(name) = self.get(0) else { return };
        strings[0] = name.as_ptr().cast();
        strings[1] = SPACES.as_ptr();
        for (place, option) in strings.iter_mut().skip(2).take(HANDED_ON).zip(self.options()) {
            *place = option.as_ptr().cast();
        }
        // SAFETY: the environment follows the null pointer that ends argv.
        let environment = unsafe { self.strings.add(self.count + 1) };
        let path = executed_path(environment).unwrap_or(name);
        // SAFETY: a NUL-terminated path and two arrays of strings that end in null; the last place of `strings` is never
        // filled. On success nothing of this program is left, on failure nothing has changed.
        let _ = unsafe { syscall!(Sysno::execve, path.as_ptr(), strings.as_ptr(), environment) };
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
