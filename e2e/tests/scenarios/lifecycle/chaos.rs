//! Sandboxes killed by chance, while agent and controller are killed by chance and the API server goes twice: in the end rows
//! and Events must have as many restarts as there were kills, and the containers no fewer. The one thing that it must not do
//! is what nobody could count: kill a pod's sandbox more than once while no agent is there.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Component, Node};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::sandbox_health;
use e2e::runner::arguments as flags;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Cluster;
use e2e::kube::processes::{self, Process};
use e2e::kube::{
    Member, containers_restarted, create_fleet, delete_fleet, http_get, in_release, kill_in_pod, pods_of,
};
use e2e::kube::{events_by_pod, number_of};

const FLEET: &str = "chaos";
const PODS: usize = 20;
/// Unless told otherwise.
const KILLS: usize = 200;
/// The API server goes once in so many kills.
const KILLS_PER_OUTAGE: usize = 100;
const OUTAGE: Duration = Duration::from_secs(20);
/// What a new sandbox lives at least, before it is killed in its turn.
const LIFE: Duration = Duration::from_secs(1);
/// Kills that are not told of yet. The Events of a node have a budget; past it there is one for many.
const UNTOLD: usize = 10;
/// The same, of one pod: the history of a row keeps five.
const UNTOLD_OF_POD: usize = 5;
/// Between deeds, at most: on average there is less than a kill a second, or Events would be summed up.
const DEEDS_APART_MS: usize = 2000;
/// Between looks at what the API says.
const LOOK: Duration = Duration::from_secs(2);

/// SplitMix64 (Steele, Lea, Flood 2014): a seed gives the same numbers everywhere. What they lead to depends on timing, too.
struct Chance(u64);

impl Chance {
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

/// A pod whose sandbox is killed again and again.
struct Victim {
    pod: Member,
    kills: usize,
    /// The pause that was killed last, which may take a moment to end.
    killed: Option<u32>,
    /// Restarts that its row had when last looked at.
    reported: usize,
    /// Of these, how many were told of by Events.
    told: usize,
}

/// From before an agent is killed until another has found all pods.
#[derive(Default)]
struct Absence {
    /// Since when the new agent is seen to know all pods.
    over: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    by_sigterm: usize,
    agents: usize,
    controllers: usize,
    outages: usize,
}

struct Run<'a> {
    node: &'a Node,
    chance: Chance,
    victims: Vec<Victim>,
    /// Pods of agent and controller as last looked at: those cannot be asked for while the API server is away.
    agents: Vec<Value>,
    controllers: Vec<Value>,
    absence: Option<Absence>,
    outage: Option<Instant>,
    looked: Instant,
    killed: Instant,
    tally: Tally,
}

