//! The controller in a cluster of many pods: memory, the time until all objects are created, and its writes until then and in a quiet
//! minute. It runs as one process with the administrator's rights, without the chart, whose agents could not run on the fake nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use super::audit::{self, Write, counted};
use super::process::{Cpu, CpuSeconds, Memory, ticks_per_second};
use super::table::{Target, number, table, targets};
use super::{Outcome, many_pods, own_process};
use crate::build::{Setup, operator};
use crate::cluster::{Component, Node};
use crate::host::{command, retry};

const NODE: &str = "cost-controller";
/// In the node's network.
const LISTEN: &str = "127.0.0.1:18080";
const LEASE: &str = "cost-controller";
const TIMEOUT: Duration = Duration::from_secs(600);
/// All objects are created once there was no write for this time: longer than the minute after which a node without an agent is reported.
const STILL: Duration = Duration::from_secs(80);
const QUIET: Duration = Duration::from_secs(60);
const MOST_RSS_MIB: f64 = 48.0;

struct Measured {
    ready: Duration,
    created: Duration,
    writes: Vec<Write>,
    quiet_writes: Vec<Write>,
    memory: Memory,
    cpu: CpuSeconds,
    quiet_cpu: CpuSeconds,
}

pub(super) fn measure(pods: usize, watch_all: bool) -> Result<Outcome> {
    let setup = Setup::prepare(&[])?;
    let program = operator::build(&crate::build::cargo::project())?;
    let node = Node::start(NODE, &setup)?;
    let outcome = on(&node, pods, watch_all, &program);
    node.stop()?;
    outcome.map(|measured| report(pods, watch_all, &measured))
}

/// Creates this number of pods and the CRD in a cluster; returns the binary to run in it.
pub(super) fn cluster_of_pods(node: &Node, pods: usize, built: &Path) -> Result<PathBuf> {
    // Without the controllers that evict pods of nodes without a heartbeat, and without a scheduler.
    node.stop_component(Component::ControllerManager)?;
    node.stop_component(Component::Scheduler)?;
    let directory = node.scratch()?;
    // A copy, which no concurrent build replaces.
    let program = directory.join("sandbox-health");
    fs::copy(built, &program).context("copying the program")?;
    many_pods::create_all(node, pods, &directory)?;
    let crd = directory.join("crd.yaml");
    fs::write(&crd, command::output(node.command(&program).arg("crd"))?)?;
    node.kubectl(["apply", "--server-side", "-f", &crd.display().to_string()])?;
    node.kubectl(["wait", "--for=condition=Established", "-f", &crd.display().to_string(), "--timeout=60s"])?;
    Ok(program)
}

/// Starts the binary in the node, with its log among those of the components. Returns nsenter; the binary ends with the node.
pub(super) fn start(node: &Node, program: &Path, name: &str, arguments: &[&str]) -> Result<Child> {
    let log = fs::File::create(node.log_dir().join(format!("sandbox-health-{name}.log")))?;
    let mut command = node.command(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("cannot run the {name}"))
}

fn on(node: &Node, pods: usize, watch_all: bool, built: &Path) -> Result<Measured> {
    let program = cluster_of_pods(node, pods, built)?;
    let before = node.audit_log()?.len();
    eprintln!("cost: starting the controller");
    let (began, begun) = (Timestamp::now(), Instant::now());
    let watched = if watch_all { "all" } else { "shared-pid-namespace" };
    let arguments =
        ["controller", "--lease-namespace", "default", "--lease-name", LEASE, "--identity", "cost"];
    let arguments = [&arguments[..], &["--listen", LISTEN, "--watch-pods", watched]].concat();
    let mut process = start(node, &program, "controller", &arguments)?;
    let measured = watch_over(node, &mut process, began, begun, before, many_pods::sharing(pods));
    // This is nsenter; the controller ends with the node.
    let _ = process.kill();
    let _ = process.wait();
    measured
}

