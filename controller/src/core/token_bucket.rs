//! A rate limit: a burst after a quiet time, and a steady rate in the long run.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket, kept as the time at which it will be full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
pub struct TokenBucket {
    interval: Duration,
    /// A bucket that is full in no more than this has a token.
    tolerance: Duration,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens, which gets one back per `interval`.
    pub fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { interval, tolerance: interval * burst.saturating_sub(1), full_at: now }
    }

    pub fn has_token(&self, now: Instant) -> bool {
        self.wait(now).is_zero()
    }

    pub fn take(&mut self, now: Instant) -> bool {
        let has_token = self.has_token(now);
        if has_token {
            self.reserve(now);
        }
        has_token
    }

    /// Takes the next token, even one that is not there yet: the caller may continue at the returned time.
    pub fn reserve(&mut self, now: Instant) -> Instant {
        let at = now + self.wait(now);
        self.full_at = self.full_at.max(now) + self.interval;
        at
    }

    fn wait(&self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now).saturating_sub(self.tolerance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_is_followed_by_a_steady_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, SECOND, start);
        let mut taken = |seconds| (0..10).filter(|_| bucket.take(start + SECOND * seconds)).count();
        assert_eq!([0, 0, 1, 2, 4, 1000].map(&mut taken), [3, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn reservations_are_granted_in_order() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(2, SECOND, start);
        let seconds = [0; 4].map(|_| (bucket.reserve(start) - start).as_secs());
        assert_eq!(seconds, [0, 0, 1, 2]);
        assert!(!bucket.has_token(start + 2 * SECOND) && bucket.has_token(start + 3 * SECOND));
    }
}
