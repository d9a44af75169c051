//! The documentation as a site: each link within it has its target, and search knows the words of the pages. Where mdBook is not in the
//! cache and cannot be built the test is reported as ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use e2e::build::site;
use e2e::trial::trial;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let missing = || site::prepare().err().map(|error| format!("no mdbook: {error:#}"));
    let tests = vec![trial("site_has_no_broken_link", missing, site_has_no_broken_link)];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn site_has_no_broken_link() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("site");
    site::build(&directory.path().join("book"), &root)?;
    let files = files(&root)?;
    let pages: BTreeMap<_, _> = files
        .iter()
        // Its links are from the root of an address that is not known.
        .filter(|file| file.extension().is_some_and(|it| it == "html") && *file != Path::new("404.html"))
        .map(|file| Ok((file.clone(), fs::read_to_string(root.join(file))?)))
        .collect::<Result<_>>()?;
    let ids: BTreeMap<_, BTreeSet<_>> =
        pages.iter().map(|(page, html)| (page, attributes(html, "id").collect())).collect();

    let mut broken = vec![];
    let mut checked = 0;
    for (page, html) in &pages {
        for link in attributes(html, "href").chain(attributes(html, "src")) {
            if link.contains(':') || link.starts_with("//") {
                continue;
            }
            checked += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let directory = page.parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() { page.clone() } else { site::joined(directory, path) };
            let has_anchor = || anchor.is_empty() || ids.get(&target).is_some_and(|ids| ids.contains(anchor));
            if !files.contains(&target) || !has_anchor() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "without a target: {broken:#?}");
    ensure!(checked > 500, "{checked} links");
    let start = fs::read_to_string(e2e::build::project_file("docs/README.md")?)?;
    let title =
        start.lines().find_map(|line| line.strip_prefix("# ")).context("docs/README.md has no title")?;
    let heading = format!(">{title}</a></h1>");
    ensure!(pages[Path::new("index.html")].contains(&heading), "index.html is not docs/README.md");

    let index = files.iter().find(|file| file.to_string_lossy().starts_with("searchindex"));
    let index = fs::read_to_string(root.join(index.context("no search index")?))?;
    for word in ["ZombiesAccumulating", "PodReadyToStartContainers"] {
        ensure!(index.contains(word), "search does not find {word}");
    }
    Ok(())
}

/// All files below a directory, by their paths from there.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(files)
}

/// The values of an attribute, as mdBook writes it.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let values = html.split(&format!(" {name}=\"")).skip(1).collect::<Vec<_>>();
    values.into_iter().filter_map(|rest| rest.split('"').next())
}
