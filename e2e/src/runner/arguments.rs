//! The command line of `cargo e2e`. Our own flags are passed to the tests as environment variables, because test runners accept only their
//! own flags.

use std::env::{self, VarError};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use crate::build::go::KUBERNETES;

const KILLS: &str = "SANDBOX_HEALTH_KILLS";
const SEED: &str = "SANDBOX_HEALTH_SEED";
const LONG: &str = "SANDBOX_HEALTH_LONG";
const FLAGS_WITH_VALUE: [(&str, &str); 3] =
    [("--kills", KILLS), ("--kubernetes", KUBERNETES), ("--seed", SEED)];
/// The filter of a run on another Kubernetes than the newest, unless tests are named: the demo's steps, the last of which kills a pause.
const DEMO_STEPS: &str = "step_";

/// How many sandboxes the randomized restart test kills (`--kills`).
///
/// # Errors
///
/// When it is not a number.
pub fn kills() -> Result<Option<usize>> {
    number(KILLS)
}

/// The seed of the randomized restart test (`--seed`).
///
/// # Errors
///
/// When it is not a number.
pub fn seed() -> Result<Option<u64>> {
    number(SEED)
}

/// Whether this is the long run (`--long`): more repetitions of statistical tests, and scenarios that take too long for the gate.
#[must_use]
pub fn is_long() -> bool {
    env::var_os(LONG).is_some()
}

fn number<T: FromStr>(variable: &str) -> Result<Option<T>> {
    match env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{variable} must be a number, and is {text:?}"),
        },
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).with_context(|| variable.to_owned()),
    }
}

/// A parsed command line.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// Our flags, as environment variables of the tests.
    pub(super) environment: Vec<(&'static str, String)>,
    /// Arguments of the test runners.
    pub(super) runners: Vec<String>,
}

impl Arguments {
    pub(super) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if let Some((flag, variable)) = FLAGS_WITH_VALUE.iter().find(|(flag, _)| *flag == word) {
                let value = words.next().with_context(|| format!("{flag} needs a value"))?;
                arguments.environment.push((*variable, value));
            } else if word == "--long" {
                arguments.environment.push((LONG, "1".to_owned()));
            } else if word != "--" {
                arguments.runners.push(word);
            }
        }
        let is_other_kubernetes = arguments.environment.iter().any(|(name, _)| *name == KUBERNETES);
        if is_other_kubernetes && arguments.is_everything() {
            arguments.runners.push(DEMO_STEPS.to_owned());
        }
        Ok(arguments)
    }

    /// Whether all tests run.
    pub(super) fn is_everything(&self) -> bool {
        self.runners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_flags_become_variables_and_others_arguments() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let Arguments { environment, runners } =
            Arguments::parse(words("equal_the_kills -- --kills 9 --exact --long --seed 7")).unwrap();
        let expected = [(KILLS, "9"), (LONG, "1"), (SEED, "7")].map(|(name, value)| (name, value.to_owned()));
        assert_eq!(environment, expected);
        assert_eq!(runners, ["equal_the_kills", "--exact"]);
        Arguments::parse(words("--seed")).unwrap_err();
    }

    #[test]
    fn another_kubernetes_runs_demo_steps_by_default() {
        let parse = |line: &str| Arguments::parse(line.split(' ').map(str::to_owned)).unwrap();
        let steps = parse("--long --kubernetes 1.33");
        assert_eq!(
            (steps.runners, &steps.environment[1]),
            (vec![DEMO_STEPS.to_owned()], &(KUBERNETES, "1.33".to_owned()))
        );
        assert_eq!(parse("--kubernetes 1.33 zombies").runners, ["zombies"]);
    }

    #[test]
    fn own_flags_select_no_tests() {
        let is_everything = |word: &str| Arguments::parse([word.to_owned()]).unwrap().is_everything();
        assert!(is_everything("--long") && !is_everything("zombies"));
    }
}
