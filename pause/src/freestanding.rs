//! What a C library would bring: the first instruction, the end of the process, output, and the memory functions that compiled
//! code calls by name. Nothing here depends on what pause does.

use core::arch::global_asm;

use syscalls::{Sysno, syscall};

use crate::arguments::Arguments;

#[cfg(not(all(target_pointer_width = "64", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("pause has no start code for this architecture, only for x86_64 (not x32) and aarch64");

// The kernel enters with argc, argv, the environment and the auxiliary vector on the stack (System V ABI, "Process
// Initialization"); a call needs a stack aligned to 16 bytes.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start\n_start: xor ebp, ebp\nmov rdi, rsp\nand rsp, -16\ncall {entry}", entry = sym entry);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start\n_start: mov x29, #0\nmov x30, #0\nmov x0, sp\nbl {entry}", entry = sym entry);

unsafe extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: `_start` passes the stack as the kernel made it, and no other code uses it.
    crate::run(unsafe { Arguments::from_stack(stack) })
}

/// Ends the process.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not return.
        let _ = unsafe { syscall!(Sysno::exit_group, code) };
    }
}

pub(crate) const STDOUT: usize = 1;
pub(crate) const STDERR: usize = 2;

/// Writes the parts and a newline. A descriptor that takes no output gets none.
pub(crate) fn print(descriptor: usize, parts: &[&[u8]]) {
    for part in parts.iter().chain(&[b"\n".as_slice()]) {
        // SAFETY: write reads `len` bytes from a slice of this length.
        let _ = unsafe { syscall!(Sysno::write, descriptor, part.as_ptr(), part.len()) };
    }
}

/// Closes inherited descriptors above stderr and leaves the inherited working directory.
pub(crate) fn drop_inherited() {
    // SAFETY: close_range (Linux 5.9) takes three integers, and pause has opened no descriptor yet.
    let _ = unsafe { syscall!(Sysno::close_range, 3, u32::MAX, 0) };
    let _ = rustix::process::chdir(c"/");
}

/// Functions that compiled code calls by name; their callers give valid regions (C standard, `string.h`). Each access is
/// volatile, or the compiler would make a call of the function out of its own loop.
mod memory {
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: `at` is in both regions.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) }
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: `at` is in the region.
            unsafe { to.add(at).write_volatile(byte as u8) }
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: `at` is in both regions.
        i32::from((0..len).any(|at| unsafe { left.add(at).read_volatile() != right.add(at).read_volatile() }))
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(text: *const u8) -> usize {
        let mut len = 0;
        // SAFETY: the text ends in NUL, and so does this loop.
        while unsafe { text.add(len).read_volatile() } != 0 {
            len += 1;
        }
        len
    }
}
