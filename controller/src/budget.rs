//! How often something may be done: a token bucket, for some times at once after a quiet time, and a few for ever.

use jiff::{SignedDuration, Timestamp};

/// How often something may be done now.
#[derive(Debug)]
pub struct Budget {
    burst: f64,
    /// For one more.
    every: SignedDuration,
    tokens: f64,
    filled_at: Timestamp,
}

impl Budget {
    /// A full one, for so many times at once.
    #[must_use]
    pub fn new(burst: u32, every: SignedDuration, now: Timestamp) -> Self {
        let burst = f64::from(burst);
        Self { burst, every, tokens: burst, filled_at: now }
    }

    /// Whether it may be done once.
    #[must_use]
    pub fn is_left(&self, now: Timestamp) -> bool {
        self.tokens(now) >= 1.0
    }

    /// Whether it may be done as often as ever.
    #[must_use]
    pub fn is_full(&self, now: Timestamp) -> bool {
        self.tokens(now) >= self.burst
    }

    /// Takes leave for once.
    pub fn take(&mut self, now: Timestamp) -> bool {
        self.take_all(1, now)
    }

    /// Takes leave for so many times, or for none.
    pub fn take_all(&mut self, times: u32, now: Timestamp) -> bool {
        self.tokens = self.tokens(now);
        self.filled_at = now;
        let left = self.tokens >= f64::from(times);
        if left {
            self.tokens -= f64::from(times);
        }
        left
    }

    /// It was done once, with or without leave.
    pub fn spend(&mut self, now: Timestamp) {
        self.tokens = (self.tokens(now) - 1.0).max(0.0);
        self.filled_at = now;
    }

    /// Once more may be done, as if it had not been.
    pub fn give_back(&mut self, now: Timestamp) {
        self.tokens = (self.tokens(now) + 1.0).min(self.burst);
        self.filled_at = now;
    }

    fn tokens(&self, now: Timestamp) -> f64 {
        let elapsed = now.duration_since(self.filled_at).as_secs_f64().max(0.0);
        (self.tokens + elapsed / self.every.as_secs_f64()).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_a_few_a_second() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let mut budget = Budget::new(20, SignedDuration::from_millis(200), at(0));
        let taken = |budget: &mut Budget, ms| (0..100).filter(|_| budget.take(at(ms))).count();
        assert_eq!(taken(&mut budget, 0), 20);
        assert_eq!(taken(&mut budget, 1_000), 5);
        assert_eq!(taken(&mut budget, 1_100), 0);
        assert_eq!(taken(&mut budget, 600_000), 20);
        assert_eq!(taken(&mut budget, 0), 0, "a clock that goes back gives nothing");
        assert!(!budget.is_left(at(100)) && budget.is_left(at(200)), "to ask takes nothing");
        assert_eq!(taken(&mut budget, 200), 1);
        budget.give_back(at(200));
        assert_eq!(taken(&mut budget, 200), 1);
        budget.spend(at(300));
        assert_eq!(
            (taken(&mut budget, 400), taken(&mut budget, 500)),
            (0, 1),
            "what had been filled in by then is gone"
        );
        budget.give_back(at(600_000));
        assert_eq!(taken(&mut budget, 600_000), 20, "and no more than at most");
        assert!(!budget.is_full(at(600_200)) && budget.is_full(at(604_000)));
        assert!(!budget.take_all(21, at(604_000)) && budget.is_full(at(604_000)), "all or none");
        assert!(budget.take_all(15, at(604_000)) && !budget.take_all(6, at(604_000)));
        assert_eq!(taken(&mut budget, 604_000), 5);
    }
}
