//! A node with pods and without Kubernetes: processes in PID namespaces and cgroups as a kubelet lays them out, and an API server that
//! serves only what an agent requests. It is a set of namespaces, so its /proc has the node's processes only, and no port of the machine is
//! used. Its guard removes the cgroups when its owner exits for any reason.

mod api;
mod api_objects;
mod observe;
mod pods;

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cluster::cgroups;
use crate::host::cache;
use crate::host::lock::Lock;
use crate::measure::process_cgroup;

pub(super) use api_objects::pod as pod_object;
pub(super) use observe::{Observed, Used};
pub(super) use pods::Identity;

pub(super) const GUARD: &str = "__cost-guard";
pub(super) const NODE: &str = "__cost-node";

/// The kernel takes a while to end thousands of processes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The contents of the node, and how long it is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The operator's binary.
    pub(super) sandbox_health: PathBuf,
    pub(super) node_exporter: PathBuf,
    pub(super) pause: PathBuf,
    pub(super) pods: usize,
    /// Number of all processes, including those of the benchmark.
    pub(super) processes: usize,
    pub(super) read_interval: Duration,
    pub(super) scrape_interval: Duration,
    pub(super) settle: Duration,
    pub(super) observe: Duration,
    pub(super) trace: Duration,
}

/// Builds the node, observes what runs on it, and removes it.
pub(super) fn observe(plan: &Plan) -> Result<Observed> {
    let mut guard = Command::new(std::env::current_exe()?)
        .args([GUARD, &serde_json::to_string(plan)?])
        // Ctrl-C ends only this process; the guard cleans up afterwards.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the guard of the fake node")?;
    // It runs until our end of the pipe closes.
    let owner = guard.stdin.take();
    let ended = guard.wait_with_output()?;
    drop(owner);
    let output = String::from_utf8_lossy(&ended.stdout);
    match (ended.status.success(), output.lines().next_back()) {
        (true, Some(line)) => serde_json::from_str(line).context("the fake node printed no result"),
        _ => bail!("the fake node failed ({}, see above)", ended.status),
    }
}

/// The process that outlives the node's owner and cleans up.
pub(super) fn guard(plan: &str) -> Result<()> {
    let cache = cache::root()?;
    let Some(_lock) = Lock::attempt(&cache.join("cost.lock"))? else {
        bail!("another `cargo cost` is running");
    };
    let cgroup = cgroup_of(&cache);
    // A guard that was killed may have left its cgroup.
    cgroups::remove(&cgroup)?;
    cgroups::create(&cgroup)?;
    let outcome = run_node(plan, &cgroup);
    cgroups::remove(&cgroup)?;
    outcome
}

/// The name depends on the cache: runs of other caches must not share the cgroup.
fn cgroup_of(cache: &Path) -> String {
    let cache = format!("{:x}", Sha256::digest(cache.as_os_str().as_encoded_bytes()));
    format!("sandbox-health-cost-{}", &cache[..8])
}

enum End {
    Node(bool),
    /// The owner has exited, or a signal has arrived.
    Interrupted,
}

fn run_node(plan: &str, cgroup: &str) -> Result<()> {
    let (ends, ended) = channel();
    watch_owner(ends.clone());
    watch_signals(ends.clone())?;
    let mut unshare = Command::new("unshare")
        .args(["--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .args([NODE, plan, cgroup])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run unshare")?;
    let (pipe, pid) = (unshare.stdin.take(), unshare.id());
    thread::spawn(move || {
        let _ = ends.send(End::Node(unshare.wait().is_ok_and(|status| status.success())));
    });
    if let Ok(End::Node(well)) = ended.recv() {
        return if well { Ok(()) } else { bail!("the node's PID 1 failed") };
    }
    // Closing the pipe ends its PID 1, and with it every process of its namespace.
    drop(pipe);
    let begun = Instant::now();
    while let Some(timeout) = TIMEOUT.checked_sub(begun.elapsed()) {
        if let Ok(End::Node(_)) = ended.recv_timeout(timeout) {
            bail!("interrupted");
        }
    }
    // The process is not reaped yet, so its PID is not reused; with --kill-child this also ends PID 1.
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
    bail!("the fake node did not end in {} s", TIMEOUT.as_secs())
}

/// Our stdin is a pipe from the owner. It closes when the owner exits.
fn watch_owner(ends: Sender<End>) {
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        let _ = ends.send(End::Interrupted);
    });
}

fn watch_signals(ends: Sender<End>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = ends.send(End::Interrupted);
        }
    });
    Ok(())
}

/// The node's PID 1: prints its results to stdout, as one line.
pub(super) fn node(plan: &str, cgroup: &str) -> Result<()> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        std::process::exit(1);
    });
    let plan: Plan = serde_json::from_str(plan)?;
    let observed = observe::run(&plan, &process_cgroup::of_processes()?.join(cgroup))?;
    println!("{}", serde_json::to_string(&observed)?);
    Ok(())
}

/// Number of processes in this PID namespace, including zombies.
fn processes() -> Result<usize> {
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        count += usize::from(entry?.file_name().to_str().is_some_and(is_process));
    }
    Ok(count)
}
