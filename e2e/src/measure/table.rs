//! Results as Markdown, and whether the targets are met. A missing number meets no target.

use std::fmt::Write as _;

/// A table: the first row is its head, the first column has the names.
pub(super) fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut text = String::new();
    row(&mut text, head);
    row(&mut text, std::array::from_fn::<_, COLUMNS, _>(|column| if column == 0 { "---" } else { "---:" }));
    for cells in rows {
        row(&mut text, cells.each_ref().map(String::as_str));
    }
    text
}

fn row<'a>(text: &mut String, cells: impl IntoIterator<Item = &'a str>) {
    for cell in cells {
        let _ = write!(text, "| {cell} ");
    }
    text.push_str("|\n");
}

/// A target.
pub(super) struct Target {
    pub(super) what: String,
    /// The maximum.
    pub(super) most: f64,
    pub(super) measured: f64,
    pub(super) decimals: usize,
}

impl Target {
    pub(super) fn met(&self) -> bool {
        self.measured <= self.most
    }
}

/// The table of targets.
pub(super) fn targets(targets: &[Target]) -> String {
    let rows: Vec<_> = targets
        .iter()
        .map(|target| {
            let met = if target.met() { "met" } else { "**missed**" };
            [
                target.what.clone(),
                format!("≤ {}", number(target.most, target.decimals)),
                number(target.measured, target.decimals),
                met.to_owned(),
            ]
        })
        .collect();
    table(["target", "", "measured", ""], &rows)
}

/// With a comma between thousands.
pub(super) fn number(value: f64, decimals: usize) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(1234.5, 2), "1,234.50");
        assert_eq!(number(123.0, 0), "123");
        assert_eq!(number(0.0456, 3), "0.046");
    }

    #[test]
    fn target_is_missed_by_higher_or_missing_number() {
        let target = |measured| Target { what: "RSS".into(), most: 10.0, measured, decimals: 1 };
        assert!(target(10.0).met());
        assert!(!target(10.1).met());
        assert!(!target(f64::NAN).met());
        let text = targets(&[target(12.0)]);
        assert_eq!(text.lines().last(), Some("| RSS | ≤ 10.0 | 12.0 | **missed** |"));
    }
}
