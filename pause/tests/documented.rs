//! docs/reference/status-file.md is a contract for other programs: these tests compare its keys, its example and its code with the library.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pause_status::{CountError, ROOM, Separator, Status};

const PAGE: &str = include_str!("../../docs/reference/status-file.md");
const MODULE: &str = include_str!("../src/status.rs");

fn main() -> ExitCode {
    let trial = |name, test: fn() -> Result<()>| Trial::test(name, move || ran(test()));
    let tests = vec![
        trial("documented_keys_are_those_that_are_written", documented_keys_are_those_that_are_written),
        trial("documented_example_is_a_status", documented_example_is_a_status),
        trial("checksum_in_shell_is_right", checksum_in_shell_is_right),
        Trial::ignorable_test("documented_python_reader_reads", || {
            match Command::new("python3").arg("--version").output() {
                Err(error) => Ok(Completion::ignored_with(format!("python3 does not run: {error}"))),
                Ok(_) => ran(documented_python_reader_reads()).map(|()| Completion::Completed),
            }
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn ran(outcome: Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| format!("{error:#}").into())
}

fn documented_keys_are_those_that_are_written() -> Result<()> {
    let mut room = [0; ROOM];
    let error = Some(CountError::NoProc);
    let len = Status { version: "0", unreadable: 1, error, ..Status::default() }
        .encode(Separator::Newline, &mut room);
    let text = std::str::from_utf8(&room[..len])?;
    let written: Vec<_> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let on_the_page = keys(PAGE, "| `");
    ensure!(on_the_page == written, "documented {on_the_page:?}, written {written:?}");
    let in_the_module = keys(MODULE, "//! | `");
    ensure!(in_the_module == written, "src/status.rs has {in_the_module:?}, written {written:?}");
    Ok(())
}

/// The first column of the table whose head begins with `key`, of the rows that begin so.
fn keys<'a>(text: &'a str, row: &str) -> Vec<&'a str> {
    let (_, table) = text.split_once("| key |").unwrap_or_default();
    let rows = table.lines().skip(2).map_while(|line| line.strip_prefix(row));
    rows.filter_map(|rest| Some(rest.split_once('`')?.0)).collect()
}

/// The fenced block below the comment.
fn block(comment: &str) -> Result<&'static str> {
    let (_, rest) = PAGE.split_once(&format!("<!-- {comment} -->\n```")).context("the page lacks it")?;
    let (_language, rest) = rest.split_once('\n').context("it has no line")?;
    Ok(rest.split_once("```").context("it has no end")?.0)
}

/// The example as the kernel shows it.
fn example() -> Result<Vec<u8>> {
    Ok(block("example")?.replace('\n', "\0").into_bytes())
}

fn documented_example_is_a_status() -> Result<()> {
    let cmdline = example()?;
    let status = Status::from_cmdline(&cmdline)?;
    ensure!((status.zombies, status.reaped, status.version) == (1, 51, "0.1.0"), "{status:?}");
    let mut room = [0; ROOM];
    let len = status.encode(Separator::Nul, &mut room);
    ensure!(
        cmdline.ends_with(&room[..len]),
        "pause would write {:?}",
        room[..len].escape_ascii().to_string()
    );
    Ok(())
}

/// Runs the documented code on the example instead of on a live pause.
fn run(interpreter: &str, code: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let path = |name| folder.path().join(name);
    std::fs::write(path("cmdline"), [&example()?[..], &[0; 40], b"--status-file\0/run/status\0"].concat())?;
    let text = |path: &Path| path.to_str().map(String::from).context("a path in UTF-8");
    let code = code.replace("/proc/1/cmdline", &text(&path("cmdline"))?);
    let code = code.replace("/tmp/status", &text(&path("copy"))?);
    let output = Command::new(interpreter).arg("-c").arg(code).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn checksum_in_shell_is_right() -> Result<()> {
    let printed = run("sh", block("checksum in shell")?)?;
    ensure!(printed == "218f0780\n218f0780\n", "it printed {printed:?}");
    Ok(())
}

fn documented_python_reader_reads() -> Result<()> {
    let code = block("reader in Python")?;
    let printed = run("python3", code)?;
    ensure!(
        printed.contains("'reaped': '51'") && printed.contains("'format': '1'"),
        "it printed {printed:?}"
    );
    let refused = run("python3", &format!("import os\n{}", code.replace("2166136261", "2166136262")));
    ensure!(refused.is_err(), "with a wrong checksum it printed {refused:?}");
    Ok(())
}
