//! How fast the agent may ask the API: a token bucket, so that a node with a storm of restarts stays polite.

use jiff::Timestamp;

/// Requests that may be made at once after a quiet time.
const BURST: f64 = 20.0;
/// Requests a second that may be made for ever.
const PER_SECOND: f64 = 5.0;

/// The requests that may be made now.
#[derive(Debug)]
pub struct Budget {
    tokens: f64,
    filled_at: Timestamp,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { tokens: BURST, filled_at: now }
    }

    /// Takes leave for one request.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let elapsed = now.duration_since(self.filled_at).as_secs_f64().max(0.0);
        self.filled_at = now;
        self.tokens = (self.tokens + elapsed * PER_SECOND).min(BURST);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_a_few_a_second() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let mut budget = Budget::new(at(0));
        let taken = |budget: &mut Budget, ms| (0..100).filter(|_| budget.take(at(ms))).count();
        assert_eq!(taken(&mut budget, 0), 20);
        assert_eq!(taken(&mut budget, 1_000), 5);
        assert_eq!(taken(&mut budget, 1_100), 0);
        assert_eq!(taken(&mut budget, 600_000), 20);
        assert_eq!(taken(&mut budget, 0), 0, "a clock that goes back gives nothing");
    }
}
