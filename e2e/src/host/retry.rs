//! Waiting for a condition. A timeout bounds a wait on a slow machine; it measures nothing.

use std::time::{Duration, Instant};
use std::{iter, thread};

use anyhow::Result;

/// Bounds each wait. Pause scans for zombies every 10 s, the agent reads every 5 s.
pub const TIMEOUT: Duration = Duration::from_secs(180);
/// Between the first attempts.
const SHORTEST_POLL: Duration = Duration::from_millis(50);
/// Between later attempts: an attempt often starts kubectl, which costs a tenth of a second of CPU.
const LONGEST_POLL: Duration = Duration::from_millis(500);

/// Retries until an attempt succeeds, at increasing intervals; after the timeout the error is that of the last attempt.
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
    poll: Duration,
    longest_poll: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let (begun, mut polls) = (Instant::now(), polls(poll, longest_poll));
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > timeout => {
                return Err(error.context(format!("waited {} s until {what}", timeout.as_secs())));
            }
            Err(_) => thread::sleep(polls.next().unwrap_or(longest_poll)),
        }
    }
}

/// The waits between attempts.
fn polls(shortest: Duration, longest: Duration) -> impl Iterator<Item = Duration> {
    iter::successors(Some(shortest), move |poll| Some((*poll * 3 / 2).min(longest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_is_repeated_until_it_succeeds() {
        let mut attempts = 0;
        let outcome = until("it is three", TIMEOUT, || {
            attempts += 1;
            anyhow::ensure!(attempts == 3, "it is {attempts}");
            Ok(attempts)
        });
        assert_eq!(outcome.unwrap(), 3);
    }

    #[test]
    fn last_error_names_the_awaited_condition() {
        let mut attempts = 0;
        let error = until("it is three", Duration::ZERO, || -> Result<()> {
            attempts += 1;
            anyhow::bail!("it is {attempts}")
        });
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, format!("waited 0 s until it is three: it is {attempts}"));
        assert_eq!(until("", Duration::ZERO, || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn polls_become_rarer_up_to_a_limit() {
        let millis = |shortest, longest| {
            let polls = polls(Duration::from_millis(shortest), Duration::from_millis(longest));
            polls.take(8).map(|poll| poll.as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(millis(50, 500), [50, 75, 112, 168, 253, 379, 500, 500]);
        assert_eq!(millis(10, 10), [10; 8], "a fixed interval stays the same");
    }
}
