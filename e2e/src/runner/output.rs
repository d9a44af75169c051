//! Parsers of the output of test runners: libtest's and libtest-mimic's.

use std::collections::{HashMap, VecDeque};

/// The counts in the last line of a runner.
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

/// A test that failed, and the end of its output: the reason comes after the logs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) test: String,
    pub(super) output: VecDeque<String>,
}

/// Limit of lines kept of a failed test's output.
const OUTPUT_MAX: usize = 12;

/// Parses a runner's two lists `failures:`: the first has the tests' output, the second their names. The lines `test NAME ... FAILED` are
/// not reliable, because they may have a test's own output in them.
#[derive(Debug, Default)]
pub(super) struct FailureList {
    outputs: HashMap<String, VecDeque<String>>,
    /// The test whose output the next lines are.
    test: Option<String>,
    names: Option<Vec<String>>,
}

impl FailureList {
    /// Parses the next line; returns the failed tests once the list is complete.
    pub(super) fn read(&mut self, line: &str) -> Vec<Failure> {
        if line == "failures:" {
            self.names = Some(vec![]);
            self.test = None;
        } else if line.starts_with("test result: ") {
            let Self { mut outputs, names, .. } = std::mem::take(self);
            let failure = |test: String| Failure { output: outputs.remove(&test).unwrap_or_default(), test };
            return names.into_iter().flatten().map(failure).collect();
        } else if let Some(names) = &mut self.names {
            if let Some(header) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" ----")) {
                self.test = Some(header.strip_suffix(" stdout").unwrap_or(header).to_owned());
                return vec![];
            }
            names.extend(line.strip_prefix("    ").map(str::to_owned));
            if let Some(test) = self.test.clone().filter(|_| !line.is_empty()) {
                let output = self.outputs.entry(test).or_default();
                output.push_back(line.to_owned());
                if output.len() > OUTPUT_MAX {
                    output.pop_front();
                }
            }
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
        let output = "test a ... FAILED\n\nfailures:\n\n---- a ----\nwhy\n    indented\n\n---- b::c stdout ----\n\nno\n\n\nfailures:\n    a\n    b::c\n\n";
        let mut list = FailureList::default();
        assert!(output.lines().all(|line| list.read(line).is_empty()));
        let failures = list.read("test result: FAILED. 0 passed; 2 failed");
        let [a, c] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!(
            (&*a.test, &a.output.iter().map(String::as_str).collect::<Vec<_>>()[..]),
            ("a", &["why", "    indented"][..])
        );
        assert_eq!((&*c.test, &c.output[0]), ("b::c", &"no".to_owned()));
        assert_eq!(list.read("test result: ok. 1 passed"), vec![]);
    }
}
