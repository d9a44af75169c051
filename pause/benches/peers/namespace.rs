//! A PID namespace with a contender as its PID 1. Nothing else is in it unless the measurement puts it there, and it
//! ends with this value, or with this program if that is killed.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;

use crate::patience::within;

/// Whatever a contender is asked to do, it has done by then or it will not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than valgrind or a dynamic loader pauses while it starts; shorter than the rhythm of any contender.
const A_WHILE: Duration = Duration::from_millis(150);

pub(crate) struct Namespace {
    /// Of PID 1, as seen from outside.
    pub(crate) pid: Pid,
    starter: Child,
}

impl Namespace {
    /// Starts `command` as PID 1, and waits until it sleeps: before, a signal might find it without its signal mask.
    pub(crate) fn start(command: &[OsString]) -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--mount-proc", "--fork", "--kill-child", "--"]).args(command);
        unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let starter = end_with_us(&mut unshare).spawn().context("starting unshare")?;
        let mut namespace = Self { pid: Pid::from_raw(0), starter };
        let starter = namespace.starter.id();
        let children = format!("/proc/{starter}/task/{starter}/children");
        namespace.pid = namespace
            .while_it_runs(|_| {
                let child = std::fs::read_to_string(&children)?;
                let child = child.trim();
                let pid = Pid::from_raw(child.parse().context("unshare has no child")?);
                ensure!(executed(child)? != executed(&starter.to_string())?, "it is still unshare");
                Ok(pid)
            })
            .with_context(|| format!("starting {command:?} as PID 1"))?;
        namespace.settled().with_context(|| format!("{command:?} as PID 1"))?;
        Ok(namespace)
    }

    /// Waits until PID 1 has slept for a while, and the command that it may run is executed.
    fn settled(&mut self) -> Result<()> {
        self.while_it_runs(|namespace| {
            let woken = namespace.asleep()?;
            std::thread::sleep(A_WHILE);
            // Whoever sleeps, and was not woken since it slept before, slept all the time.
            ensure!(namespace.asleep()? == woken, "it woke up");
            Ok(())
        })
    }

    /// How often PID 1 was woken before it fell asleep; fails while it is awake, or about to execute its command.
    fn asleep(&self) -> Result<u64> {
        ensure!(self.state()? == b'S', "it does not sleep");
        let children = std::fs::read_to_string(self.proc(&format!("task/{}/children", self.pid)))?;
        for child in children.split_whitespace() {
            ensure!(executed(child)? != executed(&self.pid.to_string())?, "its command is not executed");
        }
        self.times_woken()
    }

    /// Asks until the answer is good, PID 1 has ended, or patience has.
    fn while_it_runs<T>(&mut self, ask: impl Fn(&Self) -> Result<T>) -> Result<T> {
        within(PATIENCE, || match self.starter.try_wait()? {
            Some(status) => Ok(Err(anyhow!("it ended by itself: {status}"))),
            None => ask(self).map(Ok),
        })?
    }

    /// Each time PID 1 slept is a voluntary context switch, and was ended by a wake-up (proc_pid_status(5)).
    pub(crate) fn times_woken(&self) -> Result<u64> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.context("no voluntary_ctxt_switches")?.trim().parse()?)
    }

    /// As field 3 of proc_pid_stat(5) has it.
    fn state(&self) -> Result<u8> {
        let line = std::fs::read(self.proc("stat"))?;
        Ok(Stat::parse(&line).context("a line of /proc/<pid>/stat")?.state)
    }

    /// The path of one of PID 1's files in /proc.
    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid).into()
    }

    /// A command that will run `program` inside.
    pub(crate) fn enter(&self, program: OsString) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--"]).arg(program);
        end_with_us(&mut nsenter);
        nsenter
    }

    /// Sends PID 1 a signal and waits until its state is one of `states` (proc_pid_stat(5)).
    pub(crate) fn signal_until(&self, signal: Signal, states: &[u8]) -> Result<()> {
        kill(self.pid, signal)?;
        within(PATIENCE, || {
            let state = self.state()?;
            ensure!(states.contains(&state), "PID 1 is in state {}", char::from(state));
            Ok(())
        })
    }

    /// Asks PID 1 to end, as a container runtime does, and waits for it.
    pub(crate) fn end(mut self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM)?;
        wait(&mut self.starter).context("SIGTERM did not end it")?;
        Ok(())
    }
}

fn executed(pid: &str) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Ok(None) = self.starter.try_wait() {
            // The kernel ends whatever else is inside.
            if self.pid.as_raw() > 0 {
                let _ = kill(self.pid, Signal::SIGKILL);
            } else {
                let _ = self.starter.kill();
            }
            let _ = self.starter.wait();
        }
    }
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
