//! The agent, one a node: watches the node's pods and their pause processes, and reports. This file wires its parts and
//! waits for what happens. What is made of it is decided elsewhere: which process is which pod's sandbox in `roster` and `walk`,
//! what a pod's status is in `record`, what is asked of the API for it and when in `watched` and `due`, and who leaves zombies in
//! `census`.

pub mod census;
pub mod cgroup;
pub mod due;
pub mod ending;
pub mod metrics;
pub mod pause;
pub mod pods;
pub mod proc;
pub mod record;
pub mod requests;
pub mod roster;
#[cfg(test)]
mod scenarios;
pub mod walk;
pub mod watched;

use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::{ApiError, CRD_MISSING, WriteTold, brief, is_forbidden, write_told, writes_may_work};
use crate::backoff;
use crate::budget::Budget;
use crate::report::{self, Row};
use crate::resource::SandboxHealth;
use crate::scope::WatchPods;
use crate::serve::Readiness;
use ending::{Ending, ended};
use metrics::AgentMetrics;
use pods::PodFacts;
use proc::Proc;
use record::ZombieThreshold;
use roster::{Answer, Ask, Held, Request, Roster};

/// From a change that asks for a search of /proc to the search: one change seldom comes alone.
const FIND_SOON: Duration = Duration::from_millis(200);
/// Between searches for the sandbox that follows one that ended.
const FIND_AGAIN: Duration = Duration::from_millis(200);
/// For so long: the kubelet takes a second or two, unless it cannot.
const FIND_SHORTLY: Duration = Duration::from_secs(30);
/// Between lists of the node's objects. They find out what no write does: that an object was deleted, or all of them.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// Pods of a page of the list: a page is in memory as a whole, and a pod may have some 10 kB.
const PODS_AT_ONCE: u32 = 10;
/// Requests that may be made at once after a quiet time, so that a node with a storm of restarts stays polite.
const REQUESTS_AT_ONCE: u32 = 20;
/// One more may be made each.
const REQUEST_EVERY: SignedDuration = SignedDuration::from_millis(200);
/// From a list that failed to the next, at most: all agents fail at once when the API server goes.
const LIST_AGAIN: Duration = Duration::from_secs(5);

/// Names of what the agent waits for at its start.
const OBJECTS: &str = "SandboxHealth objects";
const PODS: &str = "pods";

/// What the agent is told.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Name of the node that it runs on.
    pub node: String,
    /// The proc(5) that it reads.
    pub proc: Proc,
    /// Between readings of all known sandboxes.
    pub read_every: Duration,
    /// How many zombies are too many.
    pub threshold: ZombieThreshold,
    /// Whose sandboxes are watched.
    pub watch_pods: WatchPods,
}

/// Runs until the process is told to end.
pub async fn run(
    options: AgentOptions,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<AgentMetrics>,
) -> std::io::Result<()> {
    readiness.expect(OBJECTS);
    readiness.expect(PODS);
    let at_start = list_objects(&client, &options.node, &readiness).await;
    let roster = Roster::new(options.proc.clone(), options.threshold, at_start);
    let api: Api<Pod> = Api::all(client.clone());
    let of_node =
        watcher::Config::default().fields(&format!("spec.nodeName={}", options.node)).page_size(PODS_AT_ONCE);
    let pods = watcher(api, of_node).default_backoff();
    let agent = Agent {
        client,
        readiness,
        metrics,
        roster,
        budget: Budget::new(REQUESTS_AT_ONCE, REQUEST_EVERY, Timestamp::now()),
        clock: Timestamp::now,
        deaths: FuturesUnordered::new(),
        requests: FuturesUnordered::new(),
        watch_pods: options.watch_pods,
        find_at: Some(Instant::now()),
        last_death: None,
        listed: HashSet::new(),
        refused: HashSet::new(),
    };
    let lists = lists(agent.client.clone(), options.node, agent.clock);
    agent.watch(std::pin::pin!(pods), std::pin::pin!(lists), options.read_every).await
}

/// The node's objects, once they can be had.
async fn list_objects(client: &Client, node: &str, readiness: &Readiness) -> Vec<SandboxHealth> {
    loop {
        match requests::list(client.clone(), node.to_owned()).await {
            Ok(objects) => {
                readiness.done(OBJECTS);
                return objects;
            }
            Err(ApiError::NotFound(_)) => readiness.pending(OBJECTS, CRD_MISSING),
            Err(error) => readiness.pending(OBJECTS, format!("cannot be listed: {error}")),
        }
        tokio::time::sleep(list_again(node)).await;
    }
}

