//! The randomized restart test: sandboxes are killed at random, agents and controllers are killed and deleted at random, and the API
//! server is stopped. In the end objects and Events must have as many restarts as there were kills, and the containers no fewer. At least
//! one kill of an agent, one of a controller and one outage of the API server are scheduled. The test must not kill a pod's sandbox more
//! than once while no agent runs: such kills cannot be counted.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    Member, create_fleet, delete_fleet, http_get, in_release, kill_in_pod, pods_of, restart_events_by_pod,
    restart_number, sandbox_health, sandbox_healths, wait_for_container_restarts,
};
use e2e::runner::arguments as flags;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Cluster, Scenario};
use e2e::kube::processes::{self, Process};

pub(super) const SCENARIOS: [Scenario; 1] =
    [("randomized_kills_equal_restarts_and_events", randomized_kills_equal_restarts_and_events)];

const FLEET: &str = "chaos";

/// The size of a run. The default of `--kills` is its number of kills.
struct Size {
    pods: usize,
    kills: usize,
}

const GATE: Size = Size { pods: 12, kills: 40 };
const LONG: Size = Size { pods: 20, kills: 200 };

/// At most so many kills lie between two outages of the API server.
const KILLS_PER_OUTAGE: usize = 100;
const OUTAGE: Duration = Duration::from_secs(20);
/// The lifetime of a new sandbox before it may be killed.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// Kills without an Event yet: Events are sent at a limited rate.
const MAX_UNREPORTED: usize = 10;
/// The same for one pod: the history of an object keeps five.
const MAX_UNREPORTED_OF_POD: usize = 5;
/// Between actions, at most: on average there is less than a kill a second.
const MAX_PAUSE_MS: usize = 2000;
/// Between reads of the API.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// SplitMix64 (Steele, Lea, Flood 2014): a seed gives the same numbers everywhere. What they lead to depends on timing, too.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap_or_default()
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A pod whose sandbox is killed repeatedly.
struct Victim {
    pod: Member,
    kills: usize,
    /// The pause that was killed last, which may take a moment to end.
    killed: Option<u32>,
    /// Restarts in its object at the last refresh.
    reported: usize,
    /// Events of restarts at the last refresh.
    announced: usize,
}

/// From before an agent is killed until the next one has found all pods.
#[derive(Default)]
struct Absence {
    /// Since when the new agent exposes all pods.
    over: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    by_sigterm: usize,
    agents_killed: usize,
    agents_deleted: usize,
    controllers_killed: usize,
    controllers_deleted: usize,
    outages: usize,
}

/// How a pod of agent or controller ended.
enum End {
    Killed,
    Deleted,
}

struct Run<'a> {
    node: &'a Node,
    /// Kills of sandboxes after which the run ends.
    goal: usize,
    random: Random,
    victims: Vec<Victim>,
    /// Pods of agent and controller at the last refresh: while the API server is stopped they cannot be listed.
    agents: Vec<Value>,
    controllers: Vec<Value>,
    absence: Option<Absence>,
    outage: Option<Instant>,
    refreshed: Instant,
    killed: Instant,
    tally: Tally,
}

