//! Waiting for what comes about by itself. A patience bounds a wait on a slow machine; it measures nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bounds each wait. Pause scans for zombies every 10 s, the agent reads every 5 s.
pub const TIMEOUT: Duration = Duration::from_secs(180);
/// Between attempts.
const POLL: Duration = Duration::from_millis(100);

/// Tries until it succeeds; when the patience is at its end, the error is that of the last attempt.
///
/// # Errors
///
/// The last attempt's.
pub fn until<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > patience => {
                return Err(error.context(format!("waited {} s until {what}", patience.as_secs())));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_tells_what_was_waited_for() {
        let mut attempts = 0;
        let error = until("it is three", Duration::from_millis(150), || -> Result<()> {
            attempts += 1;
            anyhow::bail!("it is {attempts}")
        });
        assert!(attempts >= 2);
        let said = format!("{:#}", error.unwrap_err());
        assert_eq!(said, format!("waited 0 s until it is three: it is {attempts}"));
        assert_eq!(until("", Duration::ZERO, || Ok(3)).unwrap(), 3);
    }
}
