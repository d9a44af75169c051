//! A PID namespace with a contender as its PID 1. Nothing else is in it unless the measurement puts it there, and it
//! ends with this value, or with this program if that is killed.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;

use pid1_harness::within;

/// Whatever a contender is asked to do, it has done by then or it will not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than valgrind or a dynamic loader pauses while it starts; shorter than the rhythm of any contender.
const A_WHILE: Duration = Duration::from_millis(150);

pub(crate) struct Namespace(pid1_harness::Namespace);

impl Namespace {
    /// Starts `command` as PID 1, and waits until it sleeps: before, a signal might find it without its signal mask.
    pub(crate) fn start(command: &[OsString]) -> Result<Self> {
        let mut unshare = pid1_harness::Namespace::command();
        unshare.stderr(Stdio::null()).args(command);
        let started = pid1_harness::Namespace::start(end_with_us(&mut unshare), |pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline"))?;
            ensure!(!words.is_empty() && !words.starts_with(b"unshare\0"), "it is still unshare");
            Ok(())
        });
        let mut namespace = Self(started.with_context(|| format!("starting {command:?} as PID 1"))?);
        namespace.settled().with_context(|| format!("{command:?} as PID 1"))?;
        Ok(namespace)
    }

    /// PID 1, as seen from outside.
    pub(crate) fn pid(&self) -> Pid {
        self.0.pid
    }

    /// Waits until PID 1 has slept for a while, and the command that it may run is executed.
    fn settled(&mut self) -> Result<()> {
        self.0.while_running(|namespace| {
            let woken = asleep(namespace)?;
            std::thread::sleep(A_WHILE);
            // A process that sleeps, and was not woken since it slept before, slept all the time.
            ensure!(asleep(namespace)? == woken, "it woke up");
            Ok(())
        })
    }

    /// Each time PID 1 slept is a voluntary context switch, and was ended by a wake-up (proc_pid_status(5)).
    pub(crate) fn times_woken(&self) -> Result<u64> {
        times_woken(&self.0)
    }

    /// The path of one of PID 1's files in /proc.
    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        self.0.proc(file)
    }

    /// A command that will run `program` inside.
    pub(crate) fn enter(&self, program: OsString) -> Command {
        let mut nsenter = self.0.enter();
        end_with_us(nsenter.arg(program));
        nsenter
    }

    /// Sends PID 1 a signal and waits until its state is one of `states` (proc_pid_stat(5)).
    pub(crate) fn signal_until(&self, signal: Signal, states: &[u8]) -> Result<()> {
        kill(self.0.pid, signal)?;
        within(PATIENCE, || {
            let state = state(&self.0)?;
            ensure!(states.contains(&state), "PID 1 is in state {}", char::from(state));
            Ok(())
        })
    }

    /// Asks PID 1 to end, as a container runtime does, and waits for it.
    pub(crate) fn end(self) -> Result<()> {
        kill(self.0.pid, Signal::SIGTERM)?;
        self.0.ended().context("SIGTERM did not end it").map(drop)
    }
}

/// How often PID 1 was woken before it fell asleep; fails while it is awake, or about to execute its command.
fn asleep(namespace: &pid1_harness::Namespace) -> Result<u64> {
    ensure!(state(namespace)? == b'S', "it does not sleep");
    let pid = namespace.pid.to_string();
    let children = std::fs::read_to_string(namespace.proc(&format!("task/{pid}/children")))?;
    for child in children.split_whitespace() {
        ensure!(executed(child)? != executed(&pid)?, "its command is not executed");
    }
    times_woken(namespace)
}

fn times_woken(namespace: &pid1_harness::Namespace) -> Result<u64> {
    let status = std::fs::read_to_string(namespace.proc("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("no voluntary_ctxt_switches")?.trim().parse()?)
}

/// As field 3 of proc_pid_stat(5) has it.
fn state(namespace: &pid1_harness::Namespace) -> Result<u8> {
    let line = std::fs::read(namespace.proc("stat"))?;
    Ok(Stat::parse(&line).context("a line of /proc/<pid>/stat")?.state)
}

fn executed(pid: &str) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// Has the kernel end the command if this program ends first, whatever ends it.
pub(crate) fn end_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) }
}

/// Waits for a child that is about to end; kills it if it doesn't.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let ended = within(PATIENCE, || child.try_wait()?.context("it still runs"));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
        bail!("it did not end in {} s", PATIENCE.as_secs());
    }
    ended
}
