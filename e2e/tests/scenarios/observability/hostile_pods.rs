//! Hostile pods: containers that pose as pause, pauses with false or arbitrary status texts, PIDs that are recycled quickly, and thousands
//! of processes. The objects of other pods stay correct and the agent stays small.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::build::Image;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    agent_metrics, create, delete, has_sandbox_health, kernel_is_at_least, kill_pause, leave_zombies,
    on_node, pause_pid_in_cgroup, pod, read_errors, sandbox_health, wait_for_health, wait_for_restarts,
    wait_for_zombies, with_sandbox_image,
};
use e2e::names::HOSTILE_PAUSE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 4] = [
    ("container_posing_as_pause_is_not_trusted", container_posing_as_pause_is_not_trusted),
    ("hostile_status_harms_no_other_object", hostile_status_harms_no_other_object),
    ("quickly_recycled_pids_are_not_confused", quickly_recycled_pids_are_not_confused),
    ("five_thousand_processes_named_pause_cost_little", five_thousand_processes_named_pause),
];

/// A posing container is watched for this time after the API shows that it runs. The agent reads every 5 s, so at least twice meanwhile.
const WATCHED: Duration = Duration::from_secs(11);
/// The agent's CPU time is measured for this time. It is counted in ticks of 10 ms.
const MEASURED: Duration = Duration::from_secs(10);
/// The agent's maximum share of a core meanwhile in percent, and its maximum memory in KiB: bounds of the cost that a pod can cause, far
/// above the agent's needs.
const CPU_MAX: f64 = 5.0;
const MEMORY_MAX: u64 = 32 * 1024;
/// The node's highest PID while PIDs are recycled.
const FEW_PIDS: u32 = 4096;
/// Zombies of an uninvolved pod, whose object must stay correct.
const BYSTANDERS: u32 = 7;

/// A container that runs the hostile pause with these arguments.
pub(super) fn hostile(name: &str, arguments: &[&str]) -> Value {
    let command: Vec<_> = std::iter::once("/pause").chain(arguments.iter().copied()).collect();
    json!({"name": name, "image": HOSTILE_PAUSE, "command": command})
}

fn unshared(mut pod: Value) -> Result<Value> {
    pod["spec"].as_object_mut().context("no spec")?.remove("shareProcessNamespace");
    Ok(pod)
}

fn container_posing_as_pause_is_not_trusted(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [shared, unshared_pod] = ["hostile-lies-shared", "hostile-lies-unshared"];
    posers_are_not_trusted(node, &[poser(shared, &[]), unshared(poser(unshared_pod, &[]))?])?;
    let object = wait_for_health(node, shared, "True", "SandboxHealthy")?;
    ensure!(object["status"]["processes"]["zombies"] == 0, "{object}");
    let id = container_id(node, shared, "poser")?;
    ensure!(object["status"]["sandbox"]["id"] != id.as_str(), "the container is taken for the sandbox");
    has_no_object(node, unshared_pod)?;
    delete(node, shared)?;
    delete(node, unshared_pod)
}

/// A pod with a container whose process poses as pause.
fn poser(name: &str, arguments: &[&str]) -> Value {
    pod(name, &[hostile("poser", arguments)])
}

/// Without a shared PID namespace the process of the container is PID 1 of a namespace, too, and called pause.
pub(super) fn unshared_poser_is_not_trusted(node: &Node, name: &str, arguments: &[&str]) -> Result<()> {
    posers_are_not_trusted(node, &[unshared(poser(name, arguments))?])?;
    has_no_object(node, name)?;
    delete(node, name)
}

fn has_no_object(node: &Node, pod: &str) -> Result<()> {
    ensure!(!has_sandbox_health(node, pod)?, "the healthy pod {pod} has an object");
    Ok(())
}

