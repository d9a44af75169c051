//! The process that outlives a node's owner and cleans up: it ends the node when the owner exits for any reason, on a signal, or when the
//! node's PID 1 exits. If the guard itself is killed, only files and empty cgroups may remain, which the next guard removes.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cgroups;
use super::plan::{Layout, Plan, nodes};
use crate::host::lock::Lock;
use crate::host::retry;

/// PID 1 exits at once; a kernel with much to tear down takes longer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of checks whether the node has ended.
const POLL: Duration = Duration::from_millis(20);

/// Timeout of the removal of a node.
const REMOVAL: Duration = Duration::from_secs(120);

/// Runs a node to its end. The output of its PID 1 goes to our stdout.
pub(super) fn run(plan: &Plan, init: &str) -> Result<()> {
    let layout = plan.layout();
    let _lock = lock(&layout)?;
    sweep(&plan.cache)?;
    clean(&layout)?;
    let outcome = guard(plan, init, &layout);
    clean(&layout)?;
    outcome
}

/// Locks the name of a node. While another guard holds the lock, the file `init.pid` shows that its node runs; without the file the
/// node is starting or being removed.
fn lock(layout: &Layout) -> Result<Lock> {
    let attempt = || match Lock::attempt(&layout.lock()) {
        Ok(None) if !layout.init_pid().exists() => bail!("another guard is starting or removing it"),
        outcome => Ok(outcome),
    };
    let lock = retry::every(POLL, &format!("the name {} is free", layout.name), REMOVAL, attempt)??;
    lock.with_context(|| format!("a node named {} is running already", layout.name))
}

fn guard(plan: &Plan, init: &str, layout: &Layout) -> Result<()> {
    let (ended, reasons) = channel();
    watch_signals(ended.clone())?;
    if plan.tied {
        watch_owner(ended.clone());
    }
    cgroups::create(&layout.cgroup())?;
    fs::create_dir_all(layout.logs())?;
    // Private keys are in it.
    fs::set_permissions(&layout.state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::write(layout.guard_pid(), std::process::id().to_string())?;
    let node = Running::watch(start(plan, init)?, ended);
    if let Some(init_pid) = node.init_pid()? {
        fs::write(layout.init_pid(), init_pid.to_string())?;
        let _ = reasons.recv();
        // The node is stopped even if the files cannot be written.
        for file in [layout.ready(), layout.init_pid()] {
            let _ = fs::remove_file(file);
        }
    }
    node.stop()
}

/// `unshare` creates the namespaces, mounts the new /proc, and waits for its only child, which is PID 1 there.
fn start(plan: &Plan, init: &str) -> Result<Child> {
    Command::new("unshare")
        .args(["--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .arg(init)
        .args(plan.arguments())
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run unshare")
}

/// A running node: the pipe whose end stops it, and the thread that waits for it.
struct Running {
    pipe: Option<std::process::ChildStdin>,
    unshare: u32,
    waiting: thread::JoinHandle<()>,
}

impl Running {
    fn watch(mut node: Child, ended: Sender<()>) -> Self {
        let (pipe, unshare) = (node.stdin.take(), node.id());
        let waiting = thread::spawn(move || {
            let _ = node.wait();
            let _ = ended.send(());
        });
        Self { pipe, unshare, waiting }
    }

    /// The PID of the only child of unshare in our PID namespace; `None` if it has ended already.
    fn init_pid(&self) -> Result<Option<u32>> {
        retry::until("unshare has a child", TIMEOUT, || match child_of(self.unshare)? {
            None if !self.waiting.is_finished() => bail!("it has none"),
            child => Ok(child),
        })
    }

    /// Closing the pipe ends its PID 1, and with it every process of its namespace.
    fn stop(mut self) -> Result<()> {
        drop(self.pipe.take());
        let begun = Instant::now();
        while !self.waiting.is_finished() {
            if begun.elapsed() > TIMEOUT {
                // With --kill-child this also ends PID 1. The process is not reaped yet, so its PID is not reused.
                kill(Pid::from_raw(self.unshare.cast_signed()), Signal::SIGKILL)?;
                break;
            }
            thread::sleep(POLL);
        }
        self.waiting.join().map_err(|_| anyhow::anyhow!("waiting for the node failed"))
    }
}

fn watch_signals(ended: Sender<()>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = ended.send(());
        }
    });
    Ok(())
}

/// Our stdin is a pipe from the owner. It closes when the owner exits.
fn watch_owner(ended: Sender<()>) {
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        let _ = ended.send(());
    });
}

/// Kills a program that was started inside of a node. Our child is nsenter, which forwards no signal to it.
pub(crate) fn kill_inside(nsenter: &mut Child) {
    if let Ok(Some(program)) = child_of(nsenter.id()) {
        let _ = kill(Pid::from_raw(program.cast_signed()), Signal::SIGKILL);
    }
    let _ = nsenter.kill();
    let _ = nsenter.wait();
}

fn child_of(parent: u32) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let its_parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if its_parent.and_then(|text| text.trim().parse().ok()) == Some(parent) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Cleans up after guards that were killed.
fn sweep(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(nodes(cache))? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let layout = Layout::new(cache, &name);
        if !entry.file_type()?.is_dir() {
            continue;
        }
        // A guard that holds its lock is alive.
        if let Some(_lock) = Lock::attempt(&layout.lock())? {
            clean(&layout)?;
        }
    }
    Ok(())
}

/// Removes everything of a node that does not run, except its logs.
fn clean(layout: &Layout) -> Result<()> {
    cgroups::remove(&layout.cgroup())?;
    if !layout.state.exists() {
        return Ok(());
    }
    if layout.logs().exists() {
        let kept = layout.kept_logs();
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir_all(kept.parent().unwrap_or(&kept))?;
        fs::rename(layout.logs(), &kept).context("keeping the logs")?;
    }
    fs::remove_dir_all(&layout.state).with_context(|| format!("removing {}", layout.state.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_waits_for_removed_node_and_refuses_running_one() {
        let cache = tempfile::tempdir().unwrap();
        let layout = Layout::new(cache.path(), "one");
        let other = Lock::attempt(&layout.lock()).unwrap().unwrap();
        fs::create_dir_all(&layout.state).unwrap();
        fs::write(layout.init_pid(), "1").unwrap();
        let error = lock(&layout).unwrap_err().to_string();
        assert_eq!(error, "a node named one is running already");
        fs::remove_file(layout.init_pid()).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(&layout));
            thread::sleep(POLL * 5);
            assert!(!waiting.is_finished());
            drop(other);
            waiting.join().unwrap().unwrap();
        });
    }
}
