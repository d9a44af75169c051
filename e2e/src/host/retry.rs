//! Waiting for a condition. A timeout bounds a wait on a slow machine; it measures nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bounds each wait. Pause scans for zombies every 10 s, the agent reads every 5 s.
pub const TIMEOUT: Duration = Duration::from_secs(180);
/// Between the first attempts.
const SHORTEST_POLL: Duration = Duration::from_millis(50);
/// Between later attempts: an attempt often starts kubectl, which costs a tenth of a second of CPU.
const LONGEST_POLL: Duration = Duration::from_millis(500);

/// Retries until an attempt succeeds, less and less often; after the timeout the error is that of the last attempt.
///
/// # Errors
///
/// The last attempt's.
pub fn until<T>(what: &str, timeout: Duration, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    retry(what, timeout, SHORTEST_POLL, LONGEST_POLL, attempt)
}

/// Retries at this interval, where the moment of success matters.
///
/// # Errors
///
/// The last attempt's.
pub fn every<T>(
    interval: Duration,
    what: &str,
    timeout: Duration,
    attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    retry(what, timeout, interval, interval, attempt)
}

fn retry<T>(
    what: &str,
    timeout: Duration,
    mut poll: Duration,
    longest_poll: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > timeout => {
                return Err(error.context(format!("waited {} s until {what}", timeout.as_secs())));
            }
            Err(_) => thread::sleep(poll),
        }
        poll = (poll * 3 / 2).min(longest_poll);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_error_names_the_awaited_condition() {
        let mut attempts = 0;
        let error = until("it is three", Duration::from_millis(150), || -> Result<()> {
            attempts += 1;
            anyhow::bail!("it is {attempts}")
        });
        assert!(attempts >= 2);
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, format!("waited 0 s until it is three: it is {attempts}"));
        assert_eq!(until("", Duration::ZERO, || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn fixed_interval_stays_the_same() {
        let mut attempts = 0;
        let ended =
            every(Duration::from_millis(10), "never", Duration::from_millis(200), || -> Result<()> {
                attempts += 1;
                anyhow::bail!("no")
            });
        ended.unwrap_err();
        assert!(attempts >= 5, "{attempts} attempts");
    }
}
