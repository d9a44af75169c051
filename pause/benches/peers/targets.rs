//! The targets of our pause. A number that is missing meets none.

use crate::results::{Quantity, Results};
use crate::table::number;

enum Limit {
    AtMost(f64),
    /// Of upstream's number.
    Times(f64),
    /// In addition to upstream's number.
    Above(f64),
}

const TARGETS: [(Quantity, Limit); 13] = [
    (Quantity::Binary, Limit::AtMost(10_000.0)),
    (Quantity::Image, Limit::AtMost(20_000.0)),
    (Quantity::Resident, Limit::AtMost(32.0)),
    (Quantity::Instructions, Limit::Times(1.1)),
    (Quantity::InstructionsAtOnce, Limit::Times(1.1)),
    (Quantity::SystemCalls, Limit::Times(1.0)),
    (Quantity::SystemCallsAtOnce, Limit::Times(1.0)),
    (Quantity::Ready, Limit::Times(1.0)),
    (Quantity::WakeUpsAlone, Limit::AtMost(3.0)),
    (Quantity::WakeUpsWithOthers, Limit::AtMost(6.0)),
    (Quantity::ScanCpu, Limit::AtMost(1.0)),
    (Quantity::ReapingDelay, Limit::Above(5.0)),
    (Quantity::SigtermDelay, Limit::Above(5.0)),
];

pub(crate) struct Verdict {
    pub(crate) quantity: Quantity,
    /// The target in words.
    pub(crate) target: String,
    /// Ours as a share of the limit.
    pub(crate) share: Option<f64>,
    pub(crate) met: bool,
}

pub(crate) fn judge(ours: &Results, upstream: &Results) -> Vec<Verdict> {
    let judged = |(quantity, limit): &(Quantity, Limit)| {
        let quantity = *quantity;
        let theirs = upstream.rounded(quantity);
        let (target, limit) = match *limit {
            Limit::AtMost(most) => (format!("≤ {}", number(most, 0)), Some(most)),
            Limit::Times(times) => (format!("≤ {times:.1} × upstream"), theirs.map(|theirs| theirs * times)),
            Limit::Above(more) => (format!("≤ upstream + {more:.0}"), theirs.map(|theirs| theirs + more)),
        };
        let share = ours.rounded(quantity).zip(limit).map(|(number, limit)| number / limit);
        Verdict { quantity, target, share, met: share.is_some_and(|share| share <= 1.0) }
    };
    TARGETS.iter().map(judged).collect()
}
