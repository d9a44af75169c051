//! A program run to its end. An error holds the command as it was and what the program said, so that a reader needs
//! no second run to see what failed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// What is shown of a log.
const TAIL_LINES: usize = 30;

/// What the program wrote to its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let ran =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(command)))?;
    checked(command, &ran)
}

/// The stdout of a program that succeeded, or an error with its stderr.
pub(crate) fn checked(command: &Command, ran: &Output) -> Result<String> {
    if !ran.status.success() {
        bail!("{}: {}\n{}", line(command), ran.status, text(&ran.stderr).trim_end());
    }
    Ok(text(&ran.stdout))
}

/// Runs a command to its end. The error has its stdout, too.
///
/// # Errors
///
/// When it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let ran = command.output().context("cannot be run")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(ran.status.success(), "{}\n{}{}", ran.status, text(&ran.stdout), text(&ran.stderr));
    Ok(())
}

/// The last lines of a log.
pub(crate) fn tail(file: &Path) -> Result<String> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
    let mut end = vec![];
    file.read_to_end(&mut end)?;
    let end = String::from_utf8_lossy(&end);
    let lines: Vec<_> = end.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

/// The first file of this name in the folders of a PATH. What std looks a program up in is our own PATH.
pub(crate) fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Folders that Debian leaves out of an unprivileged PATH, though programs that a node needs are there.
pub(crate) const ALSO: &str = ":/usr/sbin:/sbin";

/// The program in our own PATH.
pub(crate) fn find_here(program: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(ALSO);
    find(program, &path)
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("sh -c echo"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("no such thing"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot run no-such-program"), "{error:#}");
    }
}
