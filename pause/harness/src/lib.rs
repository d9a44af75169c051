//! For tests and benchmarks: starts any program as PID 1 of a PID namespace, and waits with a time limit.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;

/// Bounds each wait; it measures nothing.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// Retries until an attempt succeeds, for three minutes at most.
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
    /// Starts a command as PID 1 and waits until it is executed and ready. Signals that a shell lets its background jobs ignore, and
    /// nohup(1) its command, have their default again: an init would pass them on. The kernel ends the namespace when the calling
    /// thread ends (PR_SET_PDEATHSIG(2const)).
    ///
    /// # Errors
    ///
    /// When PID 1 ends before, or is not ready within three minutes.
    pub fn start(command: &[impl AsRef<OsStr>], is_ready: impl Fn(&Self) -> Result<()>) -> Result<Self> {
        let mut unshare = Command::new("setpriv");
        unshare.args(["--pdeathsig", "KILL", "env", "--default-signal"]);
        unshare.args(["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--"]).args(command);
        unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let unshare = unshare.spawn().context("cannot run setpriv")?;
        let mut namespace = Self { pid: Pid::from_raw(0), unshare };
        eventually(|| {
            if let Some(status) = namespace.unshare.try_wait()? {
                return Ok(Err(anyhow!("PID 1 has ended: {status} {:?}", namespace.stderr()?)));
            }
            namespace.pid = only_child(namespace.unshare.id())?;
            let is_forked = executable(namespace.pid)? == executable(namespace.unshare.id())?;
            ensure!(!is_forked, "unshare has not executed the command yet");
            is_ready(&namespace).map(Ok)
        })??;
        Ok(namespace)
    }

    /// A file of PID 1 in /proc.
    #[must_use]
    pub fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid).into()
    }

    /// A command to which the words of a program are added that runs inside.
    #[must_use]
    pub fn enter(&self) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--"]).stdin(Stdio::null());
        nsenter
    }

    /// Starts a shell script inside, with a pipe as stdout. PID 1 adopts its orphans.
    ///
    /// # Errors
    ///
    /// When nsenter cannot be run.
    pub fn spawn(&self, script: &str) -> Result<Child> {
        Ok(self.enter().args(["sh", "-c", script]).stdout(Stdio::piped()).spawn()?)
    }

    /// Runs a shell script inside and returns its output.
    ///
    /// # Errors
    ///
    /// When it fails, or its output is not UTF-8.
    pub fn run(&self, script: &str) -> Result<String> {
        let Output { status, stdout, .. } = self.spawn(script)?.wait_with_output()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(String::from_utf8(stdout)?)
    }

    /// Counts the zombies inside, in the namespace's own /proc.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn zombies(&self) -> Result<usize> {
        let mut zombies = 0;
        for entry in std::fs::read_dir(self.proc("root/proc"))? {
            // An entry without this file is not a process, or has ended.
            let line = std::fs::read(entry?.path().join("stat")).unwrap_or_default();
            zombies += usize::from(Stat::parse(&line).is_some_and(|stat| stat.is_zombie()));
        }
        Ok(zombies)
    }

    /// Waits until PID 1 ends and returns its exit code and stderr.
    ///
    /// # Errors
    ///
    /// When it does not end within three minutes.
    pub fn wait(mut self) -> Result<(Option<i32>, String)> {
        let code = eventually(|| self.unshare.try_wait()?.context("PID 1 still runs"))?.code();
        Ok((code, self.stderr()?))
    }

    /// Takes PID 1's stderr, which [`Self::wait`] then cannot return.
    ///
    /// # Errors
    ///
    /// When it was taken before.
    pub fn take_stderr(&mut self) -> Result<ChildStderr> {
        self.unshare.stderr.take().context("stderr was taken before")
    }

    fn stderr(&mut self) -> Result<String> {
        Ok(std::io::read_to_string(self.take_stderr()?)?)
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

/// The file that a process executes: that of its parent until execve(2).
///
/// # Errors
///
/// When there is no such process.
pub fn executable(pid: impl Display) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}
