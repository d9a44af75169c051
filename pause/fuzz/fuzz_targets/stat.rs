//! Reads any bytes as a line of `/proc/<pid>/stat`: `cargo fuzz run stat`.
#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::stat(bytes));
