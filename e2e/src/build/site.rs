//! `cargo docs`: the documentation as a site with search, made by mdBook. The site has the pages of docs/ and each file that they
//! link to. mdBook gets copies: nothing is written into docs/.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use super::cargo::project;
use super::cargo_tools::MDBOOK;
use crate::host::command;
use anyhow::{Context as _, Result, ensure};
use clap::Parser;

const SUMMARY: &str = "docs/SUMMARY.md";
/// Settings of mdBook and what they name.
const SETTINGS: [&str; 2] = ["book.toml", "site.css"];
/// Where the site has files from outside of docs/.
const OUTSIDE: &str = "project";

/// Builds the documentation as a site into target/site, and serves it on this machine until Ctrl-C.
#[derive(Parser)]
#[command(bin_name = "cargo docs --")]
pub struct CommandLine {
    /// Only builds the site, into this directory; it must be empty, or not exist yet
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// The port to serve at
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

/// Builds the site, and serves it unless a directory is named.
///
/// # Errors
///
/// When mdBook cannot be built, a link has no target, the directory is in use or the port is.
pub fn run(CommandLine { output, port }: &CommandLine) -> Result<ExitCode> {
    let target = project().canonicalize()?.join("target");
    let book = target.join("site-pages");
    if let Some(output) = output {
        let is_used = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
        ensure!(!is_used, "{} is not empty; name another directory", output.display());
        build(&book, &std::path::absolute(output)?)?;
        println!("{}", output.join("index.html").display());
        return Ok(ExitCode::SUCCESS);
    }
    stage(&project(), &book)?;
    let mut mdbook = MDBOOK.command()?;
    mdbook.arg("serve").arg("--dest-dir").arg(target.join("site")).arg(&book);
    println!("http://127.0.0.1:{port}/ (Ctrl-C ends it)");
    let status = mdbook.args(["--hostname", "127.0.0.1", "--port", &port.to_string()]).status();
    let status = status.context("cannot run mdbook")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the site from copies in `book`. What both directories had is removed.
///
/// # Errors
///
/// When mdBook cannot be built, or a link has no target.
pub fn build(book: &Path, site: &Path) -> Result<()> {
    stage(&project(), book)?;
    command::output(MDBOOK.command()?.arg("build").arg("--dest-dir").arg(site).arg(book)).map(drop)
}

/// Whether mdBook is there or can be built, and the reason if not.
///
/// # Errors
///
/// When it cannot.
pub fn prepare() -> Result<()> {
    MDBOOK.command().map(drop)
}

/// Copies the settings, the pages of the summary and each file that they link to. Linked pages that the summary lacks are added to it,
/// since mdBook renders no others.
fn stage(project: &Path, book: &Path) -> Result<()> {
    if book.exists() {
        fs::remove_dir_all(book).with_context(|| format!("removing {}", book.display()))?;
    }
    let pages = book.join("src");
    fs::create_dir_all(&pages)?;
    for name in SETTINGS {
        fs::copy(project.join("docs").join(name), book.join(name)).context(name)?;
    }
    let (mut summary, mut files) = moved(project, Path::new(SUMMARY))?;
    let listed = files.len();
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        let copy = pages.join(place(&file));
        fs::create_dir_all(copy.parent().context("a file without a directory")?)?;
        if is_page(&file) {
            let (text, links) = moved(project, &file)?;
            fs::write(copy, text)?;
            for link in links {
                if !files.contains(&link) {
                    files.push(link);
                }
            }
        } else {
            fs::copy(project.join(&file), copy).with_context(|| file.display().to_string())?;
        }
        next += 1;
    }
    let added: Vec<_> = files.iter().skip(listed).filter(|file| is_page(file)).collect();
    if !added.is_empty() {
        summary.push_str("\n# Beside the code\n\n");
    }
    for page in added {
        summary.push_str(&format!("- [{}]({})\n", page.display(), place(page).display()));
    }
    fs::write(pages.join("SUMMARY.md"), summary)?;
    Ok(())
}

fn is_page(file: &Path) -> bool {
    file.extension() == Some(OsStr::new("md"))
}

/// Where the site has a file of the project: docs/ is its root. mdBook renames README.md, but not in links.
fn place(file: &Path) -> PathBuf {
    let mut place = file.strip_prefix("docs").map_or_else(|_| Path::new(OUTSIDE).join(file), Path::to_owned);
    if place.ends_with("README.md") {
        place.set_file_name("index.md");
    }
    place
}

/// A page whose links lead to where the site has their targets, and these files of the project.
fn moved(project: &Path, page: &Path) -> Result<(String, Vec<PathBuf>)> {
    let text = fs::read_to_string(project.join(page)).with_context(|| page.display().to_string())?;
    let mut parts = text.split("](");
    let mut result = parts.next().unwrap_or_default().to_owned();
    let mut files = vec![];
    for part in parts {
        result.push_str("](");
        let (target, rest) = part.split_at(part.find(')').unwrap_or_default());
        let (path, anchor) = target.split_at(target.find('#').unwrap_or(target.len()));
        if path.is_empty() || path.contains(':') {
            result.push_str(part);
            continue;
        }
        let mut file = joined(page.parent().unwrap_or(Path::new("")), path);
        if project.join(&file).is_dir() {
            file.push("README.md");
        }
        ensure!(project.join(&file).is_file(), "{}: the link {target} has no target", page.display());
        let link = relative(place(page).parent().unwrap_or(Path::new("")), &place(&file));
        result.push_str(&format!("{}{anchor}{rest}", link.display()));
        files.push(file);
    }
    Ok((result, files))
}

/// What a link in a directory leads to, from the same root, without `..`.
#[must_use]
pub fn joined(directory: &Path, link: &str) -> PathBuf {
    let mut path = directory.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// The way from a directory to a file, both from the same root.
fn relative(directory: &Path, file: &Path) -> PathBuf {
    let shared =
        directory.components().zip(file.components()).take_while(|(one, other)| one == other).count();
    let up = directory.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(file.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_where_the_site_has_the_target() {
        let root = tempfile::tempdir().unwrap();
        let project = root.path().join("project");
        for (path, text) in [
            ("docs/SUMMARY.md", "[Start](README.md)\n- [A](a/page.md)\n- [Changes](../CHANGELOG.md)\n"),
            ("docs/README.md", "[a](a/page.md#x) [b](https://example.com) [c](#d)\n"),
            ("docs/a/page.md", "[up](../README.md) [tool](../../tool/README.md) ![p](../images/p.svg)\n"),
            ("docs/images/p.svg", "<svg/>"),
            ("docs/book.toml", ""),
            ("docs/site.css", ""),
            ("CHANGELOG.md", "[a](docs/a/page.md) [tool](tool)\n"),
            ("tool/README.md", "[values](values.yaml)\n"),
            ("tool/values.yaml", "a: 1\n"),
        ] {
            fs::create_dir_all(project.join(path).parent().unwrap()).unwrap();
            fs::write(project.join(path), text).unwrap();
        }
        let book = root.path().join("book");
        stage(&project, &book).unwrap();
        let read = |path: &str| fs::read_to_string(book.join("src").join(path)).unwrap();
        assert_eq!(
            read("SUMMARY.md"),
            "[Start](index.md)\n- [A](a/page.md)\n- [Changes](project/CHANGELOG.md)\n\n# Beside the code\n\n\
             - [tool/README.md](project/tool/index.md)\n"
        );
        assert_eq!(read("index.md"), "[a](a/page.md#x) [b](https://example.com) [c](#d)\n");
        assert_eq!(
            read("a/page.md"),
            "[up](../index.md) [tool](../project/tool/index.md) ![p](../images/p.svg)\n"
        );
        assert_eq!(read("project/CHANGELOG.md"), "[a](../a/page.md) [tool](tool/index.md)\n");
        assert_eq!(read("project/tool/values.yaml"), "a: 1\n");

        fs::remove_file(project.join("tool/values.yaml")).unwrap();
        let error = stage(&project, &book).unwrap_err().to_string();
        assert_eq!(error, "tool/README.md: the link values.yaml has no target");
    }
}
