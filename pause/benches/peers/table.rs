//! The results as Markdown: one table of all contenders with ratios to upstream's pause, one of the targets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::contenders::{Contender, Kind};
use crate::results::{Quantity, Results};
use crate::targets::Verdict;

fn push_line(table: &mut String, cells: impl IntoIterator<Item = String>) {
    for cell in cells {
        let _ = write!(table, "| {cell} ");
    }
    table.push_str("|\n");
}

pub(crate) fn contenders(columns: &[(Contender, Results)], upstream: &Results) -> String {
    let mut table = String::new();
    let names = columns.iter().map(|(contender, _)| match contender.kind {
        Kind::Ours => format!("**{}**", contender.name),
        _ => contender.name.clone(),
    });
    push_line(&mut table, std::iter::once(String::new()).chain(names));
    push_line(&mut table, std::iter::once("---".into()).chain(columns.iter().map(|_| "---:".into())));
    // For each reason, the quantities that are missing.
    let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for quantity in Quantity::ALL {
        let mut cells = vec![quantity.name().to_owned()];
        for (contender, results) in columns {
            cells.push(match results.get(quantity) {
                Ok(measured) => {
                    let ratio = match (contender.kind, quantity) {
                        // It is 1 everywhere; and an init that starts a command does other work until it is ready.
                        (Kind::Upstream, _) | (Kind::RunsCommand, Quantity::Ready) => None,
                        _ => results.ratio(quantity, upstream),
                    };
                    let ratio = ratio.map(|ratio| format!(" ({ratio:.2}×)")).unwrap_or_default();
                    format!("{}{ratio}", number(measured, quantity.decimals()))
                }
                Err(reason) => {
                    reasons.entry(reason).or_default().insert(quantity.name());
                    "–".into()
                }
            });
        }
        push_line(&mut table, cells);
    }
    for (reason, quantities) in reasons {
        let quantities: Vec<_> = quantities.into_iter().collect();
        let _ = write!(table, "\n– {reason} ({}).\n", quantities.join("; "));
    }
    table
}

pub(crate) fn targets(verdicts: &[Verdict], ours: &Results) -> String {
    let mut table =
        String::from("| target for pause | | measured | of the limit | |\n|---|---|---:|---:|---|\n");
    for verdict in verdicts {
        let measured = match ours.get(verdict.quantity) {
            Ok(measured) => number(measured, verdict.quantity.decimals()),
            Err(_) => "–".into(),
        };
        let share = verdict.share.map_or("–".into(), |share| format!("{share:.3}"));
        let met = if verdict.met { "met" } else { "**missed**" };
        let cells = [verdict.quantity.name().into(), verdict.target.clone(), measured, share, met.into()];
        push_line(&mut table, cells);
    }
    table
}

/// With a comma between thousands.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let digits = format!("{value:.decimals$}");
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (digits.as_str(), String::new()),
    };
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &fraction
}
