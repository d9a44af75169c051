//! Each reason of a condition that is Unknown has an entry in docs/reference/reasons.md.

use std::collections::BTreeSet;

use sandbox_health::core::conditions::{Terminal, UnavailableReason};
use sandbox_health::procfs::pause::ReadError;
use strum::VariantArray as _;

const PAGE: &str = include_str!("../../docs/reference/reasons.md");

#[test]
fn each_reason_for_unknown_has_an_entry() {
    let read_failures = ReadError::all_reasons();
    let unavailable = UnavailableReason::VARIANTS.iter().map(|reason| reason.into_str());
    let terminal = Terminal::VARIANTS.iter().map(|terminal| terminal.into_str());
    let reasons: BTreeSet<_> = read_failures.chain(unavailable).chain(terminal).chain(["NoReport"]).collect();
    let headings = PAGE.lines().filter_map(|line| line.strip_prefix("## "));
    let entries: Vec<_> = headings.flat_map(|heading| heading.split('`').skip(1).step_by(2)).collect();
    let distinct: BTreeSet<_> = entries.iter().copied().collect();
    assert_eq!(distinct.len(), entries.len(), "an entry is there twice: {entries:?}");
    assert_eq!(distinct, reasons);
}
