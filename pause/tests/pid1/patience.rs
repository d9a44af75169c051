//! Waiting for what will be true in a moment: bounded, and never a measure of time. Shared with the benchmark.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Asks until the answer is good, for a minute at most.
pub(crate) fn eventually<T>(ask: impl FnMut() -> Result<T>) -> Result<T> {
    within(Duration::from_secs(60), ask)
}

/// Asks until the answer is good or the time is over, then gives the last answer.
pub(crate) fn within<T>(time: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + time;
    loop {
        match ask() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}
