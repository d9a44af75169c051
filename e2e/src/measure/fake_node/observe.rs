//! PID 1 of the fake node: starts everything, lets it settle, and observes agent and node_exporter side by side while both are scraped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::api::{Api, Requests};
use super::pods::{self, Identity};
use super::{Plan, processes};
use crate::host::command::output;
use crate::host::retry;
use crate::measure::process::{Cpu, CpuSeconds, Memory, ticks_per_second};
use crate::measure::scrape;
use crate::measure::system_calls::{self, Calls};

const NODE_NAME: &str = "node-1";
const AGENT: &str = "127.0.0.1:8080";
const EXPORTER: &str = "127.0.0.1:9100";
/// A user without privileges, as in the chart.
const NOBODY: &str = "64535";
/// Every machine has it, nothing here reads it, and this mount namespace has its own.
const SCRATCH: &str = "/run";
const TIMEOUT: Duration = Duration::from_secs(180);
/// Interval of samples of the memory.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Resources that one program used.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::measure) struct Used {
    /// From its start until the observation: until it had settled.
    pub(in crate::measure) cpu_at_start: CpuSeconds,
    pub(in crate::measure) cpu: CpuSeconds,
    pub(in crate::measure) memory: Memory,
    pub(in crate::measure) threads: usize,
    /// System calls while it was traced.
    pub(in crate::measure) calls: Calls,
}

/// Results of the observation.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::measure) struct Observed {
    pub(in crate::measure) processes: usize,
    pub(in crate::measure) agent: Used,
    pub(in crate::measure) exporter: Used,
    pub(in crate::measure) requests_at_start: Requests,
    pub(in crate::measure) requests: Requests,
}

pub(super) fn run(plan: &Plan, cgroup: &Path) -> Result<Observed> {
    output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let none: Option<&str> = None;
    mount(Some("tmpfs"), SCRATCH, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    let bound = |from: &Path, name: &str| -> Result<PathBuf> {
        // An unprivileged user may not enter the directory where it was built.
        let to = Path::new(SCRATCH).join(name);
        fs::write(&to, "")?;
        mount(Some(from), &to, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("mounting {}", from.display()))?;
        Ok(to)
    };
    let sandbox_health = bound(&plan.sandbox_health, "sandbox-health")?;
    let node_exporter = bound(&plan.node_exporter, "prometheus-node-exporter")?;
    let pause = bound(&plan.pause, "pause")?;

    let identities: Vec<_> = (0..plan.pods).map(Identity::of).collect();
    pods::start(plan, &identities, &pause, cgroup)?;
    // The agent and the exporter.
    pods::fill_up(plan, 2)?;
    let api = Arc::new(Api::new(&identities, NODE_NAME));
    let kubeconfig = kubeconfig(&api.serve()?)?;
    let mut agent = unprivileged(&sandbox_health);
    agent
        .args(["agent", "--node-name", NODE_NAME, "--proc", "/proc", "--listen", AGENT, "--read-interval"])
        .arg(format!("{}s", plan.read_interval.as_secs()))
        .env("KUBECONFIG", kubeconfig);
    let agent = start(&mut agent, "agent", AGENT, "/readyz")?;
    let mut exporter = unprivileged(&node_exporter);
    exporter.args([
        "--collector.disable-defaults",
        "--collector.processes",
        "--web.listen-address",
        EXPORTER,
    ]);
    let exporter = start(&mut exporter, "node_exporter", EXPORTER, "/metrics")?;
    watch_over(plan, &api, agent, exporter)
}

fn watch_over(plan: &Plan, api: &Api, agent: u32, exporter: u32) -> Result<Observed> {
    let both = [agent, exporter];
    let failed = scrape_both(plan.scrape_interval);
    eprintln!("cost: waiting for the first report of each pod");
    retry::until("each pod is reported", TIMEOUT, || {
        let reported = api.reported();
        ensure!(reported == plan.pods, "{reported} of {} are", plan.pods);
        Ok(())
    })?;
    eprintln!("cost: settling for {} s", plan.settle.as_secs());
    thread::sleep(plan.settle);
    let (count, requests_at_start) = (processes()?, api.requests());
    let before = [Cpu::of(agent)?, Cpu::of(exporter)?];
    eprintln!("cost: observing for {} s", plan.observe.as_secs());
    let begun = Instant::now();
    let mut memory = [Memory::default(); 2];
    while let Some(left) = plan.observe.checked_sub(begun.elapsed()) {
        for (most, pid) in memory.iter_mut().zip(both) {
            *most = most.most(Memory::of(pid)?);
        }
        thread::sleep(left.min(SAMPLE_EVERY));
    }
    let after = [Cpu::of(agent)?, Cpu::of(exporter)?];
    let requests = since(&requests_at_start, &api.requests());
    // While strace slows it down, node_exporter may exceed the timeout of a scrape.
    if let Some(failure) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(failure.context("a scrape failed"));
    }
    eprintln!("cost: counting system calls for {} s", plan.trace.as_secs());
    let [of_agent, of_exporter] = system_calls::count(both, plan.trace, Path::new(SCRATCH))?;
    let ticks = ticks_per_second()?;
    let used = |which: usize, pid: u32, calls: Calls| -> Result<Used> {
        let [before, after] = [&before[which], &after[which]];
        Ok(Used {
            cpu_at_start: Cpu::default().until(before, ticks),
            cpu: before.until(after, ticks),
            memory: memory[which],
            threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
            calls,
        })
    };
    Ok(Observed {
        processes: count,
        agent: used(0, agent, of_agent)?,
        exporter: used(1, exporter, of_exporter)?,
        requests_at_start,
        requests,
    })
}

