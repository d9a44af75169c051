//! The cost of one more child to PID 1: the same work with few orphans and with many, and the slope between them, so that neither
//! start nor end counts.

use anyhow::{Result, ensure};
use pid1_harness::Namespace;

use crate::orphans::{self, Ending, Fate};

const FEW: u32 = 100;
const MANY: u32 = 600;

/// The slope of `cost`, the total for a number of orphans.
pub(crate) fn slope(mut cost: impl FnMut(u32) -> Result<u64>) -> Result<f64> {
    let few = cost(FEW)?;
    let many = cost(MANY)?;
    ensure!(many > few, "{MANY} children cost {many}, {FEW} cost {few}: not measured");
    // Both are far below 2^52.
    Ok((many - few) as f64 / f64::from(MANY - FEW))
}

/// Ends orphans, all of which must be reaped: a number for each child would mean nothing otherwise.
pub(crate) fn all_reaped(namespace: &Namespace, ending: Ending, count: u32) -> Result<()> {
    let fate = orphans::end(namespace, ending, count)?;
    ensure!(fate == Fate::Reaped, "of {count} orphans some remain as zombies");
    Ok(())
}
