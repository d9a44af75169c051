//! What can be seen of the program without making it PID 1.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::{CountError, ROOM_ARGUMENT, Status};

use crate::Named;
use crate::built::shipped;
use crate::signals::{others, send};
use pid1_harness::eventually;

pub(crate) const TESTS: [Named; 9] = [
    ("the_binary_is_small", the_binary_is_small),
    ("version_is_printed", version_is_printed),
    ("it_warns_when_it_is_not_pid_1", it_warns_when_it_is_not_pid_1),
    ("option_without_path_is_reported", option_without_path_is_reported),
    ("no_other_signal_ends_it_where_it_is_not_pid_1", no_other_signal_ends_it),
    ("control_signals_end_a_program_that_ignores_none", control_signals_end_another_program),
    ("it_ends_with_1_where_signals_cannot_be_blocked", || {
        it_ends_where_refused("exec-without-rt_sigprocmask", 1, "pause: signals cannot be blocked\n")
    }),
    ("it_ends_with_42_where_it_may_not_wait_for_signals", || {
        it_ends_where_refused(
            "exec-without-rt_sigtimedwait",
            42,
            "pause: the kernel does not let it wait for signals\n",
        )
    }),
    ("all_signals_but_its_own_are_ignored", all_signals_but_its_own_are_ignored),
];

/// A binary larger than this fails the suite: every node of a cluster holds it, and every pod maps it.
const SIZE_MAX: u64 = 10_000;

fn the_binary_is_small() -> Result<()> {
    let size = std::fs::metadata(shipped()?)?.size();
    println!("pause: {size} bytes");
    ensure!(size <= SIZE_MAX, "{size} bytes, more than {SIZE_MAX}");
    Ok(())
}

fn version_is_printed() -> Result<()> {
    for option in ["-v", "-V", "--version"] {
        let printed = Command::new(shipped()?).arg(option).output()?;
        ensure!(printed.status.success(), "{option}: {}", printed.status);
        let expected = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");
        ensure!(
            printed.stdout == expected.as_bytes(),
            "{option}: {:?}",
            String::from_utf8_lossy(&printed.stdout)
        );
    }
    Ok(())
}

/// Pause as an ordinary process, which it is in a pod with `hostPID: true`; ended by SIGTERM when it shows its status.
fn not_pid_1(arguments: &[&str], look: impl FnOnce(Pid) -> Result<()>) -> Result<String> {
    let mut command = Command::new(shipped()?);
    let pause = command.arg(ROOM_ARGUMENT).args(arguments).stderr(Stdio::piped()).spawn()?;
    let looked = eventually(|| {
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", pause.id()))?;
        let status = Status::from_cmdline(&cmdline)?;
        ensure!(status.error == Some(CountError::NotInit) && status.processes == 0, "{status:?}");
        Ok(())
    });
    let pid = Pid::from_raw(pause.id().try_into()?);
    let looked = looked.and_then(|()| look(pid));
    // Whether or not it handles the first one, it ends.
    let ended = kill(pid, Signal::SIGTERM);
    let gone = eventually(|| {
        ensure!(std::fs::read(format!("/proc/{pid}/cmdline"))?.is_empty(), "it does not end");
        Ok(())
    });
    if gone.is_err() {
        kill(pid, Signal::SIGKILL)?;
    }
    let output = pause.wait_with_output()?;
    looked?;
    ended?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(String::from_utf8(output.stderr)?)
}

fn it_warns_when_it_is_not_pid_1() -> Result<()> {
    let stderr = not_pid_1(&[], |_| Ok(()))?;
    ensure!(stderr.starts_with("Warning: pause should be the first process\n"), "it wrote {stderr:?}");
    Ok(())
}

fn option_without_path_is_reported() -> Result<()> {
    let stands_alone: [&[&str]; 4] =
        [&["--status-file"], &["--status-file="], &["--status-file", "status"], &["--status-file", "-v"]];
    for arguments in stands_alone {
        let stderr = not_pid_1(arguments, |_| Ok(()))?;
        ensure!(
            stderr.contains("--status-file needs an absolute path"),
            "{arguments:?}: it wrote {stderr:?}"
        );
    }
    Ok(())
}

/// In a pod with `hostPID: true` no rule of the kernel's keeps signals from it, as one does from a namespace's PID 1.
fn no_other_signal_ends_it() -> Result<()> {
    not_pid_1(&[], |pid| {
        for number in others() {
            send(number, pid)?;
        }
        // It would be gone, or stopped.
        let before = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        ensure!(Status::from_cmdline(&before).is_ok(), "it shows {:?}", before.escape_ascii().to_string());
        Ok(())
    })
    .map(drop)
}

fn control_signals_end_another_program() -> Result<()> {
    // None that a shell or nohup(1) has its programs ignore.
    for number in [6, 10, 40, 64] {
        let mut sleep = Command::new("sleep").arg("60").spawn()?;
        send(number, Pid::from_raw(sleep.id().try_into()?))?;
        let status = sleep.wait()?;
        ensure!(status.signal() == Some(number), "signal {number}: sleep ended with {status}");
    }
    Ok(())
}

fn all_signals_but_its_own_are_ignored() -> Result<()> {
    not_pid_1(&[], |pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let set = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok(u64::from_str_radix(line.trim(), 16)?)
        };
        let handled = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD];
        let handled = handled.into_iter().fold(0, |set, signal| set | 1_u64 << (signal as i32 - 1));
        let beyond = [Signal::SIGKILL, Signal::SIGSTOP];
        let beyond = beyond.into_iter().fold(0, |set, signal| set | 1_u64 << (signal as i32 - 1));
        let ignored = set("SigIgn:")?;
        ensure!(ignored == !(handled | beyond), "{ignored:x} are ignored");
        Ok(())
    })
    .map(drop)
}

/// It reports the refusal and exits, and does not keep a core busy with retries.
fn it_ends_where_refused(role: &str, code: i32, stderr_end: &str) -> Result<()> {
    let mut helper = Command::new(std::env::current_exe()?);
    let ended = helper.args([crate::helper::ROLE, role]).arg(shipped()?).output()?;
    let stderr = String::from_utf8(ended.stderr)?;
    ensure!(ended.status.code() == Some(code), "it ended with {} and stderr_end {stderr:?}", ended.status);
    ensure!(stderr.ends_with(stderr_end), "it stderr_end {stderr:?}");
    Ok(())
}
