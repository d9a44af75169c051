//! Processes of the node's pods in the machine's /proc: the state of sandboxes without the API server and without an agent. A process must
//! be found by its cgroup only, because names and PIDs are reused and other clusters run on the same machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::sandbox_health::sandbox_health;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};

/// A running process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its PID in the machine's PID namespace.
    pub pid: u32,
    /// `comm`.
    pub name: String,
    /// Time from the boot of the machine to its start.
    pub started: Duration,
    command: Vec<u8>,
    cgroup: String,
}

impl Process {
    /// Whether it belongs to the pod with this UID.
    pub fn is_of(&self, pod_uid: &str) -> bool {
        self.cgroup.contains(pod_uid)
    }

    /// Whether its name is `pause`.
    #[must_use]
    pub fn is_pause(&self) -> bool {
        self.name == "pause"
    }

    /// Whether it runs this subcommand of the operator.
    pub fn is_part(&self, part: &str) -> bool {
        let mut words = self.command.split(|byte| *byte == 0);
        words.next() == Some(b"/sandbox-health") && words.next() == Some(part.as_bytes())
    }

    /// Time since its start.
    ///
    /// # Errors
    ///
    /// When /proc/uptime cannot be read.
    pub fn lived(&self) -> Result<Duration> {
        Ok(since_boot()?.saturating_sub(self.started))
    }

    /// Whether an agent waits for its exit: the agent has a pidfd, of which `/proc/<pid>/fdinfo` shows the PID (pidfd_open(2)).
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn is_observed(&self) -> Result<bool> {
        let line = format!("Pid:\t{}\n", self.pid);
        let agents = all()?.into_iter().filter(|process| process.is_part("agent"));
        let has_pidfd = |agent: Process| {
            let descriptors =
                fs::read_dir(format!("/proc/{}/fdinfo", agent.pid)).into_iter().flatten().flatten();
            // Either may be gone meanwhile.
            descriptors
                .filter_map(|entry| fs::read_to_string(entry.path()).ok())
                .any(|info| info.contains(&line))
        };
        Ok(agents.into_iter().any(has_pidfd))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("{signal} to {} of process {}", self.name, self.pid))
    }
}

/// All running processes of the machine.
pub fn all() -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end meanwhile.
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
pub fn booted_at() -> Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.saturating_sub(since_boot()?).as_secs_f64())
}

/// The pause of a pod. A sandbox ends before the next one starts, so there is one at most.
pub fn pause_of_pod(pod_uid: &str) -> Result<Process> {
    let found = all()?.into_iter().find(|process| process.is_pause() && process.is_of(pod_uid));
    found.with_context(|| format!("no pause of the pod {pod_uid} runs"))
}

/// Kills a pod's pause and waits, without the API server, until the kubelet has started the next one; returns that process.
pub fn replace_pause(pod_uid: &str) -> Result<Process> {
    let before = pause_of_pod(pod_uid)?;
    before.signal(Signal::SIGKILL)?;
    retry::every(Duration::from_millis(100), "another pause runs", TIMEOUT, || {
        let now = pause_of_pod(pod_uid)?;
        ensure!(now.pid != before.pid, "{before:?} runs");
        Ok(now)
    })
}

/// The pause process of a pod's sandbox, in the machine's PID namespace. It is found by the sandbox's ID in its cgroup.
///
/// # Errors
///
/// When there is none.
pub fn pause_pid(node: &Node, pod: &str) -> Result<u32> {
    let object = sandbox_health(node, pod)?;
    pause_pid_in_cgroup(object["status"]["sandbox"]["id"].as_str().context("the object names no sandbox")?)
}

/// The pause process whose cgroup names this pod (its UID) or sandbox.
///
/// # Errors
///
/// When there is none.
pub fn pause_pid_in_cgroup(id: &str) -> Result<u32> {
    pid_in_cgroup(id, "comm", "pause\n")
}

/// A process in the cgroup of a pod or sandbox, selected by the contents of a file in its directory in /proc.
///
/// # Errors
///
/// When there is none.
pub fn pid_in_cgroup(id: &str, file: &str, content: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end meanwhile.
        let read = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        if read(file) == content && read("cgroup").contains(id) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of {id} whose {file} is {content:?}")
}

/// Sends SIGKILL to the pause process of a pod.
///
/// # Errors
///
/// When there is none.
pub fn kill_pause(node: &Node, pod: &str) -> Result<()> {
    let pause = pause_pid(node, pod)?;
    Ok(kill(Pid::from_raw(pause.cast_signed()), Signal::SIGKILL)?)
}

/// Whether the running kernel has this version or a later one.
///
/// # Errors
///
/// When uname(2) fails.
pub fn kernel_is_at_least(version: (u32, u32)) -> Result<bool> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
    Ok((next(), next()) >= version)
}

/// The output of a script that runs on the node as its administrator.
pub fn on_node(node: &Node, script: &str) -> Result<String> {
    let ran = node.command("sh").args(["-c", script]).output()?;
    ensure!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
