//! A pseudo-random order that is the same for the same seed.

/// A linear congruential generator with Knuth's MMIX constants, which is sufficient for an order.
pub(super) struct Shuffle(u64);

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is small. The upper bits are the better ones.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound.max(1)
    }

    /// `length` indexes below `among`, in rounds: each index occurs once in a round.
    pub(super) fn order(mut self, among: usize, length: usize) -> Vec<usize> {
        let mut order = vec![];
        while order.len() < length && among > 0 {
            let mut round: Vec<_> = (0..among).collect();
            for last in (1..among).rev() {
                let other = self.below(last + 1);
                round.swap(last, other);
            }
            order.extend(round);
        }
        order.truncate(length);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_repeats_order_and_round_has_each_once() {
        let order = Shuffle::new(7).order(10, 25);
        assert_eq!(order.len(), 25);
        for round in order.chunks_exact(10) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(order[..10], order[10..20]);
        assert_eq!(order, Shuffle::new(7).order(10, 25));
        assert_ne!(order, Shuffle::new(8).order(10, 25));
    }
}
