//! How long to wait after failures: 1 s, then twice as long each time, up to a minute, less a random part of up to a half, so
//! that many who failed at once don't come back at once.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Duration;

/// Longest wait.
const MAX: Duration = Duration::from_secs(60);

/// The wait after the failure that follows `failures` others. `RandomState` is seeded anew for each process; the count and
/// the name make it differ from wait to wait.
#[must_use]
pub fn wait(failures: u32, name: &str, random: &RandomState) -> Duration {
    shortened(Duration::from_secs(1 << failures.min(6)).min(MAX), (failures, name), random)
}

/// A wait, less a random part of up to a half; `whose`: what makes it differ from that of others.
#[must_use]
pub fn shortened(full: Duration, whose: impl Hash, random: &RandomState) -> Duration {
    let thousandths = u32::try_from(random.hash_one(whose) % 500).unwrap_or_default();
    full - full * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_differ() {
        let random = RandomState::new();
        for (failures, seconds) in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (7, 60), (u32::MAX, 60)] {
            let waited = wait(failures, "a", &random);
            let full = Duration::from_secs(seconds);
            assert!(waited > full / 2 && waited <= full, "{failures}: {waited:?}");
        }
        let waits: std::collections::HashSet<_> =
            (0..20).map(|pod| wait(6, &format!("pod-{pod}"), &random)).collect();
        assert!(waits.len() > 1, "{waits:?}");
    }
}
