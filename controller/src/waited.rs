//! How long something is so, by a clock that somebody may set.

use jiff::{SignedDuration, Timestamp};

/// For how long something is so. When the clock was set back meanwhile nobody knows, and long enough is what does no harm: what
/// waits for it would wait for as long as the clock was set back.
#[must_use]
pub fn waited(since: Timestamp, now: Timestamp) -> SignedDuration {
    let waited = now.duration_since(since);
    if waited.is_negative() { SignedDuration::MAX } else { waited }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_set_the_clock_back_keeps_nobody_waiting() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(waited(at(100), at(105)), SignedDuration::from_secs(5));
        assert_eq!(waited(at(100), at(99)), SignedDuration::MAX);
    }
}
