//! The fenced blocks of the project's pages, and what the mark above each says is to be done with it (docs/development/contributing.md has the
//! marks). Nothing is run here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A comment above a block by which another test finds it: docs/reference/status-file.md has them.
const OF_ANOTHER_TEST: [&str; 1] = ["checksum in shell"];

/// A block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// Page and line, for people.
    pub place: String,
    /// What to do with them.
    pub mark: Mark,
    /// As they stand there.
    pub text: String,
}

/// What to do with a block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Run them on the node, as its administrator.
    Run,
    /// Run them in the shell of a pod.
    RunInThePod,
    /// Do not, for this reason, or since another test does.
    NotRun(String),
}

/// README.md and the pages of docs/, from the root of the project, in the order of their names.
///
/// # Errors
///
/// When a folder cannot be read.
pub fn pages(project: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(project.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
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
/// When a block of commands has no mark, or any block has no language: then nobody knows whether it should have one.
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
                "" => bail!("{place}: a block without a language (`text`, where there is none)"),
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
    fn each_mark_is_understood() {
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
    fn a_block_without_a_mark_a_reason_or_a_language_is_an_error() {
        for (page, says) in [
            ("text\n```sh\na\n```\n", "below \"text\""),
            ("<!-- run -->\n\n```sh\na\n```\n", "not below a mark"),
            ("<!-- not run -->\n```sh\na\n```\n", "is no mark"),
            ("<!-- runs -->\n```sh\na\n```\n", "is no mark"),
            ("```\na\n```\n", "without a language"),
        ] {
            let error = format!("{:#}", of(page).unwrap_err());
            assert!(error.starts_with("page.md:") && error.contains(says), "{page}: {error}");
        }
    }
}
