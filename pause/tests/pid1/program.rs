//! What can be seen of the program without making it PID 1.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use pause_status::Status;

use crate::Named;
use crate::built::shipped;
use crate::patience::eventually;

pub(crate) const TESTS: [Named; 4] = [
    ("the_binary_is_small", the_binary_is_small),
    ("version_is_printed", version_is_printed),
    ("it_warns_when_it_is_not_pid_1", it_warns_when_it_is_not_pid_1),
    ("an_option_without_its_path_is_told", an_option_without_its_path_is_told),
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
fn not_pid_1(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(shipped()?);
    let pause = command.args(arguments).stderr(Stdio::piped()).spawn()?;
    let looked = eventually(|| {
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", pause.id()))?;
        let status = Status::from_cmdline(&cmdline)?;
        ensure!(!status.init && !status.counted() && status.every == 0, "{status:?}");
        Ok(())
    });
    let ended = kill(nix::unistd::Pid::from_raw(pause.id().try_into()?), Signal::SIGTERM);
    let output = pause.wait_with_output()?;
    looked?;
    ended?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(String::from_utf8(output.stderr)?)
}

fn it_warns_when_it_is_not_pid_1() -> Result<()> {
    let stderr = not_pid_1(&[])?;
    ensure!(stderr.starts_with("Warning: pause should be the first process\n"), "it wrote {stderr:?}");
    Ok(())
}

fn an_option_without_its_path_is_told() -> Result<()> {
    for option in ["--status-file", "--status-file="] {
        let stderr = not_pid_1(&[option])?;
        ensure!(stderr.contains("--status-file needs a path"), "it wrote {stderr:?}");
    }
    Ok(())
}
