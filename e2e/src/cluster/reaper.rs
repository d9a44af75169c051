//! PID 1 of the node reaps all its children, so no other code in that process may wait for a child: it asks the reaper.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};

use crate::host::command;

/// The children that were started here, with their exit status.
#[derive(Default)]
pub(super) struct Reaper {
    children: Mutex<HashMap<u32, Option<ExitStatus>>>,
    ended: Condvar,
}

impl Reaper {
    /// Reaps from now on, in a thread of its own.
    pub(super) fn start() -> Arc<Self> {
        let reaper = Arc::new(Self::default());
        let reaping = Arc::clone(&reaper);
        thread::spawn(move || reaping.reap_forever());
        reaper
    }

    fn reap_forever(&self) {
        loop {
            let (pid, status) = match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::from_raw(signal as i32)),
                Ok(_) => continue,
                Err(Errno::ECHILD) => {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                }
                Err(_) => continue,
            };
            // Orphans are reaped and forgotten.
            if let Some(entry) = self.children().get_mut(&pid.as_raw().unsigned_abs()) {
                *entry = Some(status);
                self.ended.notify_all();
            }
        }
    }

    /// The lock is held until the child is registered, so that its exit is not mistaken for an orphan's.
    pub(super) fn spawn(&self, command: &mut Command) -> Result<Child> {
        let mut children = self.children();
        let child = command.spawn().with_context(|| format!("cannot run {}", command::line(command)))?;
        children.insert(child.id(), None);
        Ok(child)
    }

    /// The exit status of the child, if it has exited.
    pub(super) fn ended(&self, pid: u32) -> Option<ExitStatus> {
        self.children().get(&pid).copied().flatten()
    }

    /// `None` if the child still runs after this time.
    pub(super) fn wait(&self, pid: u32, timeout: Duration) -> Option<ExitStatus> {
        let running =
            |children: &mut HashMap<u32, Option<ExitStatus>>| matches!(children.get(&pid), Some(None));
        let waited = self.ended.wait_timeout_while(self.children(), timeout, running);
        let (mut children, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match children.get(&pid) {
            Some(None) => None,
            _ => children.remove(&pid).flatten(),
        }
    }

    /// Runs a program to its end; returns its stdout.
    pub(super) fn output(&self, command: &mut Command) -> Result<String> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let mut stderr = child.stderr.take().context("no stderr")?;
        let complaint = thread::spawn(move || {
            let mut text = vec![];
            let _ = stderr.read_to_end(&mut text);
            text
        });
        let mut stdout = vec![];
        child.stdout.take().context("no stdout")?.read_to_end(&mut stdout)?;
        let stderr = complaint.join().unwrap_or_default();
        let status = self.wait(child.id(), Duration::from_secs(600)).context("still running")?;
        command::checked(command, &Output { status, stdout, stderr })
    }

    fn children(&self) -> MutexGuard<'_, HashMap<u32, Option<ExitStatus>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
