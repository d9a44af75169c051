//! Percentiles of a latency, by nearest rank, so that each number was measured.

use std::time::Duration;

/// The smallest measured value that at least this share of the values does not exceed.
pub(super) fn percentile(measured: &[Duration], percent: u32) -> Option<Duration> {
    let mut sorted = measured.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * usize::try_from(percent).ok()?).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_percentile_is_a_measured_number() {
        let of = |count: u64, percent| {
            let measured: Vec<_> = (1..=count).rev().map(Duration::from_millis).collect();
            percentile(&measured, percent).map(|latency| latency.as_millis())
        };
        assert_eq!(of(100, 50), Some(50));
        assert_eq!(of(100, 99), Some(99));
        assert_eq!(of(100, 100), Some(100));
        assert_eq!(of(10, 99), Some(10));
        assert_eq!(of(1, 50), Some(1));
        assert_eq!(of(0, 99), None);
    }
}