fn watch_over(
    node: &Node,
    process: &mut Child,
    began: Timestamp,
    begun: Instant,
    before: usize,
    objects: usize,
) -> Result<Measured> {
    own_process::until_ready(node, LISTEN)?;
    let ready = begun.elapsed();
    let pid = only_child(process.id())?;
    let since_start = || -> Result<Vec<Write>> {
        let log = node.audit_log()?;
        audit::writes(log.get(before..).context("the audit log was rotated")?)
    };
    eprintln!("cost: ready after {:.1} s; waiting until all objects are created", ready.as_secs_f64());
    retry::until("all objects are created", TIMEOUT, || {
        let writes = since_start()?;
        let count = created(&writes).count();
        ensure!(count >= objects, "{count} of {objects} are");
        let last = writes.last().map_or(began, |write| write.at);
        let still = Timestamp::now().duration_since(last);
        ensure!(still.unsigned_abs() > STILL, "the last write was less than 80 s ago");
        Ok(())
    })?;
    let writes = since_start()?;
    let last = created(&writes).map(|write| write.at).max().context("no object was created")?;
    let (ticks, settled) = (ticks_per_second()?, Cpu::of(pid)?);
    eprintln!("cost: a quiet minute");
    thread::sleep(QUIET);
    let all = since_start()?;
    Ok(Measured {
        ready,
        created: last.duration_since(began).unsigned_abs(),
        quiet_writes: all.get(writes.len()..).unwrap_or_default().to_vec(),
        writes,
        memory: Memory::of(pid)?,
        cpu: Cpu::default().until(&settled, ticks),
        quiet_cpu: settled.until(&Cpu::of(pid)?, ticks),
    })
}

fn created(writes: &[Write]) -> impl Iterator<Item = &Write> {
    writes.iter().filter(|write| write.ok && write.what == "create sandboxhealths")
}

/// The PID of the only child of nsenter.
fn only_child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.trim().parse().context("the controller has ended (see its log)")
}

fn report(pods: usize, watch_all: bool, measured: &Measured) -> Outcome {
    let Measured { ready, created, writes, quiet_writes, memory, cpu, quiet_cpu } = measured;
    let mebibytes = |kilobytes: u64| kilobytes as f64 / 1024.0;
    let row = |what: &str, value: String| [what.to_owned(), value];
    let rows = [
        row("start to ready, s", number(ready.as_secs_f64(), 1)),
        row("start to the last object created, s", number(created.as_secs_f64(), 1)),
        row("RSS, MiB", number(mebibytes(memory.resident), 1)),
        row("of it anonymous, MiB", number(mebibytes(memory.anonymous), 1)),
        row("RSS at its peak, MiB", number(mebibytes(memory.peak), 1)),
        row("CPU until all objects were created, s", number(cpu.total, 2)),
        row("CPU in a quiet minute, s", number(quiet_cpu.total, 3)),
        row("writes until all objects were created", number(writes.len() as f64, 0)),
        row("writes in a quiet minute", number(quiet_writes.len() as f64, 0)),
    ];
    let wanted = [
        Target {
            what: "RSS, MiB".into(),
            most: MOST_RSS_MIB,
            measured: mebibytes(memory.resident),
            decimals: 1,
        },
        Target {
            what: "writes in a quiet minute".into(),
            most: 0.0,
            measured: quiet_writes.len() as f64,
            decimals: 0,
        },
    ];
    let listed = |writes: &[Write]| {
        let counts = counted(writes);
        let words: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let text = format!(
        "## controller\n\n{} pods, {} of them sharing their PID namespace{}\n\n{}\n\
         Writes until all objects were created: {}; in a quiet minute: {}. Renewals of the Lease are not among them.\n\n{}",
        number(pods as f64, 0),
        number(many_pods::sharing(pods) as f64, 0),
        if watch_all { "; all are watched" } else { "" },
        table(["", "controller"], &rows),
        listed(writes),
        listed(quiet_writes),
        targets(&wanted),
    );
    Outcome { text, met: wanted.iter().all(Target::met) }
}