pub(super) fn rows_and_events_equal_the_kills(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let kills = flags::kills()?.unwrap_or(KILLS);
    let by_clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = flags::seed()?.unwrap_or(by_clock);
    eprintln!("{kills} sandboxes are killed by chance (--seed {seed})");
    let fleet = create_fleet(node, FLEET, PODS)?;
    let mut run = Run::new(node, Chance(seed), fleet)?;
    let begun = Instant::now();
    let outcome = run.until(kills).and_then(|()| run.settle());
    if run.outage.is_some() {
        run.end_outage()?;
    }
    let tally = format!("{:?} in {} s, with the seed {seed}", run.tally, begun.elapsed().as_secs());
    eprintln!("{tally}");
    outcome.context(tally)?;
    delete_fleet(node, FLEET)
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, chance: Chance, fleet: Vec<Member>) -> Result<Self> {
        let victim = |pod| Victim { pod, kills: 0, killed: None, reported: 0, told: 0 };
        let now = Instant::now();
        Ok(Self {
            node,
            chance,
            victims: fleet.into_iter().map(victim).collect(),
            agents: pods_of(node, "agent")?,
            controllers: pods_of(node, "controller")?,
            absence: None,
            outage: None,
            looked: now,
            killed: now,
            tally: Tally::default(),
        })
    }

    fn until(&mut self, kills: usize) -> Result<()> {
        while self.tally.kills < kills {
            if self.outage.is_some_and(|since| since.elapsed() >= OUTAGE) {
                self.end_outage()?;
            }
            if self.looked.elapsed() >= LOOK {
                self.look()?;
            }
            self.act()?;
            ensure!(self.killed.elapsed() < TIMEOUT * 2, "nothing can be killed: {}", self.waits_for());
            thread::sleep(Duration::from_millis(self.chance.below(DEEDS_APART_MS) as u64));
        }
        ensure!(
            kills < KILLS || (self.tally.agents > 0 && self.tally.controllers > 0 && self.tally.outages >= 2),
            "chance was kind: {:?}",
            self.tally
        );
        Ok(())
    }

    fn waits_for(&self) -> String {
        let behind = |victim: &&Victim| victim.told < victim.kills;
        let waits =
            self.victims.iter().filter(behind).map(|Victim { pod, kills, reported, told, .. }| {
                format!("{}: {kills} kills, {reported} restarts, {told} told", pod.name)
            });
        format!("absence {}, {:?}", self.absence.is_some(), waits.collect::<Vec<_>>())
    }

    /// Does one thing to somebody.
    fn act(&mut self) -> Result<()> {
        let due = (2 * self.tally.outages + 1) * KILLS_PER_OUTAGE / 2;
        if self.tally.kills >= due && self.outage.is_none() {
            self.node.stop_component(Component::Apiserver)?;
            self.outage = Some(Instant::now());
            self.tally.outages += 1;
        }
        let kill = !self.chance.one_in(3);
        match self.chance.below(100) {
            0..6 => self.take_agent(kill),
            6..12 => self.take_controller(kill),
            _ => self.kill_a_sandbox(),
        }
    }

    fn kill_a_sandbox(&mut self) -> Result<()> {
        let untold: usize = self.victims.iter().map(|victim| victim.kills.saturating_sub(victim.told)).sum();
        if untold >= UNTOLD {
            return Ok(());
        }
        let processes = processes::all()?;
        let mut open = Vec::new();
        for (index, victim) in self.victims.iter().enumerate() {
            let absent = self.absence.is_some() && victim.reported < victim.kills;
            let untold = victim.kills.saturating_sub(victim.told);
            if let Some(pause) = victim.pause(&processes)
                && !absent
                && untold < UNTOLD_OF_POD
                && pause.lived()? >= LIFE
            {
                open.push((index, pause));
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let (index, pause) = open[self.chance.below(open.len())];
        let polite = self.chance.one_in(4);
        pause.signal(if polite { Signal::SIGTERM } else { Signal::SIGKILL })?;
        let victim = &mut self.victims[index];
        victim.kills += 1;
        victim.killed = Some(pause.pid);
        self.tally.kills += 1;
        self.tally.by_sigterm += usize::from(polite);
        self.killed = Instant::now();
        Ok(())
    }

    /// Kills the agent, or has its pod deleted. What it has seen and not written dies with it, so it must not know of more than
    /// one restart of a pod.
    fn take_agent(&mut self, kill: bool) -> Result<()> {
        if self.victims.iter().any(|victim| victim.kills > victim.reported + 1) {
            return Ok(());
        }
        let Some((name, uid)) = self.agents.first().and_then(identity) else { return Ok(()) };
        self.absence = Some(Absence::default());
        self.tally.agents += usize::from(self.take("agent", &name, &uid, kill)?);
        Ok(())
    }

    fn take_controller(&mut self, kill: bool) -> Result<()> {
        let index = self.chance.below(self.controllers.len().max(1));
        let Some((name, uid)) = self.controllers.get(index).and_then(identity) else { return Ok(()) };
        self.tally.controllers += usize::from(self.take("controller", &name, &uid, kill)?);
        Ok(())
    }

    /// False when it is not there just now.
    fn take(&mut self, component: &str, name: &str, uid: &str, kill: bool) -> Result<bool> {
        if kill || self.outage.is_some() {
            return Ok(kill_in_pod(component, uid).is_ok());
        }
        in_release(self.node, &["delete", "pod", name, "--wait=false", "--ignore-not-found"])?;
        // The next look finds the pod that takes its place.
        self.look()?;
        Ok(true)
    }

    fn end_outage(&mut self) -> Result<()> {
        self.node.start_component(Component::Apiserver)?;
        self.outage = None;
        retry::until("the API server is back", TIMEOUT, || self.node.kubectl(["get", "--raw", "/readyz"]))?;
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        self.looked = Instant::now();
        if self.outage.is_none() {
            let rows = self.node.get(&["sandboxhealths"])?;
            for row in rows["items"].as_array().into_iter().flatten() {
                let number = |field: &str| usize::try_from(row["status"][field].as_u64().unwrap_or_default());
                let of_row = |victim: &&mut Victim| row["spec"]["podUID"] == *victim.pod.uid;
                if let Some(victim) = self.victims.iter_mut().find(of_row) {
                    (victim.reported, victim.told) = (number("restarts")?, number("announcedRestarts")?);
                }
            }
            self.agents = pods_of(self.node, "agent")?;
            self.controllers = pods_of(self.node, "controller")?;
        }
        if self.absence.is_some() {
            let known = self.agent_knows_all()?;
            let absence = self.absence.get_or_insert_default();
            absence.over = known.then(|| absence.over.unwrap_or_else(Instant::now));
            if absence.over.is_some_and(|since| since.elapsed() >= LIFE) {
                self.absence = None;
            }
        }
        Ok(())
    }

    /// Whether an agent shows for each pod the start of the very sandbox that it has.
    fn agent_knows_all(&self) -> Result<bool> {
        let Some(address) = self.agents.first().and_then(|pod| pod["status"]["podIP"].as_str()) else {
            return Ok(false);
        };
        // There may be none that answers.
        let Ok(metrics) = http_get(self.node, address, "/metrics") else { return Ok(false) };
        let (processes, booted) = (processes::all()?, processes::booted_at()?);
        Ok(self.victims.iter().all(|victim| {
            let shown = start_shown(&metrics, &victim.pod.name);
            let started = victim.pause(&processes).map(|pause| booted + pause.started.as_secs_f64());
            // Whole seconds are shown.
            matches!((shown, started), (Some(shown), Some(started)) if (-0.1..1.1).contains(&(started - shown)))
        }))
    }

    /// All that happened must be told, and nothing else.
    fn settle(&mut self) -> Result<()> {
        if let Some(since) = self.outage {
            thread::sleep(OUTAGE.saturating_sub(since.elapsed()));
            self.end_outage()?;
        }
        retry::until("all kills are told of", TIMEOUT * 2, || {
            self.look()?;
            let behind = self.victims.iter().any(|victim| victim.told != victim.kills);
            ensure!(!behind, "{}", self.waits_for());
            Ok(())
        })?;
        // What would be told twice has had its time.
        thread::sleep(Duration::from_secs(10));
        let told = events_by_pod(self.node)?;
        for Victim { pod, kills, .. } in &self.victims {
            let status = sandbox_health(self.node, &pod.name)?["status"].clone();
            let counted = [&status["restarts"], &status["announcedRestarts"]];
            ensure!(counted.iter().all(|count| **count == *kills), "{kills} kills of {}: {status}", pod.name);
            let history = status["history"].as_array().cloned().unwrap_or_default();
            let reasons = history.iter().chain([&status["lastRestart"]]).map(|restart| &restart["reason"]);
            let fits = |reason: &Value| *reason == "PauseExited" || *reason == "Replaced";
            ensure!(*kills == 0 || reasons.into_iter().all(fits), "{status}");
            let told = told.get(&pod.uid).map(Vec::as_slice).unwrap_or_default();
            let numbers: BTreeSet<_> = told.iter().filter_map(|note| number_of(note)).collect();
            ensure!(
                told.len() == *kills && numbers == (1..=*kills).collect(),
                "{kills} kills of {}: {told:?}",
                pod.name
            );
            containers_restarted(self.node, &pod.name, *kills as u64)?;
        }
        Ok(())
    }
}

impl Victim {
    /// The pause of its sandbox, once the pod's container runs beside it: else the container would not be restarted.
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

/// When the sandbox of a pod started, as the agent shows it to Prometheus.
fn start_shown(metrics: &str, pod: &str) -> Option<f64> {
    let of_pod = format!("pod=\"{pod}\"");
    let series = metrics
        .lines()
        .find(|line| line.starts_with("sandbox_start_time_seconds{") && line.contains(&of_pod))?;
    series.rsplit(' ').next()?.parse().ok()
}
