//! What a C library would bring: the first instruction, the end of the process, and the memory functions that the
//! compiler calls by name. Nothing here knows what pause does.

use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdout};
use syscalls::{Sysno, syscall};

use crate::arguments::Arguments;

// The kernel enters with argc, argv, the environment and the auxiliary vector on the stack (System V ABI, "Process
// Initialization"); the call needs a stack aligned to 16 bytes.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    entry = sym entry,
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {entry}",
    entry = sym entry,
);

unsafe extern "C" fn entry(stack: *mut usize) -> ! {
    // SAFETY: `_start` hands over the stack as the kernel made it, and nothing else looks at it.
    let arguments = unsafe { Arguments::from_stack(stack) };
    exit(crate::run(arguments))
}

/// Ends the process.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not return.
        let _ = unsafe { syscall!(Sysno::exit_group, code) };
    }
}

pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Writes the parts and a newline. Whoever gave us a descriptor that takes no output gets none.
pub(crate) fn print(output: Output, parts: &[&[u8]]) {
    // SAFETY: we never close these two. If we were started without them, a file of ours may have their number, but none is
    // open while we print, so the write says EBADF.
    let to = match output {
        Output::Stdout => unsafe { stdout() },
        Output::Stderr => unsafe { stderr() },
    };
    for mut rest in parts.iter().copied().chain([b"\n".as_slice()]) {
        while !rest.is_empty() {
            match write(to, rest) {
                Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

/// Lets go of what a runtime may have left to us: descriptors above stderr, and the directory we were started in.
pub(crate) fn drop_inherited() {
    // SAFETY: close_range takes three integers; no value of ours owns a descriptor yet.
    let _ = unsafe { syscall!(Sysno::close_range, 3, u32::MAX, 0) };
    let _ = rustix::process::chdir(c"/");
}

/// The functions that compiled code refers to by name (the `mem` feature of compiler_builtins is off on this target).
/// Each access is volatile: otherwise the compiler makes a call of the very function out of its loop.
mod memory {
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: the caller gives two valid regions of `len` bytes that don't overlap.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) }
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        let forwards = to.cast_const() <= from;
        for step in 0..len {
            let at = if forwards { step } else { len - 1 - step };
            // SAFETY: the caller gives two valid regions of `len` bytes; the direction keeps what is still to be read.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) }
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: the caller gives a valid region of `len` bytes.
            unsafe { to.add(at).write_volatile(byte as u8) }
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        for at in 0..len {
            // SAFETY: the caller gives two valid regions of `len` bytes.
            let (left, right) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
            if left != right {
                return i32::from(left) - i32::from(right);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: what bcmp asks of its caller is what memcmp asks.
        unsafe { memcmp(left, right, len) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(text: *const u8) -> usize {
        let mut len = 0;
        // SAFETY: the caller's text ends in NUL, which is where the reading ends.
        while unsafe { text.add(len).read_volatile() } != 0 {
            len += 1;
        }
        len
    }
}
