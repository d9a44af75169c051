//! What one may ask of the test that kills sandboxes by chance, as flags of `cargo e2e`: `--kills 2000 --seed 7`. Its runner takes
//! no flags of ours, so they reach it through its environment.

use std::env::{self, VarError};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

const FLAGS: [(&str, &str); 2] = [("--kills", "SANDBOX_HEALTH_KILLS"), ("--seed", "SANDBOX_HEALTH_SEED")];

/// How many sandboxes to kill.
///
/// # Errors
///
/// When it is not a number.
pub fn kills() -> Result<Option<usize>> {
    number("SANDBOX_HEALTH_KILLS")
}

/// What chance is made from.
///
/// # Errors
///
/// When it is not a number.
pub fn seed() -> Result<Option<u64>> {
    number("SANDBOX_HEALTH_SEED")
}

fn number<T: FromStr>(variable: &str) -> Result<Option<T>> {
    match env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{variable} is {text:?}, and a number is needed"),
        },
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).with_context(|| variable.to_owned()),
    }
}

/// A command line, taken apart.
#[derive(Debug, Default)]
pub struct Arguments {
    /// What our flags are in an environment.
    pub environment: Vec<(&'static str, String)>,
    /// The words that are none of ours.
    pub rest: Vec<String>,
}

/// Takes our flags out of a command line.
///
/// # Errors
///
/// When a flag has no value.
pub fn from_arguments(words: impl IntoIterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match FLAGS.iter().find(|(flag, _)| *flag == word) {
            Some((flag, variable)) => {
                let value = words.next().with_context(|| format!("{flag} of what?"))?;
                arguments.environment.push((*variable, value));
            }
            None => arguments.rest.push(word),
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_ours_are_taken_and_others_passed_on() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let Arguments { environment, rest } =
            from_arguments(words("equal_the_kills --kills 9 --exact --seed 7")).unwrap();
        let expected = [("SANDBOX_HEALTH_KILLS", "9".to_owned()), ("SANDBOX_HEALTH_SEED", "7".to_owned())];
        assert_eq!(environment, expected);
        assert_eq!(rest, ["equal_the_kills", "--exact"]);
        from_arguments(words("--seed")).unwrap_err();
    }
}
