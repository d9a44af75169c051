//! The time from the exit of a pause to its Event, on a real node: how much of it is the kubelet's, which creates the new sandbox, and how
//! much is the operator's. Each kill must have exactly one Event.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::event_watch::EventWatch;
use super::percentiles::percentile;
use super::shuffle::Shuffle;
use super::table::{Target, number, table, targets};
use super::{Outcome, process_cgroup};
use crate::build::{Image, Setup};
use crate::cluster::Node;
use crate::host::retry;
use crate::kube::{events_of, install_chart, pause_pid_in_cgroup, pod, wait_for_health};
use crate::names::RELEASE_NAMESPACE;

const NODE: &str = "cost-latency";
const PODS: usize = 10;
/// Minimum interval between kills.
const KILL_EVERY: Duration = Duration::from_secs(3);
/// Interval of polls for the new pause, and so the precision of its start.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Timeout of a new sandbox, and then of its Event.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Target of the time from exit to Event, for 99 of 100.
const MOST: Duration = Duration::from_secs(2);
/// Log message of containerd when it could not process the exit of a sandbox. It retries a second later; until then the kubelet considers
/// the sandbox running.
const EXIT_NOT_HANDLED: &str = "failed to handle sandbox exit event";

/// The measured latencies of a kill.
struct Latency {
    /// The killed sandbox: the name of its cgroup.
    old: String,
    /// From the exit to the new pause.
    sandbox: Duration,
    /// From there to the Event.
    event: Duration,
}

struct Victim {
    name: String,
    uid: String,
    /// The pod's cgroup in the hierarchy that counts processes; it has a directory for each container and sandbox.
    cgroup: PathBuf,
}

pub(super) fn measure(kills: usize, seed: u64) -> Result<Outcome> {
    let setup = Setup::prepare(&[Image::Pause, Image::SandboxHealth, Image::Busybox])?;
    let node = Node::start(NODE, &setup)?;
    let outcome = on(&node, kills, seed);
    if outcome.is_err() {
        let selector = "app.kubernetes.io/name=sandbox-health";
        let output = node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "-l", selector, "--prefix", "--tail=20"]);
        eprintln!("cost: logs of the components:\n{}", output.unwrap_or_default());
    }
    node.stop()?;
    outcome
}

fn on(node: &Node, kills: usize, seed: u64) -> Result<Outcome> {
    eprintln!("cost: installing the chart, and {PODS} pods");
    install_chart(node)?;
    let names: Vec<_> = (0..PODS).map(|number| format!("killed-{number}")).collect();
    for name in &names {
        node.apply(&pod(name, &[]))?;
    }
    let pods = names.iter().map(|name| ready(node, name)).collect::<Result<Vec<_>>>()?;
    let mut watch = EventWatch::start(node, "SandboxRestarted")?;
    let order = Shuffle::new(seed).order(PODS, kills);
    let mut latencies = vec![];
    for (number, which) in order.into_iter().enumerate() {
        if number % 10 == 0 {
            eprintln!("cost: kill {} of {kills}", number + 1);
        }
        let begun = Instant::now();
        let pod = &pods[which];
        latencies.push(
            kill_once(pod, &mut watch).with_context(|| format!("kill {} (of {})", number + 1, pod.name))?,
        );
        thread::sleep(KILL_EVERY.saturating_sub(begun.elapsed()));
    }
    // A superfluous Event may arrive late.
    thread::sleep(KILL_EVERY);
    let mut events = 0;
    for name in &names {
        events += events_of(node, name, "SandboxRestarted")?.len();
    }
    let log = fs::read_to_string(node.log_dir().join("containerd.log"))?;
    Ok(report(&latencies, events, seed, &log))
}

fn ready(node: &Node, name: &str) -> Result<Victim> {
    let object = wait_for_health(node, name, "True", "SandboxHealthy")?;
    let uid = object["spec"]["podUID"].as_str().context("the object names no pod")?.to_owned();
    let sandbox = process_cgroup::directory_of(pause_pid_in_cgroup(&uid)?)?;
    let cgroup = sandbox.parent().context("a sandbox outside of a pod's cgroup")?.to_owned();
    Ok(Victim { name: name.to_owned(), uid, cgroup })
}

