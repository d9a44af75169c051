//! For tests and benchmarks: a program as PID 1 of a PID namespace, and the bounded wait that goes with it. What is started, and what
//! is asked of it, is the caller's business.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;

/// Bounds each wait; it measures nothing.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Retries until an attempt succeeds, for a minute at most.
///
/// # Errors
///
/// The last attempt's.
pub fn eventually<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    within(TIMEOUT, attempt)
}

/// Retries until an attempt succeeds or the time is over.
///
/// # Errors
///
/// The last attempt's.
pub fn within<T>(time: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + time;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

/// A PID namespace. Dropping it ends its PID 1, and with that everything inside.
pub struct Namespace {
    /// PID 1, as seen from outside.
    pub pid: Pid,
    unshare: Child,
}

impl Namespace {
    /// The command to which the words of the program are added. Signals that a shell lets its background jobs ignore, and nohup(1) its
    /// command, have their default again: an init would pass them on.
    #[must_use]
    pub fn command() -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts such a command and waits until PID 1 is ready, by what `is_ready` says of it.
    ///
    /// # Errors
    ///
    /// When it ends before, or is not ready within a minute.
    pub fn start(command: &mut Command, is_ready: impl Fn(Pid) -> Result<()>) -> Result<Self> {
        let unshare = command.spawn().context("cannot run env")?;
        let mut namespace = Self { pid: Pid::from_raw(0), unshare };
        namespace.pid = namespace.while_running(|namespace| {
            let pid = only_child(namespace.unshare.id())?;
            is_ready(pid).map(|()| pid)
        })?;
        Ok(namespace)
    }

    /// Retries until an attempt succeeds, PID 1 has ended, or a minute is over.
    ///
    /// # Errors
    ///
    /// The last attempt's, or that PID 1 has ended.
    pub fn while_running<T>(&mut self, attempt: impl Fn(&Self) -> Result<T>) -> Result<T> {
        eventually(|| match self.unshare.try_wait()? {
            Some(status) => Ok(Err(anyhow!("PID 1 has ended: {status}"))),
            None => attempt(self).map(Ok),
        })?
    }

    /// A command to which the words of a program are added that runs inside.
    #[must_use]
    pub fn enter(&self) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--"]);
        nsenter
    }

    /// A file of PID 1 in /proc.
    #[must_use]
    pub fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid).into()
    }

    /// How many zombies the kernel shows inside: PID 1 sees the namespace's own /proc.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn zombies(&self) -> Result<usize> {
        let mut zombies = 0;
        for entry in std::fs::read_dir(self.proc("root/proc"))? {
            // What has no such file, or has ended, is no process.
            let line = std::fs::read(entry?.path().join("stat")).unwrap_or_default();
            zombies += usize::from(Stat::parse(&line).is_some_and(|stat| stat.is_zombie()));
        }
        Ok(zombies)
    }

    /// Waits for the end of PID 1; its exit code and what it wrote to stderr.
    ///
    /// # Errors
    ///
    /// When it does not end within a minute.
    pub fn ended(mut self) -> Result<(Option<i32>, String)> {
        let code = eventually(|| self.unshare.try_wait()?.context("it does not end"))?.code();
        let mut stderr = String::new();
        if let Some(mut pipe) = self.unshare.stderr.take() {
            pipe.read_to_string(&mut stderr)?;
        }
        Ok((code, stderr))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Ok(None) = self.unshare.try_wait() {
            if self.pid.as_raw() > 0 {
                let _ = kill(self.pid, Signal::SIGKILL);
            } else {
                let _ = self.unshare.kill();
            }
            let _ = self.unshare.wait();
        }
    }
}

/// The one child of a process of one thread.
///
/// # Errors
///
/// When it has none, or several.
pub fn only_child(parent: u32) -> Result<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(Pid::from_raw(children.trim().parse()?))
}
