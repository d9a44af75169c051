//! Hostile pods: containers that pose as a pause, pauses that lie or show anything at all, PIDs that are recycled quickly, and
//! crowds of processes. Whatever they do, the rows of other pods stay right and the agent stays small.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::build::Image;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{health_of, pause_in_cgroup_of, pod, sandbox_health, zombies_of};
use e2e::names::HOSTILE_PAUSE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Cluster, Scenario};
use e2e::kube::{
    agent_metrics, create, delete, kernel_is_at_least, kill_pause, never_waits, read_errors, told_of,
};
use e2e::kube::{on_node, with_sandbox_image};

pub(super) const STORIES: [Scenario; 4] = [
    ("a_container_that_poses_as_a_pause_is_never_taken_for_one", a_container_that_poses_as_a_pause),
    ("a_hostile_status_is_told_by_its_kind_and_harms_no_other_row", hostile_statuses),
    ("pids_that_are_recycled_quickly_confuse_nobody", pids_that_are_recycled_quickly),
    ("five_thousand_processes_named_pause_cost_little", five_thousand_processes_named_pause),
];

/// How long a pod that poses is watched, from before it starts.
const WATCHED: Duration = Duration::from_secs(20);
/// How long the agent's use of the machine is measured.
const MEASURED: Duration = Duration::from_secs(30);
/// Percent of a core that the agent may take meanwhile; and its memory at most, in KiB. Both bound what a pod can make it
/// cost, and are far above what it needs.
const CPU_MAX: f64 = 5.0;
const MEMORY_MAX: u64 = 32 * 1024;
/// The node's PIDs while they are recycled.
const FEW_PIDS: u32 = 4096;
/// Zombies of the pod that is no part of any of this; its row must stay right.
const BYSTANDERS: u32 = 7;

/// A container that runs the pause which lies, with these arguments.
pub(super) fn hostile(name: &str, arguments: &[&str]) -> Value {
    let command: Vec<_> = std::iter::once("/pause").chain(arguments.iter().copied()).collect();
    json!({"name": name, "image": HOSTILE_PAUSE, "command": command})
}

fn unshared(mut pod: Value) -> Result<Value> {
    pod["spec"].as_object_mut().context("no spec")?.remove("shareProcessNamespace");
    Ok(pod)
}

fn a_container_that_poses_as_a_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let name = "hostile-lies-shared";
    never_taken(node, &pod(name, &[hostile("poser", &[])]))?;
    let object = health_of(node, name, "True", "AllWell")?;
    ensure!(object["status"]["processes"]["zombies"] == 0, "{object}");
    let poser = container_id(node, name, "poser")?;
    ensure!(object["status"]["sandbox"]["id"] != poser.as_str(), "the container is taken for the sandbox");
    delete(node, name)?;
    posing_alone(node, "hostile-lies-alone", &[])
}

/// Where PIDs are not shared, the container's program is PID 1 of a namespace as well, and called pause.
pub(super) fn posing_alone(node: &Node, name: &str, arguments: &[&str]) -> Result<()> {
    never_taken(node, &unshared(pod(name, &[hostile("poser", arguments)]))?)?;
    ensure!(sandbox_health(node, name).is_err(), "there is a row of a pod without anything wrong");
    delete(node, name)
}

/// Watches a pod from before it starts. Its container `poser` shows a thousand zombies, and is killed once, so that another
/// poses whose id the API does not have yet.
fn never_taken(node: &Node, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
    node.apply(pod)?;
    let begun = Instant::now();
    let mut killed = false;
    while begun.elapsed() < WATCHED {
        let metrics = agent_metrics(node)?;
        for line in metrics.lines().filter(|line| line.contains(&format!("pod=\"{name}\""))) {
            let (series, value) = line.rsplit_once(' ').context("a series without a value")?;
            let value: f64 = value.parse()?;
            let most = if series.starts_with("sandbox_processes{") { 100.0 } else { 0.0 };
            let told_of_lies = ["sandbox_zombie_processes{", "sandbox_processes{", "sandbox_restarts_total{"]
                .iter()
                .any(|of_interest| series.starts_with(of_interest) && value > most);
            ensure!(!told_of_lies, "{:?} after its start: {line}", begun.elapsed());
        }
        if let Ok(object) = sandbox_health(node, name) {
            let status = &object["status"];
            let believed = status["processes"]["zombies"].as_i64().unwrap_or_default() > 0
                || status["restarts"].as_i64().unwrap_or_default() > 0;
            ensure!(!believed, "{:?} after its start: {status}", begun.elapsed());
        }
        if !killed && begun.elapsed() > WATCHED / 2 {
            let poser = pause_in_cgroup_of(&container_id(node, name, "poser")?)?;
            kill(Pid::from_raw(poser.cast_signed()), Signal::SIGKILL)?;
            killed = true;
        }
    }
    let started = container(node, name, "poser")?["restartCount"].clone();
    ensure!(started == 1, "the poser was started anew {started} times");
    Ok(())
}