fn kill_once(pod: &Victim, watch: &mut EventWatch) -> Result<Latency> {
    let (old, sandbox) = retry::until("a pause runs", TIMEOUT, || pause_below(&pod.cgroup).context("none"))?;
    let killed = SystemTime::now();
    kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL)?;
    let begun = Instant::now();
    let started = loop {
        match pause_below(&pod.cgroup) {
            Some((pid, _)) if pid != old => break SystemTime::now(),
            _ => ensure!(begun.elapsed() < TIMEOUT, "no new sandbox in {} s", TIMEOUT.as_secs()),
        }
        thread::sleep(POLL_INTERVAL);
    };
    let seen = watch.next_of(&pod.uid, TIMEOUT).context("the new sandbox was not reported")?;
    Ok(Latency {
        old: sandbox,
        sandbox: started.duration_since(killed)?,
        // The watch may be faster than the poll for the process.
        event: seen.duration_since(started).unwrap_or_default(),
    })
}

/// The pause of a pod and the name of its cgroup. It is found by its name: runc's own process has another name until it executes pause.
fn pause_below(pod: &Path) -> Option<(u32, String)> {
    for container in fs::read_dir(pod).ok()?.flatten() {
        let processes = fs::read_to_string(container.path().join("cgroup.procs")).unwrap_or_default();
        let first = processes.lines().next().and_then(|pid| pid.parse::<u32>().ok());
        let is_pause = |pid: &u32| {
            let file = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            // A zombie does not count: it has no command line.
            file("comm").trim() == "pause" && !file("cmdline").is_empty()
        };
        if let Some(pid) = first.filter(is_pause) {
            return Some((pid, container.file_name().to_string_lossy().into_owned()));
        }
    }
    None
}

fn report(latencies: &[Latency], events: usize, seed: u64, containerd_log: &str) -> Outcome {
    let not_taken: Vec<_> = containerd_log.lines().filter(|line| line.contains(EXIT_NOT_HANDLED)).collect();
    let taken: Vec<_> = latencies.iter().filter(|latency| !is_named(&latency.old, &not_taken)).collect();
    let second_tries = latencies.len() - taken.len();
    let column = |of: &dyn Fn(&Latency) -> Duration| latencies.iter().map(of).collect::<Vec<_>>();
    let columns = [
        ("death to new sandbox (the kubelet)", column(&|latency| latency.sandbox)),
        ("new sandbox to Event (ours)", column(&|latency| latency.event)),
        ("death to Event", column(&|latency| latency.sandbox + latency.event)),
        (
            "the same, where containerd took the end at once",
            taken.iter().map(|latency| latency.sandbox + latency.event).collect(),
        ),
    ];
    let ms = |latency: Option<Duration>| latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0);
    let rows = columns.each_ref().map(|(what, measured)| {
        let at = |percent| number(ms(percentile(measured, percent)), 0);
        [(*what).to_owned(), at(50), at(90), at(99), at(100)]
    });
    let wanted = [
        Target {
            what: "death to Event, 99th percentile, ms".into(),
            most: ms(Some(MOST)),
            measured: ms(percentile(&columns[2].1, 99)),
            decimals: 0,
        },
        Target {
            what: "kills without an Event of their own, or Events without a kill".into(),
            most: 0.0,
            measured: latencies.len().abs_diff(events) as f64,
            decimals: 0,
        },
    ];
    let text = format!(
        "## latency\n\n{} kills among {PODS} pods (seed {seed}), {events} Events; containerd took the end of a sandbox {second_tries} \
         times at its second try alone\n\n{}\n{}",
        latencies.len(),
        table(["ms", "50 %", "90 %", "99 %", "most"], &rows),
        targets(&wanted),
    );
    Outcome { text, met: wanted.iter().all(Target::met) }
}

/// Whether a line names the sandbox of this cgroup: its name ends in the sandbox's ID, with or without `.scope`.
fn is_named(cgroup: &str, lines: &[&str]) -> bool {
    let name = cgroup.strip_suffix(".scope").unwrap_or(cgroup);
    let id = name.rsplit('-').next().unwrap_or(name);
    lines.iter().any(|line| line.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_that_containerd_handled_late_are_separate() {
        let latency = |old: &str, ms| Latency {
            old: old.to_owned(),
            sandbox: Duration::from_millis(ms),
            event: Duration::from_millis(100),
        };
        let log = r#"time="x" level=error msg="failed to handle sandbox exit event container_id:\"bb\" id:\"bb\"" error="ttrpc: closed"
            time="x" level=info msg="received sandbox exit event container_id:\"aa\" end"#;
        let all = [latency("aa", 900), latency("cri-containerd-bb.scope", 2200)];
        let Outcome { text, met } = report(&all, 2, 1, log);
        assert!(!met && text.contains("a sandbox 1 times at its second try alone"), "{text}");
        assert!(text.contains("| death to Event | 1,000 | 2,300 | 2,300 | 2,300 |"), "{text}");
        let at_once = "| the same, where containerd took the end at once | 1,000 | 1,000 | 1,000 | 1,000 |";
        assert!(text.contains(at_once), "{text}");
    }
}
