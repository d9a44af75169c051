//! The processes of the node's pods as the machine's /proc shows them: what can be known of a sandbox while neither the API
//! server nor an agent is there to ask. It must find a process by its cgroup alone, for names and numbers are used again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::story::PATIENCE;
use e2e::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// A process that lives.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    /// From the boot of the machine to its start.
    pub(super) started: Duration,
    command: Vec<u8>,
    cgroup: String,
}

impl Process {
    /// Whether it belongs to the pod with this UID.
    pub(super) fn is_of(&self, pod_uid: &str) -> bool {
        self.cgroup.contains(pod_uid)
    }

    pub(super) fn is_pause(&self) -> bool {
        self.name == "pause"
    }

    /// Whether it runs the operator as this part.
    pub(super) fn is_part(&self, part: &str) -> bool {
        let mut words = self.command.split(|byte| *byte == 0);
        words.next() == Some(b"/sandbox-health") && words.next() == Some(part.as_bytes())
    }

    pub(super) fn lived(&self) -> Result<Duration> {
        Ok(since_boot()?.saturating_sub(self.started))
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("{signal} to {} of process {}", self.name, self.pid))
    }
}

/// All processes of the machine that live.
pub(super) fn all() -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end while we look at it.
        processes.extend(read(pid, &path));
    }
    Ok(processes)
}

fn read(pid: u32, path: &Path) -> Option<Process> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    // proc_pid_stat(5): field 2 is the name in brackets, 3 the state, 22 the start in clock ticks.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let ticks: u64 = fields.nth(18)?.parse().ok()?;
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Process {
        pid,
        name: name.to_owned(),
        started: Duration::from_millis(ticks * 1000 / per_second),
        command: fs::read(path.join("cmdline")).ok()?,
        cgroup: fs::read_to_string(path.join("cgroup")).ok()?,
    })
}

fn since_boot() -> Result<Duration> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    Ok(Duration::from_secs_f64(uptime.split(' ').next().unwrap_or_default().parse()?))
}

/// When the machine was booted, in seconds since the epoch.
pub(super) fn booted_at() -> Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.saturating_sub(since_boot()?).as_secs_f64())
}

/// The pause of a pod. A sandbox ends before the next one starts, so there is one at most.
pub(super) fn pause_of_pod(pod_uid: &str) -> Result<Process> {
    let found = all()?.into_iter().find(|process| process.is_pause() && process.is_of(pod_uid));
    found.with_context(|| format!("no pause of the pod {pod_uid} runs"))
}

/// Kills a pod's pause and waits for the kubelet to start another, without asking the API; that one.
pub(super) fn replace_pause(pod_uid: &str) -> Result<Process> {
    let before = pause_of_pod(pod_uid)?;
    before.signal(Signal::SIGKILL)?;
    wait::until("another pause runs", PATIENCE, || {
        let now = pause_of_pod(pod_uid)?;
        ensure!(now.pid != before.pid, "{before:?} runs");
        Ok(now)
    })
}
