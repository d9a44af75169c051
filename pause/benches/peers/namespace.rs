//! A PID namespace with a contender as its PID 1. It has no other process but those that a measurement starts in it.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;
use pid1_harness::{Namespace, eventually, executable};

/// Longer than valgrind or a dynamic loader pauses while it starts; shorter than the period of any contender's wake-ups.
const SETTLED: Duration = Duration::from_millis(150);

/// Starts `command` as PID 1, and waits until it sleeps: before, it might not have set its signal mask.
pub(crate) fn start(command: &[OsString]) -> Result<Namespace> {
    let started = Namespace::start(command, |namespace| {
        let woken = asleep(namespace)?;
        std::thread::sleep(SETTLED);
        // A process that sleeps, and was not woken since it slept before, slept all the time.
        ensure!(asleep(namespace)? == woken, "PID 1 woke up");
        Ok(())
    });
    started.with_context(|| format!("{command:?} as PID 1"))
}

/// How often PID 1 was woken before it fell asleep; fails while it is awake, or about to execute its command.
fn asleep(namespace: &Namespace) -> Result<u64> {
    ensure!(state(namespace.pid)? == b'S', "PID 1 does not sleep");
    let children = std::fs::read_to_string(namespace.proc(&format!("task/{}/children", namespace.pid)))?;
    for child in children.split_whitespace() {
        ensure!(executable(child)? != executable(namespace.pid)?, "its command is not executed");
    }
    times_woken(namespace)
}

/// Each sleep of PID 1 is a voluntary context switch, and was ended by a wake-up (proc_pid_status(5)).
pub(crate) fn times_woken(namespace: &Namespace) -> Result<u64> {
    let status = std::fs::read_to_string(namespace.proc("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("no voluntary_ctxt_switches")?.trim().parse()?)
}

/// Field 3 of proc_pid_stat(5).
pub(crate) fn state(pid: Pid) -> Result<u8> {
    let line = std::fs::read(format!("/proc/{pid}/stat"))?;
    Ok(Stat::parse(&line).context("a line of /proc/<pid>/stat")?.state)
}

/// Stops PID 1 (SIGSTOP), and waits until it is stopped.
pub(crate) fn stop(namespace: &Namespace) -> Result<()> {
    kill(namespace.pid, Signal::SIGSTOP)?;
    eventually(|| {
        let state = state(namespace.pid)?;
        ensure!(b"Tt".contains(&state), "PID 1 is in state {}", char::from(state));
        Ok(())
    })
}

/// A process in a namespace. Dropping it kills the nsenter(1) that waits for it, and the namespace's end the process.
pub(crate) struct Inside {
    nsenter: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Inside {
    pub(crate) fn start(namespace: &Namespace, command: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut nsenter = namespace.enter();
        nsenter.args(command).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut nsenter = nsenter.spawn().context("running nsenter")?;
        let input = nsenter.stdin.take().context("its stdin")?;
        let output = BufReader::new(nsenter.stdout.take().context("its stdout")?);
        Ok(Self { nsenter, input, output })
    }

    pub(crate) fn write_line(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    pub(crate) fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for this line.
    pub(crate) fn expect_line(&mut self, expected: &str) -> Result<()> {
        let line = self.read_line()?;
        ensure!(line == expected, "it wrote {line:?}, not {expected:?}");
        Ok(())
    }

    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.nsenter.wait()?)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.nsenter.kill();
        let _ = self.nsenter.wait();
    }
}
