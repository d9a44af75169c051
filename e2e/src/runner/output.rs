//! What the runners of tests print, libtest's and libtest-mimic's.

/// What one runner sums up in its last line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut counts = Self::default();
        let (_, counted) = line.strip_prefix("test result: ")?.split_once(". ")?;
        for part in counted.split("; ") {
            let (number, what) = part.split_once(' ')?;
            match what {
                "passed" => counts.passed = number.parse().ok()?,
                "failed" => counts.failed = number.parse().ok()?,
                "ignored" => counts.ignored = number.parse().ok()?,
                _ => {}
            }
        }
        Some(counts)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The test that a line says has failed: `test NAME ... FAILED`.
pub(super) fn failed_test(line: &str) -> Option<&str> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    (outcome == "FAILED").then(|| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners_are_parsed() {
        let libtest =
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(Counts::parse(libtest), Some(Counts { passed: 3, failed: 0, ignored: 1 }));
        let mimic = "test result: FAILED. 26 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 33.02s";
        assert_eq!(Counts::parse(mimic), Some(Counts { passed: 26, failed: 1, ignored: 0 }));
        assert_eq!(Counts::parse("test a ... ok"), None);
    }

    #[test]
    fn failed_tests_are_recognized() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 1 passed"), None);
    }
}