/// The objects as they are listed from now on, again and again.
fn lists(client: Client, node: String, clock: impl Fn() -> Timestamp + Clone) -> impl Stream<Item = Listed> {
    futures::stream::unfold(LIST_EVERY, move |wait| {
        let (client, node, clock) = (client.clone(), node.clone(), clock.clone());
        async move {
            tokio::time::sleep(wait).await;
            let asked_at = clock();
            let outcome = requests::list(client, node.clone()).await;
            let next = if outcome.is_ok() { LIST_EVERY } else { list_again(&node) };
            Some(((asked_at, outcome), next))
        }
    })
}

/// Until a list that failed is tried again. Each wait is another, as each `RandomState` is.
fn list_again(node: &str) -> Duration {
    backoff::shortened(LIST_AGAIN, node, &RandomState::new())
}

/// When the objects were asked for, and what they were.
type Listed = (Timestamp, Result<Vec<SandboxHealth>, ApiError>);
type Death = (String, String, std::io::Result<Option<Ending>>);
type Answered = (String, Answer);
type Boxed<T> = futures::future::BoxFuture<'static, T>;

/// Then, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

struct Agent<C> {
    client: Client,
    /// What time it is.
    clock: C,
    readiness: Arc<Readiness>,
    metrics: Arc<AgentMetrics>,
    roster: Roster,
    budget: Budget,
    deaths: FuturesUnordered<Boxed<Death>>,
    requests: FuturesUnordered<Boxed<Answered>>,
    /// When to search for new pause processes, if not at the next reading.
    find_at: Option<Instant>,
    /// Of a pause whose pod is to go on.
    last_death: Option<Instant>,
    watch_pods: WatchPods,
    /// UIDs seen in the list that is being received.
    listed: HashSet<String>,
    /// Pods whose reports no server of this kind would take, since the last one that was taken.
    refused: HashSet<String>,
}

