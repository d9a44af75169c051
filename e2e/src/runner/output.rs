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

/// The names below a runner's last `failures:`. The lines `test NAME ... FAILED` are not reliable: what a test prints stands in them.
#[derive(Debug, Default)]
pub(super) struct FailureList {
    names: Option<Vec<String>>,
}

impl FailureList {
    /// Takes in the next line; the failed tests, once the list is complete.
    pub(super) fn read(&mut self, line: &str) -> Vec<String> {
        if line == "failures:" {
            // The first one is followed by what the tests said.
            self.names = Some(vec![]);
        } else if line.starts_with("test result: ") {
            return self.names.take().unwrap_or_default();
        } else if let (Some(names), Some(name)) = (&mut self.names, line.strip_prefix("    ")) {
            names.push(name.to_owned());
        }
        vec![]
    }
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
    fn failed_tests_are_those_of_the_last_list() {
        let output =
            "test a ... FAILED\n\nfailures:\n\n---- a ----\n    indented\n\n\nfailures:\n    a\n    b::c\n\n";
        let mut list = FailureList::default();
        assert!(output.lines().all(|line| list.read(line).is_empty()));
        assert_eq!(list.read("test result: FAILED. 0 passed; 2 failed"), ["a", "b::c"]);
        assert_eq!(list.read("test result: ok. 1 passed"), Vec::<String>::new());
    }
}
