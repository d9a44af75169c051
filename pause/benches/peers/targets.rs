//! What our pause has to reach. A number that is missing meets no target.

use crate::results::{Quantity, Results};

enum Limit {
    AtMost(f64),
    /// Of the yardstick's number.
    Times(f64),
}

const TARGETS: [(Quantity, Limit); 10] = [
    (Quantity::Binary, Limit::AtMost(10_000.0)),
    (Quantity::Image, Limit::AtMost(20_000.0)),
    (Quantity::Resident, Limit::AtMost(32.0)),
    (Quantity::Instructions, Limit::Times(1.1)),
    (Quantity::InstructionsAtOnce, Limit::Times(1.1)),
    (Quantity::SystemCalls, Limit::Times(1.1)),
    (Quantity::SystemCallsAtOnce, Limit::Times(1.1)),
    (Quantity::Ready, Limit::Times(1.0)),
    (Quantity::WakeUpsAlone, Limit::AtMost(1.0)),
    (Quantity::WakeUpsWithOthers, Limit::AtMost(6.0)),
];

pub(crate) struct Verdict {
    pub(crate) quantity: Quantity,
    /// The target in words.
    pub(crate) target: String,
    /// Ours as a share of the number that it may be at most.
    pub(crate) share: Option<f64>,
    pub(crate) met: bool,
}

pub(crate) fn judge(ours: &Results, yardstick: &Results) -> Vec<Verdict> {
    let judged = |(quantity, limit): &(Quantity, Limit)| {
        let quantity = *quantity;
        let (target, share) = match *limit {
            Limit::AtMost(most) => {
                let target = format!("≤ {}", crate::table::number(most, 0));
                (target, ours.get(quantity).ok().map(|number| number / most))
            }
            Limit::Times(times) => {
                let target = format!("≤ {times:.1} × C");
                (target, ours.ratio(quantity, yardstick).map(|ratio| ratio / times))
            }
        };
        Verdict { quantity, target, share, met: share.is_some_and(|share| share <= 1.0) }
    };
    TARGETS.iter().map(judged).collect()
}
