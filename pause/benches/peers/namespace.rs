//! A PID namespace with a contender as its PID 1. Nothing else is in it unless the measurement puts it there.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;
use pid1_harness::{Namespace, eventually, executable};

/// Longer than valgrind or a dynamic loader pauses while it starts; shorter than the period of any contender's wake-ups.
const SETTLED: Duration = Duration::from_millis(150);

/// Starts `command` as PID 1, and waits until it sleeps: before, a signal might find it without its signal mask.
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

/// Each time PID 1 slept is a voluntary context switch, and was ended by a wake-up (proc_pid_status(5)).
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