fn randomized_kills_equal_restarts_and_events(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let size = if flags::is_long() { LONG } else { GATE };
    let goal = flags::kills()?.unwrap_or(size.kills);
    let by_clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = flags::seed()?.unwrap_or(by_clock);
    eprintln!("{goal} sandboxes are killed at random (--seed {seed})");
    let fleet = create_fleet(node, FLEET, size.pods)?;
    let mut run = Run::new(node, goal, Random(seed), fleet)?;
    let begun = Instant::now();
    let outcome = run.kill_all().and_then(|()| run.settle());
    if run.outage.is_some() {
        run.end_outage()?;
    }
    let tally = format!("{:?} in {} s, with the seed {seed}", run.tally, begun.elapsed().as_secs());
    eprintln!("{tally}");
    outcome.context(tally)?;
    delete_fleet(node, FLEET)
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, goal: usize, random: Random, fleet: Vec<Member>) -> Result<Self> {
        let victim = |pod| Victim { pod, kills: 0, killed: None, reported: 0, announced: 0 };
        let now = Instant::now();
        Ok(Self {
            node,
            goal,
            random,
            victims: fleet.into_iter().map(victim).collect(),
            agents: pods_of(node, "agent")?,
            controllers: pods_of(node, "controller")?,
            absence: None,
            outage: None,
            refreshed: now,
            killed: now,
            tally: Tally::default(),
        })
    }

    fn kill_all(&mut self) -> Result<()> {
        while self.tally.kills < self.goal || self.has_scheduled() {
            if self.outage.is_some_and(|since| since.elapsed() >= OUTAGE) {
                self.end_outage()?;
            }
            if self.refreshed.elapsed() >= REFRESH_INTERVAL {
                self.refresh()?;
            }
            self.act()?;
            ensure!(self.killed.elapsed() < TIMEOUT * 2, "nothing can be killed: {}", self.waits_for());
            thread::sleep(Duration::from_millis(self.random.below(MAX_PAUSE_MS) as u64));
        }
        Ok(())
    }

    /// After a quarter of the kills an agent is killed at the latest, after three quarters a controller.
    fn agent_kill_is_due(&self) -> bool {
        self.tally.agents_killed == 0 && self.tally.kills >= self.goal / 4
    }

    fn controller_kill_is_due(&self) -> bool {
        self.tally.controllers_killed == 0 && self.tally.kills >= self.goal * 3 / 4
    }

    fn outage_is_due(&self) -> bool {
        let apart = KILLS_PER_OUTAGE.min(self.goal);
        let next = (2 * self.tally.outages + 1) * apart / 2;
        next < self.goal && self.tally.kills >= next && self.outage.is_none()
    }

    fn has_scheduled(&self) -> bool {
        self.agent_kill_is_due() || self.controller_kill_is_due() || self.outage_is_due()
    }

    fn waits_for(&self) -> String {
        let behind = |victim: &&Victim| victim.announced < victim.kills;
        let waits =
            self.victims.iter().filter(behind).map(|Victim { pod, kills, reported, announced, .. }| {
                format!("{}: {kills} kills, {reported} restarts, {announced} Events", pod.name)
            });
        format!("absence {}, {:?}", self.absence.is_some(), waits.collect::<Vec<_>>())
    }

    /// Takes one action. A scheduled one comes first, and is retried until it is possible.
    fn act(&mut self) -> Result<()> {
        if self.outage_is_due() {
            self.node.stop_component(Component::Apiserver)?;
            self.outage = Some(Instant::now());
            self.tally.outages += 1;
        }
        if self.agent_kill_is_due() {
            return self.end_agent(true);
        }
        if self.controller_kill_is_due() {
            return self.end_controller(true);
        }
        let kill = !self.random.one_in(3);
        match self.random.below(100) {
            0..6 => self.end_agent(kill),
            6..12 => self.end_controller(kill),
            _ => self.kill_a_sandbox(),
        }
    }

    fn kill_a_sandbox(&mut self) -> Result<()> {
        let unreported: usize =
            self.victims.iter().map(|victim| victim.kills.saturating_sub(victim.announced)).sum();
        if unreported >= MAX_UNREPORTED {
            return Ok(());
        }
        let processes = processes::all()?;
        let mut open = Vec::new();
        for (index, victim) in self.victims.iter().enumerate() {
            let absent = self.absence.is_some() && victim.reported < victim.kills;
            let unreported = victim.kills.saturating_sub(victim.announced);
            if let Some(pause) = victim.pause(&processes)
                && !absent
                && unreported < MAX_UNREPORTED_OF_POD
                && pause.lived()? >= MIN_LIFETIME
                // On a busy machine the agent may need longer than that.
                && (self.absence.is_some() || pause.is_observed()?)
            {
                open.push((index, pause));
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let (index, pause) = open[self.random.below(open.len())];
        let by_sigterm = self.random.one_in(4);
        pause.signal(if by_sigterm { Signal::SIGTERM } else { Signal::SIGKILL })?;
        let victim = &mut self.victims[index];
        victim.kills += 1;
        victim.killed = Some(pause.pid);
        self.tally.kills += 1;
        self.tally.by_sigterm += usize::from(by_sigterm);
        self.killed = Instant::now();
        Ok(())
    }

    /// Kills the agent or deletes its pod. What it has observed and not written is lost with it, so it must not know of more than one
    /// restart of a pod.
    fn end_agent(&mut self, kill: bool) -> Result<()> {
        if self.victims.iter().any(|victim| victim.kills > victim.reported + 1) {
            return Ok(());
        }
        let Some((name, uid)) = self.agents.first().and_then(identity) else { return Ok(()) };
        self.absence = Some(Absence::default());
        match self.end("agent", &name, &uid, kill)? {
            Some(End::Killed) => self.tally.agents_killed += 1,
            Some(End::Deleted) => self.tally.agents_deleted += 1,
            None => {}
        }
        Ok(())
    }

    fn end_controller(&mut self, kill: bool) -> Result<()> {
        let index = self.random.below(self.controllers.len().max(1));
        let Some((name, uid)) = self.controllers.get(index).and_then(identity) else { return Ok(()) };
        match self.end("controller", &name, &uid, kill)? {
            Some(End::Killed) => self.tally.controllers_killed += 1,
            Some(End::Deleted) => self.tally.controllers_deleted += 1,
            None => {}
        }
        Ok(())
    }

    /// `None` when it does not run just now.
    fn end(&mut self, component: &str, name: &str, uid: &str, kill: bool) -> Result<Option<End>> {
        if kill || self.outage.is_some() {
            return Ok(kill_in_pod(component, uid).is_ok().then_some(End::Killed));
        }
        in_release(self.node, &["delete", "pod", name, "--wait=false", "--ignore-not-found"])?;
        // The next refresh finds the pod that replaces it.
        self.refresh()?;
        Ok(Some(End::Deleted))
    }

    fn end_outage(&mut self) -> Result<()> {
        self.node.start_component(Component::Apiserver)?;
        self.outage = None;
        retry::until("the API server is back", TIMEOUT, || self.node.kubectl(["get", "--raw", "/readyz"]))?;
        Ok(())
    }

    fn refresh(&mut self) -> Result<()> {
        self.refreshed = Instant::now();
        if self.outage.is_none() {
            let messages = restart_events_by_pod(self.node)?;
            for object in sandbox_healths(self.node)? {
                let is_its_pod = |victim: &&mut Victim| object["spec"]["podUID"] == *victim.pod.uid;
                if let Some(victim) = self.victims.iter_mut().find(is_its_pod) {
                    victim.reported =
                        usize::try_from(object["status"]["restarts"].as_u64().unwrap_or_default())?;
                    victim.announced = messages.get(&victim.pod.uid).map_or(0, Vec::len);
                }
            }
            self.agents = pods_of(self.node, "agent")?;
            self.controllers = pods_of(self.node, "controller")?;
        }
        if self.absence.is_some() {
            let known = self.agent_knows_all()?;
            let absence = self.absence.get_or_insert_default();
            absence.over = known.then(|| absence.over.unwrap_or_else(Instant::now));
            if absence.over.is_some_and(|since| since.elapsed() >= MIN_LIFETIME) {
                self.absence = None;
            }
        }
        Ok(())
    }

    /// Whether an agent exposes for each pod the start of its present sandbox.
    fn agent_knows_all(&self) -> Result<bool> {
        let Some(address) = self.agents.first().and_then(|pod| pod["status"]["podIP"].as_str()) else {
            return Ok(false);
        };
        // It may not answer.
        let Ok(metrics) = http_get(self.node, address, "/metrics") else { return Ok(false) };
        let (processes, booted) = (processes::all()?, processes::booted_at()?);
        Ok(self.victims.iter().all(|victim| {
            let shown = start_shown(&metrics, &victim.pod.name);
            let started = victim.pause(&processes).map(|pause| booted + pause.started.as_secs_f64());
            // Whole seconds are exposed.
            matches!((shown, started), (Some(shown), Some(started)) if (-0.1..1.1).contains(&(started - shown)))
        }))
    }

    /// Every kill must be reported, and nothing else.
    fn settle(&mut self) -> Result<()> {
        if let Some(since) = self.outage {
            thread::sleep(OUTAGE.saturating_sub(since.elapsed()));
            self.end_outage()?;
        }
        retry::until("all kills are reported", TIMEOUT * 2, || {
            self.refresh()?;
            let behind = self.victims.iter().any(|victim| victim.announced != victim.kills);
            ensure!(!behind, "{}", self.waits_for());
            Ok(())
        })?;
        // An Event that is repeated would be there by now.
        thread::sleep(Duration::from_secs(10));
        let messages = restart_events_by_pod(self.node)?;
        for Victim { pod, kills, .. } in &self.victims {
            let status = sandbox_health(self.node, &pod.name)?["status"].clone();
            ensure!(status["restarts"] == *kills, "{kills} kills of {}: {status}", pod.name);
            let history = status["history"].as_array().cloned().unwrap_or_default();
            let reasons = history.iter().chain([&status["lastRestart"]]).map(|restart| &restart["reason"]);
            let fits = |reason: &Value| *reason == "PauseExited" || *reason == "Replaced";
            ensure!(*kills == 0 || reasons.into_iter().all(fits), "{status}");
            let messages = messages.get(&pod.uid).map(Vec::as_slice).unwrap_or_default();
            let numbers: BTreeSet<_> =
                messages.iter().filter_map(|message| restart_number(message)).collect();
            ensure!(
                messages.len() == *kills && numbers == (1..=*kills).collect(),
                "{kills} kills of {}: {messages:?}",
                pod.name
            );
            wait_for_container_restarts(self.node, &pod.name, *kills as u64)?;
        }
        Ok(())
    }
}

impl Victim {
    /// The pause of its sandbox once the pod's container runs beside it: otherwise the container would not be restarted.
    fn pause<'p>(&self, processes: &'p [Process]) -> Option<&'p Process> {
        let mut own = processes.iter().filter(|process| process.is_of(&self.pod.uid));
        let pause = own.clone().find(|process| process.is_pause() && Some(process.pid) != self.killed)?;
        own.any(|process| process.name == "sleep").then_some(pause)
    }
}

fn identity(pod: &Value) -> Option<(String, String)> {
    let text = |field: &str| pod["metadata"][field].as_str().map(str::to_owned);
    Some((text("name")?, text("uid")?))
}

/// When the sandbox of a pod started, in the agent's metrics.
fn start_shown(metrics: &str, pod: &str) -> Option<f64> {
    let of_pod = format!("pod=\"{pod}\"");
    let series = metrics
        .lines()
        .find(|line| line.starts_with("pod_sandbox_start_time_seconds{") && line.contains(&of_pod))?;
    series.rsplit(' ').next()?.parse().ok()
}