fn container(node: &Node, pod: &str, name: &str) -> Result<Value> {
    let object = node.get(&["pod", pod])?;
    let containers = object["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    containers.into_iter().find(|container| container["name"] == name).context("no such container")
}

fn container_id(node: &Node, pod: &str, name: &str) -> Result<String> {
    let container = container(node, pod, name)?;
    let id = container["containerID"].as_str().and_then(|id| id.rsplit_once("//"));
    Ok(id.with_context(|| format!("{name} has no id: {container}"))?.1.to_owned())
}

/// What becomes of each text that a pause can show in the place of a status (e2e/images/hostile-pause/pause.c).
#[derive(Clone, Copy)]
enum Outcome {
    /// No status at all, as with the pauses of others: the agent counts itself.
    Foreign,
    /// It claims to be a status, and is refused for this reason.
    Refused(&'static str),
    /// It is a status, about the pod itself, and shows this many reaped.
    Believed(i64),
}

const TEXTS: [(&str, Outcome); 12] = [
    ("empty", Outcome::Foreign),
    ("blank", Outcome::Foreign),
    ("huge", Outcome::Foreign),
    ("garbage", Outcome::Foreign),
    ("changing", Outcome::Refused("StatusSumWrong")),
    ("latin", Outcome::Refused("StatusMalformed")),
    ("sumless", Outcome::Refused("StatusKeyMissing")),
    ("twice", Outcome::Refused("StatusKeyRepeated")),
    ("next-format", Outcome::Refused("StatusFormatUnknown")),
    ("past-64", Outcome::Refused("StatusMalformed")),
    ("negative", Outcome::Refused("StatusMalformed")),
    // The resource's numbers have a sign.
    ("past-63", Outcome::Believed(i64::MAX)),
];

fn hostile_statuses(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_bystander(node, "bystander-of-texts", |_| {
        with_sandbox_image(node, Image::HostilePause, || {
            for (text, _) in TEXTS {
                node.apply(&limited(pod(&format!("hostile-{text}"), &[]), "100m"))?;
            }
            let told = each_is_told(node);
            let names = TEXTS.map(|(text, _)| format!("hostile-{text}"));
            node.kubectl(["delete", "pod", "--wait"].into_iter().chain(names.iter().map(String::as_str)))?;
            told
        })
    })
}

fn each_is_told(node: &Node) -> Result<()> {
    retry::until("each row says what its pause shows", TIMEOUT, || {
        let mut wrong = Vec::new();
        for (text, outcome) in TEXTS {
            if let Err(error) = is_told(node, &format!("hostile-{text}"), outcome) {
                wrong.push(format!("{text}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })?;
    Agent::find(node)?.stays_small()
}

fn is_told(node: &Node, pod: &str, outcome: Outcome) -> Result<()> {
    let status = sandbox_health(node, pod)?["status"].take();
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let healthy = conditions.into_iter().find(|condition| condition["type"] == "Healthy");
    let healthy = healthy.context("it has no condition Healthy")?;
    let (healthy, reason) = (&healthy["status"], &healthy["reason"]);
    let counted = &status["processes"];
    match outcome {
        Outcome::Foreign => {
            ensure!(healthy == "True" && status["source"] == "ProcScan", "{status}");
            ensure!(counted["zombies"] == 0 && counted["reapedTotal"].is_null(), "{status}");
        }
        Outcome::Refused(expected) => {
            ensure!(healthy == "Unknown" && reason == expected && counted.is_null(), "{status}");
            ensure!(read_errors(node, expected)? > 0, "{expected} is not counted");
        }
        Outcome::Believed(reaped) => {
            ensure!(healthy == "True" && counted["reapedTotal"] == reaped, "{status}");
        }
    }
    Ok(())
}

fn pids_that_are_recycled_quickly(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_bystander(node, "bystander-of-recycling", |bystander| {
        let restored = few_pids(node)?;
        let recycler = limited(pod("recycler", &[hostile("recycler", &["recycle"])]), "500m");
        let outcome = create(node, &recycler).and_then(|recycler| {
            let (agent, begun) = (Agent::find(node)?, Instant::now());
            let before = agent.cpu_ticks()?;
            let forks = forks()?;
            thread::sleep(MEASURED / 2);
            let recycled = (self::forks()? - forks) / u64::from(FEW_PIDS);
            ensure!(recycled > 2, "each PID was given {recycled} times");
            right(node, bystander, 0)?;
            // Its PID, and those of all that end with it, are soon given to others.
            kill_pause(node, bystander)?;
            told_of(node, bystander, 1)?;
            thread::sleep(MEASURED.saturating_sub(begun.elapsed()));
            agent.stayed_small(before, begun)?;
            told_of(node, bystander, 1)?;
            let object = health_of(node, &recycler, "True", "AllWell")?;
            ensure!(object["status"]["restarts"] == 0, "{object}");
            Ok(())
        });
        if let Some(pid_max) = restored {
            on_node(node, &format!("echo {pid_max} > /proc/sys/kernel/pid_max"))?;
        }
        delete(node, "recycler")?;
        outcome?;
        told_of(node, bystander, 1)?;
        zombies_again(node, bystander)
    })
}

/// Processes that were started since the machine was (proc_stat(5)).
fn forks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let forks = stat.lines().find_map(|line| line.strip_prefix("processes ")).context("no processes")?;
    Ok(forks.trim().parse()?)
}

/// Where PID namespaces have a highest PID of their own (Linux 6.14), the node gets a low one, so that each is used again
/// within seconds. What it was before.
fn few_pids(node: &Node) -> Result<Option<String>> {
    if !kernel_is_at_least((6, 14))? {
        return Ok(None);
    }
    let machine = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    let before = on_node(
        node,
        &format!("cat /proc/sys/kernel/pid_max && echo {FEW_PIDS} > /proc/sys/kernel/pid_max"),
    )?;
    if fs::read_to_string("/proc/sys/kernel/pid_max")? != machine {
        fs::write("/proc/sys/kernel/pid_max", machine)?;
        bail!("the node's highest PID is the machine's");
    }
    Ok(Some(before.trim().to_owned()))
}

fn five_thousand_processes_named_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_bystander(node, "bystander-of-crowds", |bystander| {
        // This pause tells of a thousand zombies whose parents nobody can find, however often the agent looks for them.
        let liar = "hostile-lies";
        with_sandbox_image(node, Image::HostilePause, || create(node, &pod(liar, &[])).map(drop))?;
        health_of(node, liar, "False", "ZombiesAccumulating")?;
        // Each pod may have 1,024 processes on this node.
        let crowds: Vec<_> = (0..5).map(|number| format!("crowd-{number}")).collect();
        for (number, name) in crowds.iter().enumerate() {
            let crowd = pod(name, &[hostile("crowd", &["crowd", "1000"])]);
            node.apply(&if number % 2 == 0 { crowd } else { unshared(crowd)? })?;
        }
        let outcome = among_crowds(node, &crowds, bystander);
        let all = crowds.iter().map(String::as_str).chain([liar]);
        node.kubectl(["delete", "pod", "--wait"].into_iter().chain(all))?;
        outcome
    })
}

fn among_crowds(node: &Node, crowds: &[String], bystander: &str) -> Result<()> {
    retry::until("5,000 processes are called pause", TIMEOUT, || {
        let count = on_node(node, "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx pause || true")?;
        ensure!(count.trim().parse::<u32>()? >= 5000, "{count} are");
        Ok(())
    })?;
    Agent::find(node)?.stays_small()?;
    // As many as there are, and as few sandboxes as ever.
    for shared in crowds.iter().step_by(2) {
        let object = health_of(node, shared, "True", "AllWell")?;
        ensure!(object["status"]["restarts"] == 0, "{object}");
        let metrics = agent_metrics(node)?;
        let series = format!("sandbox_processes{{namespace=\"default\",pod=\"{shared}\"}} ");
        let counted =
            metrics.lines().find_map(|line| line.strip_prefix(&series)).context("it is not counted")?;
        ensure!(counted.parse::<u32>()? > 1000, "{shared} has {counted} processes");
    }
    for alone in crowds.iter().skip(1).step_by(2) {
        ensure!(sandbox_health(node, alone).is_err(), "{alone} has a row");
    }
    kill_pause(node, bystander)?;
    told_of(node, bystander, 1)?;
    zombies_again(node, bystander)
}

/// Calls `story` beside a pod with zombies, whose row must be right before and after, on the same agent.
fn with_bystander(node: &Node, name: &str, story: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let bystander = create(node, &pod(name, &[]))?;
    health_of(node, &bystander, "True", "AllWell")?;
    never_waits(node, &bystander, BYSTANDERS)?;
    right(node, &bystander, 0)?;
    let agent = Agent::find(node)?;
    story(&bystander)?;
    let restarts = sandbox_health(node, &bystander)?["status"]["restarts"].as_i64().context("no restarts")?;
    right(node, &bystander, restarts)?;
    ensure!(Agent::find(node)?.0 == agent.0, "another agent runs");
    delete(node, &bystander)
}

/// Those that it had went with the namespace.
fn zombies_again(node: &Node, bystander: &str) -> Result<()> {
    retry::until("its shell is back", TIMEOUT, || never_waits(node, bystander, BYSTANDERS).map(drop))
}

fn right(node: &Node, bystander: &str, restarts: i64) -> Result<()> {
    let object = health_of(node, bystander, "False", "ZombiesAccumulating")?;
    ensure!(object["status"]["restarts"] == restarts, "{object}");
    let zombies = zombies_of(node, bystander)?;
    ensure!(zombies == i64::from(BYSTANDERS), "its row shows {zombies} zombies");
    Ok(())
}

/// The pod with a limit of CPU for all its containers together, its pause included.
fn limited(mut pod: Value, cpu: &str) -> Value {
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["resources"] =
            json!({"limits": {"cpu": cpu, "memory": "64Mi"}, "requests": {"cpu": "10m"}});
    }
    pod
}

/// The process of the node's agent: its folder in /proc.
struct Agent(PathBuf);

impl Agent {
    fn find(node: &Node) -> Result<Self> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", node.init_pid()))?;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let of_this_node = || fs::read_link(path.join("ns/pid")).is_ok_and(|link| link == namespace);
            if command.starts_with(b"/sandbox-health\0agent\0") && of_this_node() {
                // What it held at most is told from here on (proc_pid_clear_refs(5)).
                fs::write(path.join("clear_refs"), "5")?;
                return Ok(Self(path));
            }
        }
        bail!("no agent runs")
    }

    /// Fields 14 and 15 of proc_pid_stat(5): in user and in kernel mode.
    fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.0.join("stat"))?;
        let fields: Vec<_> = stat.rsplit_once(") ").context("no name in stat")?.1.split(' ').collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }

    /// Measures it for a while in which nothing else is done.
    fn stays_small(&self) -> Result<()> {
        let (before, begun) = (self.cpu_ticks()?, Instant::now());
        thread::sleep(MEASURED);
        self.stayed_small(before, begun)
    }

    fn stayed_small(&self, before: u64, since: Instant) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "a share of a few hundred ticks")]
        let spent = (self.cpu_ticks()? - before) as f64;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        #[expect(clippy::cast_precision_loss, reason = "it is 100")]
        let percent = 100.0 * spent / (per_second as f64 * since.elapsed().as_secs_f64());
        let status = fs::read_to_string(self.0.join("status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        eprintln!("the agent took {percent:.2} % of a core and {peak} KiB at most");
        ensure!(
            percent < CPU_MAX && peak < MEMORY_MAX,
            "the agent took {percent:.2} % of a core and {peak} KiB at most"
        );
        Ok(())
    }
}
