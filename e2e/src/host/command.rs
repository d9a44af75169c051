//! Runs programs to their end. An error has the command and the program's output, so that no second run is needed to see what failed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Number of lines shown of a log.
const TAIL_LINES: usize = 30;

/// The stdout of a program.
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

/// Runs a command to its end. The error includes its stdout.
///
/// # Errors
///
/// When it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let ran = command.output().context("the command cannot be run")?;
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

/// The first file of this name in the directories of a PATH; std searches our own PATH only.
pub(crate) fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Directories with programs that a node needs, which Debian omits from the PATH of users.
pub(crate) const EXTRA_PATH: &str = ":/usr/sbin:/sbin";

/// The path of a program in our own PATH or in [`EXTRA_PATH`].
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(EXTRA_PATH);
    find(program, &path)
}

/// The command line, for messages.
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
    fn error_has_command_and_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("sh -c echo"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("no such thing"), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot run no-such-program"), "{error:#}");
    }
}
