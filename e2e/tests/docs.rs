//! The docs as text: every block of commands has a mark that says whether it is run, every link has a target, and every page is in the
//! summary and short enough. The scenario `documented_commands_work` runs the commands, and `site.rs` checks the site.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use e2e::doc_blocks::{self, Mark};
use e2e::platforms::Tested;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(page: &Path) -> Result<String> {
    fs::read_to_string(project().join(page)).with_context(|| page.display().to_string())
}

#[test]
fn command_blocks_have_a_mark() {
    let mut run = 0;
    for page in doc_blocks::pages(&project()).unwrap() {
        for commands in doc_blocks::commands(&page, &read(&page).unwrap()).unwrap() {
            run += usize::from(!matches!(commands.mark, Mark::NotRun(_)));
        }
    }
    assert!(run > 10, "{run} blocks are run");
}

#[test]
fn links_have_a_target() {
    let mut broken = vec![];
    let mut links = 0;
    for page in doc_blocks::pages(&project()).unwrap() {
        for target in targets(&read(&page).unwrap()) {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = project().join(&path).exists();
            if !there || (!anchor.is_empty() && !anchors(&read(&path).unwrap()).contains(anchor)) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 30, "{links} links");
    assert!(broken.is_empty(), "without a target: {broken:#?}");
}

#[test]
fn pages_are_in_the_summary() {
    let summary = Path::new("docs/SUMMARY.md");
    let listed: BTreeSet<_> = targets(&read(summary).unwrap())
        .iter()
        .map(|target| Path::new("docs").join(target))
        .filter(|page| !page.starts_with("docs/.."))
        .collect();
    let pages = doc_blocks::pages(&project()).unwrap();
    let pages: BTreeSet<_> =
        pages.into_iter().filter(|page| page.starts_with("docs") && page != summary).collect();
    let difference: Vec<_> = pages.symmetric_difference(&listed).collect();
    assert!(difference.is_empty(), "either not in docs/SUMMARY.md or not there: {difference:#?}");
}

/// A page answers one question. What is looked up may be longer.
#[test]
fn pages_outside_of_reference_have_at_most_1200_words() {
    let mut long = vec![];
    for page in doc_blocks::pages(&project()).unwrap() {
        let words = words(&read(&page).unwrap());
        if words > 1200 && !page.starts_with("docs/reference") {
            long.push(format!("{}: {words} words", page.display()));
        }
    }
    assert!(long.is_empty(), "too long: {long:#?}");
}

#[test]
fn words_of_code_blocks_and_marks_do_not_count() {
    let page = "# One two\n<!-- run -->\n```sh\na b\n```\n\n| three | `four` |\n| --- | --- |\n- five\n  ```text\n  c\n  ```\n[six](x.md) - seven.\n";
    assert_eq!(words(page), 7);
}

/// `cargo generate` cannot know what the scenarios run on.
#[test]
fn tested_platforms_are_those_of_the_scenarios() {
    let page = read(Path::new("docs/install/compatibility.md")).unwrap();
    let tested = e2e::platforms::tested().unwrap();
    let expected: Vec<_> = tested.iter().map(Tested::line).collect();
    let lines: Vec<_> = page.lines().filter(|line| line.contains("| tested by us |")).collect();
    assert_eq!(lines, expected, "docs/install/compatibility.md must have:\n{}", expected.join("\n"));
    let sources: String = ["e2e/tests/scenarios/lifecycle", "e2e/tests/scenarios/real_node", "e2e/src/demo"]
        .iter()
        .flat_map(|directory| fs::read_dir(project().join(directory)).unwrap())
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    for scenario in tested.iter().flat_map(|tested| tested.scenarios) {
        assert!(sources.contains(&format!("\"{scenario}\"")), "there is no scenario {scenario}");
    }
}

/// The number of words of a page without its code blocks.
fn words(text: &str) -> usize {
    let mut is_code = false;
    let mut count = 0;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code && !line.starts_with("<!--") {
            count += line.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
        }
    }
    count
}

/// What a page links to within the project.
fn targets(text: &str) -> Vec<String> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    ends.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// The headings of a page as links name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            words.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
        })
        .collect()
}
