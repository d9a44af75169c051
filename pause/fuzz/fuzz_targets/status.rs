//! Reads any bytes as a status: `cargo fuzz run status`.
#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::status(bytes));