/// Watches pods from before they start. Their container `poser` shows a thousand zombies, and is killed once, so that the next one
/// poses while the API does not have its ID yet.
fn posers_are_not_trusted(node: &Node, pods: &[Value]) -> Result<()> {
    let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str().context("a pod without a name"));
    let names: Vec<_> = names.collect::<Result<_>>()?;
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    watch_posers(node, &names, 0)?;
    for name in &names {
        let poser = pause_pid_in_cgroup(&container_id(node, name, "poser")?)?;
        kill(Pid::from_raw(poser.cast_signed()), Signal::SIGKILL)?;
    }
    watch_posers(node, &names, 1)
}

/// Nothing that the posers show is reported until each has run for [`WATCHED`] after this number of restarts.
fn watch_posers(node: &Node, pods: &[&str], restarts: u64) -> Result<()> {
    let begun = Instant::now();
    let mut running_since = None;
    while running_since.is_none_or(|since: Instant| since.elapsed() < WATCHED) {
        let metrics = agent_metrics(node)?;
        for name in pods {
            no_lie_is_exposed(&metrics, name).with_context(|| format!("after {:?}", begun.elapsed()))?;
            if let Ok(object) = sandbox_health(node, name) {
                let status = &object["status"];
                let is_trusted = status["processes"]["zombies"].as_i64().unwrap_or_default() > 0
                    || status["restarts"].as_i64().unwrap_or_default() > 0;
                ensure!(!is_trusted, "after {:?}: {status}", begun.elapsed());
            }
        }
        if running_since.is_none() {
            let states: Vec<_> = pods.iter().map(|name| container(node, name, "poser").ok()).collect();
            let run = states
                .iter()
                .flatten()
                .filter(|poser| poser["restartCount"] == restarts && poser["state"]["running"].is_object());
            running_since = (run.count() == pods.len()).then(Instant::now);
            ensure!(begun.elapsed() < TIMEOUT, "they do not run after {restarts} restarts: {states:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    for name in pods {
        let found = container(node, name, "poser")?["restartCount"].clone();
        ensure!(found == restarts, "the poser of {name} was restarted {found} times");
    }
    Ok(())
}

fn no_lie_is_exposed(metrics: &str, pod: &str) -> Result<()> {
    for line in metrics.lines().filter(|line| line.contains(&format!("pod=\"{pod}\""))) {
        let (series, value) = line.rsplit_once(' ').context("a series without a value")?;
        let value: f64 = value.parse()?;
        let most = if series.starts_with("pod_sandbox_processes{") { 100.0 } else { 0.0 };
        let is_lie =
            ["pod_sandbox_zombie_processes{", "pod_sandbox_processes{", "pod_sandbox_restarts_total{"]
                .iter()
                .any(|of_interest| series.starts_with(of_interest) && value > most);
        ensure!(!is_lie, "{line}");
    }
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

/// The outcome of a text that pause has in its command line instead of a status (e2e/images/hostile-pause/pause.c).
#[derive(Clone, Copy)]
enum Outcome {
    /// The text is no status, as with third-party pause images: the agent counts by itself.
    ThirdParty,
    /// The text claims to be a status and is rejected for this reason.
    Rejected(&'static str),
    /// The text is a valid status with this number of reaped processes.
    Believed(i64),
}

const TEXTS: [(&str, Outcome); 12] = [
    ("empty", Outcome::ThirdParty),
    ("blank", Outcome::ThirdParty),
    ("huge", Outcome::ThirdParty),
    ("garbage", Outcome::ThirdParty),
    ("changing", Outcome::Rejected("StatusChecksumWrong")),
    ("latin", Outcome::Rejected("StatusMalformed")),
    ("sumless", Outcome::Rejected("StatusKeyMissing")),
    ("twice", Outcome::Rejected("StatusKeyRepeated")),
    ("next-format", Outcome::Rejected("StatusFormatUnknown")),
    ("past-64", Outcome::Rejected("StatusMalformed")),
    ("negative", Outcome::Rejected("StatusMalformed")),
    // The numbers of the resource are signed.
    ("past-63", Outcome::Believed(i64::MAX)),
];

fn hostile_status_harms_no_other_object(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_bystander(node, "bystander-of-status", |_| {
        with_sandbox_image(node, Image::HostilePause, || {
            for (text, _) in TEXTS {
                node.apply(&limited(pod(&format!("hostile-{text}"), &[]), "100m"))?;
            }
            let outcome = each_is_reported(node);
            let names = TEXTS.map(|(text, _)| format!("hostile-{text}"));
            node.kubectl(
                ["delete", "pod", "--wait=false"].into_iter().chain(names.iter().map(String::as_str)),
            )?;
            outcome
        })
    })
}

fn each_is_reported(node: &Node) -> Result<()> {
    retry::until("each object has the expected outcome", TIMEOUT, || {
        let mut wrong = Vec::new();
        for (text, outcome) in TEXTS {
            if let Err(error) = is_reported(node, &format!("hostile-{text}"), outcome) {
                wrong.push(format!("{text}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })?;
    Agent::find(node)?.stays_small()
}

fn is_reported(node: &Node, pod: &str, outcome: Outcome) -> Result<()> {
    let status = sandbox_health(node, pod)?["status"].take();
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let healthy = conditions.into_iter().find(|condition| condition["type"] == "Healthy");
    let healthy = healthy.context("it has no condition Healthy")?;
    let (healthy, reason) = (&healthy["status"], &healthy["reason"]);
    let counted = &status["processes"];
    match outcome {
        Outcome::ThirdParty => {
            ensure!(healthy == "True" && status["source"] == "ProcScan", "{status}");
            ensure!(counted["zombies"] == 0 && counted["reapedTotal"].is_null(), "{status}");
        }
        Outcome::Rejected(expected) => {
            ensure!(healthy == "Unknown" && reason == expected && counted.is_null(), "{status}");
            ensure!(read_errors(node, expected)? > 0, "{expected} is not counted");
        }
        Outcome::Believed(reaped) => {
            ensure!(healthy == "True" && counted["reapedTotal"] == reaped, "{status}");
        }
    }
    Ok(())
}

fn quickly_recycled_pids_are_not_confused(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_bystander(node, "bystander-of-recycling", |bystander| {
        let restored = few_pids(node)?;
        let recycler = limited(pod("recycler", &[hostile("recycler", &["recycle"])]), "500m");
        let outcome = create(node, &recycler).and_then(|recycler| {
            let (agent, begun) = (Agent::find(node)?, Instant::now());
            let before = agent.cpu_ticks()?;
            has_recycled(node, &recycler, 3)?;
            is_right(node, bystander, 0)?;
            // Its PID, and those of all processes that end with it, are reused soon.
            kill_pause(node, bystander)?;
            wait_for_restarts(node, bystander, 1)?;
            thread::sleep(MEASURED.saturating_sub(begun.elapsed()));
            agent.stayed_small(before, begun)?;
            has_recycled(node, &recycler, 6)?;
            wait_for_restarts(node, bystander, 1)?;
            let object = wait_for_health(node, &recycler, "True", "SandboxHealthy")?;
            ensure!(object["status"]["restarts"] == 0, "{object}");
            Ok(())
        });
        if let Some(pid_max) = restored {
            on_node(node, &format!("echo {pid_max} > /proc/sys/kernel/pid_max"))?;
        }
        delete(node, "recycler")?;
        outcome?;
        wait_for_restarts(node, bystander, 1)?;
        leave_zombies_again(node, bystander)
    })
}

/// Waits until the recycler has started `times` times as many processes as the node has PIDs: it logs a line for each 4,096.
fn has_recycled(node: &Node, recycler: &str, times: usize) -> Result<()> {
    retry::until(&format!("each PID was used {times} times"), TIMEOUT, || {
        let log = node.kubectl(["logs", recycler, "-c", "recycler"])?;
        let used = log.lines().count();
        ensure!(used >= times, "each was used {used} times");
        Ok(())
    })
}

/// Where PID namespaces have a highest PID of their own (Linux 6.14), sets a low one for the node, so that each PID is reused within
/// seconds; the value before. The machine's must not change.
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
        // This pause claims a thousand zombies; the agent keeps searching for their parents in vain.
        let liar = "hostile-lies";
        with_sandbox_image(node, Image::HostilePause, || create(node, &pod(liar, &[])).map(drop))?;
        wait_for_health(node, liar, "False", "ZombiesAccumulating")?;
        // Each pod may have 1,024 processes on this node.
        let crowds: Vec<_> = (0..5).map(|number| format!("crowd-{number}")).collect();
        for (number, name) in crowds.iter().enumerate() {
            let crowd = pod(name, &[hostile("crowd", &["crowd", "1000"])]);
            node.apply(&if number % 2 == 0 { crowd } else { unshared(crowd)? })?;
        }
        let outcome = among_crowds(node, &crowds, bystander);
        let all = crowds.iter().map(String::as_str).chain([liar]);
        node.kubectl(["delete", "pod", "--wait=false"].into_iter().chain(all))?;
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
    // The processes are counted, and none is taken for a sandbox.
    for shared in crowds.iter().step_by(2) {
        let object = wait_for_health(node, shared, "True", "SandboxHealthy")?;
        ensure!(object["status"]["restarts"] == 0, "{object}");
        // Pause scans every 10 s.
        let series = format!("pod_sandbox_processes{{namespace=\"default\",pod=\"{shared}\",");
        retry::until("all its processes are counted", TIMEOUT, || {
            let metrics = agent_metrics(node)?;
            let counted = metrics.lines().find(|line| line.starts_with(&series));
            let (_, counted) = counted.and_then(|line| line.rsplit_once(' ')).context("it is not counted")?;
            let counted: u32 = counted.parse()?;
            ensure!(counted > 1000, "{shared} has {counted} processes");
            Ok(())
        })?;
    }
    for alone in crowds.iter().skip(1).step_by(2) {
        ensure!(!has_sandbox_health(node, alone)?, "{alone} has an object");
    }
    kill_pause(node, bystander)?;
    wait_for_restarts(node, bystander, 1)?;
    leave_zombies_again(node, bystander)
}

/// Calls `act` beside a pod with zombies, whose object must be right before and after, with the same agent.
fn with_bystander(node: &Node, name: &str, act: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let bystander = create(node, &pod(name, &[]))?;
    wait_for_health(node, &bystander, "True", "SandboxHealthy")?;
    leave_zombies(node, &bystander, BYSTANDERS)?;
    is_right(node, &bystander, 0)?;
    let agent = Agent::find(node)?;
    act(&bystander)?;
    let restarts = sandbox_health(node, &bystander)?["status"]["restarts"].as_i64().context("no restarts")?;
    is_right(node, &bystander, restarts)?;
    ensure!(Agent::find(node)?.0 == agent.0, "another agent runs");
    delete(node, &bystander)
}

/// Its earlier zombies ended with the PID namespace.
fn leave_zombies_again(node: &Node, bystander: &str) -> Result<()> {
    retry::until("its shell is back", TIMEOUT, || leave_zombies(node, bystander, BYSTANDERS).map(drop))
}

fn is_right(node: &Node, bystander: &str, restarts: i64) -> Result<()> {
    let object = wait_for_zombies(node, bystander, BYSTANDERS.into())?;
    ensure!(object["status"]["restarts"] == restarts, "{object}");
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

/// The process of the node's agent: its directory in /proc.
struct Agent(PathBuf);

impl Agent {
    fn find(node: &Node) -> Result<Self> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", node.init_pid()))?;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let of_this_node = || fs::read_link(path.join("ns/pid")).is_ok_and(|link| link == namespace);
            if command.starts_with(b"/sandbox-health\0agent\0") && of_this_node() {
                // Resets its peak memory (proc_pid_clear_refs(5)).
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

    /// Measures it while the test does nothing else.
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