impl<C: Fn() -> Timestamp> Agent<C> {
    async fn watch(
        mut self,
        mut pods: impl Stream<Item = watcher::Result<watcher::Event<Pod>>> + Unpin,
        mut lists: impl Stream<Item = Listed> + Unpin,
        read_every: Duration,
    ) -> std::io::Result<()> {
        let mut readings = interval(read_every);
        readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = pods.next() => self.pods_changed(event),
                Some(listed) = lists.next() => self.objects_listed(listed),
                Some(death) = self.deaths.next() => self.pause_ended(death),
                Some((pod, answer)) = self.requests.next() => {
                    let fetched = matches!(answer, Answer::Fetched(Ok(Some(_))));
                    if let Answer::Written(_, written) = &answer {
                        self.write_told(&pod, written);
                    }
                    self.roster.answered(&pod, answer, (self.clock)());
                    if fetched {
                        self.observe()?;
                    }
                }
                _ = readings.tick() => {
                    self.forget_refused();
                    if self.roster.lacks_a_pause() {
                        if self.died_lately() {
                            // The next sandbox may have the PID of a process that was known and went: that takes a whole look.
                            self.roster.look_soon();
                        } else {
                            self.find()?;
                        }
                    }
                    self.observe()?;
                }
                () = at(self.find_at) => {
                    if self.find()? {
                        self.observe()?;
                    }
                }
            }
            self.make_requests();
        }
    }

    fn pods_changed(&mut self, event: watcher::Result<watcher::Event<Pod>>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match event {
            Ok(Init) => self.listed.clear(),
            Ok(InitApply(pod)) => {
                self.listed.extend(pod.metadata.uid.clone());
                self.pod_applied(&pod);
            }
            Ok(InitDone) => {
                self.roster.keep_pods(&self.listed);
                self.readiness.done(PODS);
            }
            Ok(Apply(pod)) => self.pod_applied(&pod),
            Ok(Delete(pod)) => self.roster.pod_deleted(pod.metadata.uid.as_deref().unwrap_or_default()),
            Err(watcher::Error::InitialListFailed(error)) => {
                self.readiness.pending(PODS, format!("cannot be listed: {}", brief(&error)));
            }
            // They were listed, and no change would be seen.
            Err(watcher::Error::WatchStartFailed(error)) if is_forbidden(&error) => {
                self.readiness.pending(PODS, format!("cannot be watched: {}", brief(&error)));
            }
            Err(error) => tracing::debug!(%error, "the watch of pods is started again"),
        }
    }

    fn write_told(&mut self, pod: &str, written: &Result<(), ApiError>) {
        match write_told(&self.readiness, written) {
            WriteTold::Taken => self.refused.clear(),
            WriteTold::NoneIsTaken => _ = self.refused.insert(pod.to_owned()),
            WriteTold::Nothing => {}
        }
    }

    /// Nobody tries again to write of a pod that is gone.
    fn forget_refused(&mut self) {
        let before = self.refused.len();
        self.refused.retain(|pod| self.roster.knows(pod));
        if before > 0 && self.refused.is_empty() {
            writes_may_work(&self.readiness);
        }
    }

    fn objects_listed(&mut self, (asked_at, listed): Listed) {
        match listed {
            Ok(objects) => {
                self.readiness.done(OBJECTS);
                self.roster.objects_listed(objects, asked_at, (self.clock)());
            }
            Err(ApiError::NotFound(_)) => self.readiness.pending(OBJECTS, CRD_MISSING),
            Err(error) => tracing::debug!(%error, "the objects are listed again"),
        }
    }

    fn pause_ended(&mut self, (pod, sandbox, ending): Death) {
        match ending {
            Ok(ending) => {
                tracing::info!(pod_uid = pod, sandbox, ?ending, "a pause process ended");
                self.roster.pause_ended(&pod, &sandbox, (self.clock)(), ending);
                if self.roster.lacks_its_pause(&pod) {
                    self.last_death = Some(Instant::now());
                }
                self.find_soon();
            }
            Err(error) => {
                tracing::warn!(pod_uid = pod, sandbox, %error, "its pause process cannot be waited for; trying again");
                self.roster.lost_sight(&pod, &sandbox);
            }
        }
    }

    fn pod_applied(&mut self, pod: &Pod) {
        if let Some(facts) = PodFacts::of(pod, self.watch_pods) {
            self.roster.pod_applied(facts, (self.clock)());
            self.find_soon();
        }
    }

    fn find_soon(&mut self) {
        let soon = Instant::now() + FIND_SOON;
        self.find_at = Some(self.find_at.map_or(soon, |at| at.min(soon)));
    }

    /// Searches for new pauses; says whether something was found.
    fn find(&mut self) -> std::io::Result<bool> {
        let found = self.roster.find()?;
        let found_some = !found.is_empty();
        self.hold(found);
        let again = self.died_lately() && self.roster.lacks_a_pause();
        self.find_at = again.then(|| Instant::now() + FIND_AGAIN);
        Ok(found_some)
    }

    fn died_lately(&self) -> bool {
        self.last_death.is_some_and(|death| death.elapsed() < FIND_SHORTLY)
    }

    /// Reads all there is to read, and counts what is to be counted.
    fn observe(&mut self) -> std::io::Result<()> {
        let now = (self.clock)();
        self.roster.observe(now, &self.metrics)?;
        let found = self.roster.look(now, &self.metrics)?;
        if !found.is_empty() {
            self.hold(found);
            self.roster.observe(now, &self.metrics)?;
        }
        Ok(())
    }

    fn hold(&mut self, found: Vec<Held>) {
        for Held { pod_uid, sandbox, pidfd } in found {
            self.deaths.push(Box::pin(async move { (pod_uid, sandbox, ended(pidfd).await) }));
        }
    }

    fn make_requests(&mut self) {
        let now = (self.clock)();
        let budget = &mut self.budget;
        let due = self.roster.requests_due(now, &self.metrics.reports, || budget.take(now));
        for Request { pod_uid, namespace, name, ask } in due {
            let (client, metrics) = (self.client.clone(), self.metrics.clone());
            self.requests.push(match ask {
                Ask::Fetch => Box::pin(async move {
                    let outcome = requests::get(client, namespace, name, pod_uid.clone()).await;
                    metrics.requested("get", &outcome);
                    (pod_uid, Answer::Fetched(outcome.map(|object| object.map(Box::new))))
                }),
                Ask::Create(object) => Box::pin(async move {
                    let outcome = requests::create(client, *object).await;
                    metrics.requested("create", &outcome);
                    (pod_uid, Answer::Created(outcome.map(Box::new)))
                }),
                Ask::Write { status } => Box::pin(async move {
                    let row = Row { namespace, name, pod_uid: pod_uid.clone(), version: None };
                    let outcome = report::write(client, row, status.as_ref().clone()).await;
                    metrics.requested("patch", &outcome);
                    (pod_uid, Answer::Written(status, outcome))
                }),
            });
        }
    }
}