/// Requests between two counts.
fn since(before: &Requests, after: &Requests) -> Requests {
    let new = |(what, count): (&String, &u64)| {
        let new = count - before.get(what).copied().unwrap_or_default();
        (new > 0).then(|| (what.clone(), new))
    };
    after.iter().filter_map(new).collect()
}

fn unprivileged(program: &Path) -> Command {
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args([
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ])
        .args(["--no-new-privs", "--"])
        .arg(program);
    setpriv
}

/// Starts a program; returns its PID once it answers. setpriv executes the program in its own process.
fn start(command: &mut Command, name: &str, address: &str, path: &str) -> Result<u32> {
    let log = Path::new(SCRATCH).join(format!("{name}.log"));
    let file = fs::File::create(&log)?;
    let mut child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
    let answered = retry::until(&format!("{name} answers"), TIMEOUT, || {
        if let Some(status) = child.try_wait()? {
            return Ok(Err(anyhow!("{name} ended: {status}")));
        }
        scrape::get(address, path, false).map(|_| Ok(()))
    });
    answered
        .and_then(|answered| answered)
        .with_context(|| format!("its log: {}", fs::read_to_string(&log).unwrap_or_default()))?;
    Ok(child.id())
}

/// Scrapes both repeatedly, as Prometheus does, and keeps the first failure.
fn scrape_both(every: Duration) -> Arc<Mutex<Option<anyhow::Error>>> {
    let failed = Arc::new(Mutex::new(None));
    for address in [AGENT, EXPORTER] {
        let failed = Arc::clone(&failed);
        thread::spawn(move || {
            loop {
                if let Err(error) = scrape::get(address, "/metrics", true) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                thread::sleep(every);
            }
        });
    }
    failed
}

/// A kubeconfig without credentials.
fn kubeconfig(address: &str) -> Result<PathBuf> {
    let file = Path::new(SCRATCH).join("kubeconfig");
    let named = |kind: &str, fields: serde_json::Value| serde_json::json!([{"name": "fake", kind: fields}]);
    let text = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": named("cluster", serde_json::json!({"server": format!("http://{address}")})),
        "users": named("user", serde_json::json!({"token": "a-token"})),
        "contexts": named("context", serde_json::json!({"cluster": "fake", "user": "fake"})),
        "current-context": "fake",
    });
    fs::write(&file, text.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_in_between_are_counted() {
        let requests = |pairs: &[(&str, u64)]| -> Requests {
            pairs.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect()
        };
        let before = requests(&[("list pods", 1), ("watch pods", 1)]);
        let after = requests(&[("list pods", 1), ("watch pods", 2), ("patch sandboxhealths/status", 3)]);
        let new = requests(&[("watch pods", 1), ("patch sandboxhealths/status", 3)]);
        assert_eq!(since(&before, &after), new);
    }
}
