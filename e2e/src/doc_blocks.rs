//! The fenced blocks of the docs, and the mark above each, which defines how a test uses the block (docs/development/contributing.md lists
//! the marks). Nothing is run here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A comment above a block by which another test finds it: docs/reference/status-file.md has them.
const OF_ANOTHER_TEST: [&str; 1] = ["checksum in shell"];

/// A block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// Page and line, for error messages.
    pub place: String,
    /// How a test uses them.
    pub mark: Mark,
    /// The commands as the page has them.
    pub text: String,
}

/// How a test uses a block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Run them on the node, as its administrator.
    Run,
    /// Run them in the shell of a pod.
    RunInThePod,
    /// Do not run them, for this reason, or because another test runs them.
    NotRun(String),
}

/// README.md and the pages of docs/, from the root of the project, in the order of their names.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn pages(project: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut directories = vec![PathBuf::from("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(project.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The blocks of commands of a page, which are those in `sh`.
///
/// # Errors
///
/// When a block of commands has no mark, or any block has no language.
pub fn commands(page: &Path, text: &str) -> Result<Vec<Commands>> {
    let mut found = vec![];
    let mut lines = text.lines().enumerate();
    let mut above = "";
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let place = format!("{}:{}", page.display(), number + 1);
            let block: Vec<_> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim_start() != "```").collect();
            match language {
                "" => bail!("{place}: a block without a language (write `text` if it is not code)"),
                "sh" => found.push(Commands {
                    mark: mark(above).with_context(|| place.clone())?,
                    place,
                    text: block.join("\n"),
                }),
                _ => {}
            }
        }
        above = line;
    }
    Ok(found)
}

/// A command with its output, as a page shows them: a block in `console` has one or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    place: String,
    command: String,
    output: Vec<String>,
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}: $ {}\n{}", self.place, self.command, self.output.join("\n"))
    }
}

impl Sample {
    /// Whether the command printed this, numbers and ages aside, anywhere in a transcript of commands and their outputs.
    #[must_use]
    pub fn is_in(&self, transcript: &str) -> bool {
        let lines: Vec<_> = transcript.lines().chain([""]).map(without_numbers).collect();
        let expected: Vec<_> = [format!("$ {}", self.command)]
            .iter()
            .chain(&self.output)
            .map(|line| without_numbers(line))
            .collect();
        // The output must end there: a sample is complete.
        lines.windows(expected.len() + 1).any(|run| {
            let (shown, next) = run.split_at(expected.len());
            shown == expected && (next[0].is_empty() || next[0].starts_with("$ "))
        })
    }
}

/// The samples of a page.
#[must_use]
pub fn samples(page: &Path, text: &str) -> Vec<Sample> {
    let mut found: Vec<Sample> = vec![];
    let mut is_console = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            is_console = language == "console";
        } else if is_console && let Some(command) = line.strip_prefix("$ ") {
            let place = format!("{}:{}", page.display(), number + 1);
            found.push(Sample { place, command: command.to_owned(), output: vec![] });
        } else if is_console
            && !line.is_empty()
            && let Some(sample) = found.last_mut()
        {
            sample.output.push(line.to_owned());
        }
    }
    found
}

/// The words of a line, with each number replaced by 0, and each age (`14s`, `5m12s`) by `0s`.
fn without_numbers(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_age = word.starts_with(|first: char| first.is_ascii_digit())
            && word.ends_with(['s', 'm', 'h', 'd'])
            && word.chars().all(|letter| letter.is_ascii_digit() || "smhd".contains(letter));
        if is_age {
            return "0s".to_owned();
        }
        let mut plain = String::new();
        for letter in word.chars() {
            match (letter.is_ascii_digit(), plain.ends_with('0')) {
                (true, true) => {}
                (true, false) => plain.push('0'),
                (false, _) => plain.push(letter),
            }
        }
        plain
    });
    words.collect::<Vec<_>>().join(" ")
}

fn mark(above: &str) -> Result<Mark> {
    let comment = above.trim().strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
    let comment =
        comment.with_context(|| format!("a block of commands below {above:?} and not below a mark"))?;
    Ok(match comment.split_once(": ") {
        None if comment == "run" => Mark::Run,
        None if comment == "run in the pod" => Mark::RunInThePod,
        None if OF_ANOTHER_TEST.contains(&comment) => Mark::NotRun("another test runs it".to_owned()),
        Some(("not run", why)) => Mark::NotRun(why.to_owned()),
        _ => bail!("{comment:?} is no mark"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Commands>> {
        commands(Path::new("page.md"), text)
    }

    #[test]
    fn each_mark_is_parsed() {
        let page = "\
            <!-- run -->\n```sh\na\nb\n```\n\n- x\n\n  <!-- run in the pod -->\n  ```sh\n  c\n  ```\n\
            <!-- not run: no disk: none -->\n```sh\nd\n```\n```toml\ne\n```\n";
        let found: Vec<_> = of(page).unwrap().into_iter().map(|it| (it.place, it.mark, it.text)).collect();
        let expected = [
            ("page.md:2", Mark::Run, "a\nb"),
            ("page.md:10", Mark::RunInThePod, "  c"),
            ("page.md:14", Mark::NotRun("no disk: none".into()), "d"),
        ];
        assert_eq!(found, expected.map(|(place, mark, text)| (place.to_owned(), mark, text.to_owned())));
    }

    #[test]
    fn sample_is_compared_without_numbers_and_ages() {
        let page = "```console\n$ get web\nNAME   ZOMBIES   AGE\nweb    7         1m9s\n\n$ get events\nnone\n```\n```text\n$ no sample\n```\n";
        let [object, events] = &samples(Path::new("page.md"), page)[..] else { panic!("two samples") };
        let transcript = "$ get web\nNAME ZOMBIES AGE\nweb 12 44s\n\n$ get events\nnone\n";
        assert!(object.is_in(transcript) && events.is_in(transcript));
        for other in ["$ get web\nNAME ZOMBIES AGE\nweb 12 44s\nmore\n", "$ get web\nNAME ZOMBIES\n", ""] {
            assert!(!object.is_in(other), "{other}");
        }
        assert_eq!(object.to_string(), "page.md:2: $ get web\nNAME   ZOMBIES   AGE\nweb    7         1m9s\n");
    }

    #[test]
    fn block_without_mark_reason_or_language_is_refused() {
        for (page, expected) in [
            ("text\n```sh\na\n```\n", "below \"text\""),
            ("<!-- run -->\n\n```sh\na\n```\n", "not below a mark"),
            ("<!-- not run -->\n```sh\na\n```\n", "is no mark"),
            ("<!-- runs -->\n```sh\na\n```\n", "is no mark"),
            ("```\na\n```\n", "without a language"),
        ] {
            let error = format!("{:#}", of(page).unwrap_err());
            assert!(error.starts_with("page.md:") && error.contains(expected), "{page}: {error}");
        }
    }
}
