//! What people look up is there: each reason that a row can have for Unknown has its entry in docs/troubleshooting.md.

use std::collections::BTreeSet;

use sandbox_health::agent::pause::ReadError;
use sandbox_health::controller::conditions::Over;
use sandbox_health::controller::fleet::Blindness;
use sandbox_health::resource::SANDBOX_NOT_FOUND;

const PAGE: &str = include_str!("../../docs/troubleshooting.md");

/// Reasons that stand in the code as they are, behind the name of this function.
fn literal_reasons() -> BTreeSet<&'static str> {
    let conditions = include_str!("../src/controller/conditions.rs");
    // Its tests make up reasons of their own.
    let conditions = conditions.split("#[cfg(test)]").next().unwrap_or_default();
    let calls = conditions.split("unknown(").skip(1);
    calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

#[test]
fn each_reason_for_unknown_has_an_entry() {
    let literal = literal_reasons();
    // The parser has found what there is.
    for known in ["NoReport", "NotCounted"] {
        assert!(literal.contains(known), "{literal:?}");
    }
    let seen = ReadError::all_reasons().chain(Blindness::ALL.map(Blindness::reason));
    let reasons: BTreeSet<_> =
        seen.chain([SANDBOX_NOT_FOUND]).chain(Over::ALL.map(Over::reason)).chain(literal).collect();
    let headings = PAGE.lines().filter_map(|line| line.strip_prefix("### "));
    let entries: Vec<_> = headings.flat_map(|heading| heading.split('`').skip(1).step_by(2)).collect();
    let distinct: BTreeSet<_> = entries.iter().copied().collect();
    assert_eq!(distinct.len(), entries.len(), "an entry is there twice: {entries:?}");
    assert_eq!(distinct, reasons);
}
