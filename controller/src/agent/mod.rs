//! The agent, one a node: watches the node's pods and their pause processes, and reports. This file wires its parts and
//! waits for what happens; what to make of it is decided in `roster` and `record`.

pub mod budget;
pub mod cgroup;
pub mod ending;
pub mod metrics;
pub mod objects;
pub mod pods;
pub mod proc;
pub mod record;
pub mod roster;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::{ApiError, CRD_MISSING, brief};
use crate::resource::SandboxHealth;
use crate::scope::WatchPods;
use crate::serve::Readiness;
use budget::Budget;
use ending::{Ending, ended};
use metrics::AgentMetrics;
use pods::PodFacts;
use proc::Proc;
use record::ZombieThreshold;
use roster::{Answer, Ask, Held, Request, Roster};

/// Between looks through all of /proc when nothing asks for one.
const FIND_EVERY: Duration = Duration::from_secs(30);
/// From a change that asks for a look through /proc to the look: one change seldom comes alone.
const FIND_SOON: Duration = Duration::from_millis(200);
/// Between lists of the node's objects. They find out what no write does: that an object was deleted, or all of them.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// From a list that failed to the next.
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
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={}", options.node));
    let pods = watcher(api, of_node).default_backoff();
    let agent = Agent {
        client,
        readiness,
        metrics,
        roster,
        budget: Budget::new(Timestamp::now()),
        deaths: FuturesUnordered::new(),
        requests: FuturesUnordered::new(),
        find_at: Instant::now(),
        listed: HashSet::new(),
    };
    let lists = lists(agent.client.clone(), options.node);
    agent.watch(std::pin::pin!(pods), std::pin::pin!(lists), options.read_every).await
}

/// The node's objects, once they can be had.
async fn list_objects(client: &Client, node: &str, readiness: &Readiness) -> Vec<SandboxHealth> {
    loop {
        match objects::list(client.clone(), node.to_owned()).await {
            Ok(objects) => {
                readiness.done(OBJECTS);
                return objects;
            }
            Err(ApiError::NotFound(_)) => readiness.pending(OBJECTS, CRD_MISSING),
            Err(error) => readiness.pending(OBJECTS, format!("cannot be listed: {error}")),
        }
        tokio::time::sleep(LIST_AGAIN).await;
    }
}

/// The objects as they are listed from now on, again and again.
fn lists(client: Client, node: String) -> impl Stream<Item = Listed> {
    futures::stream::unfold(LIST_EVERY, move |wait| {
        let (client, node) = (client.clone(), node.clone());
        async move {
            tokio::time::sleep(wait).await;
            let outcome = objects::list(client, node).await;
            let next = if outcome.is_ok() { LIST_EVERY } else { LIST_AGAIN };
            Some((outcome, next))
        }
    })
}

type Listed = Result<Vec<SandboxHealth>, ApiError>;
type Death = (String, String, std::io::Result<Option<Ending>>);
type Answered = (String, Answer);
type Boxed<T> = futures::future::BoxFuture<'static, T>;

struct Agent {
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<AgentMetrics>,
    roster: Roster,
    budget: Budget,
    deaths: FuturesUnordered<Boxed<Death>>,
    requests: FuturesUnordered<Boxed<Answered>>,
    /// When to look through /proc next.
    find_at: Instant,
    /// UIDs seen in the list that is being received.
    listed: HashSet<String>,
}

impl Agent {
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
                    self.roster.answered(&pod, answer, Timestamp::now());
                    if fetched {
                        self.roster.observe(Timestamp::now(), &self.metrics)?;
                    }
                }
                _ = readings.tick() => {
                    if self.roster.lacks_a_pause() {
                        self.find()?;
                    }
                    self.roster.observe(Timestamp::now(), &self.metrics)?;
                }
                () = sleep_until(self.find_at) => {
                    self.find()?;
                    self.roster.observe(Timestamp::now(), &self.metrics)?;
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
            Err(error) => tracing::debug!(%error, "the watch of pods is started again"),
        }
    }

    fn objects_listed(&mut self, listed: Listed) {
        match listed {
            Ok(objects) => {
                self.readiness.done(OBJECTS);
                self.roster.keep_objects(&objects);
            }
            Err(ApiError::NotFound(_)) => self.readiness.pending(OBJECTS, CRD_MISSING),
            Err(error) => tracing::debug!(%error, "the objects are listed again"),
        }
    }

    fn pause_ended(&mut self, (pod, sandbox, ending): Death) {
        match ending {
            Ok(ending) => {
                tracing::info!(pod_uid = pod, sandbox, ?ending, "a pause process ended");
                self.roster.pause_ended(&pod, &sandbox, Timestamp::now(), ending);
                self.find_soon();
            }
            Err(error) => {
                tracing::warn!(pod_uid = pod, sandbox, %error, "its pause process cannot be waited for; trying again");
                self.roster.lost_sight(&pod, &sandbox);
            }
        }
    }

    fn pod_applied(&mut self, pod: &Pod) {
        if let Some(facts) = PodFacts::of(pod) {
            self.roster.pod_applied(facts, Timestamp::now());
            self.find_soon();
        }
    }

    fn find_soon(&mut self) {
        self.find_at = self.find_at.min(Instant::now() + FIND_SOON);
    }

    fn find(&mut self) -> std::io::Result<()> {
        self.find_at = Instant::now() + FIND_EVERY;
        for Held { pod_uid, sandbox, pidfd } in self.roster.find()? {
            self.deaths.push(Box::pin(async move { (pod_uid, sandbox, ended(pidfd).await) }));
        }
        Ok(())
    }

    fn make_requests(&mut self) {
        let now = Timestamp::now();
        let budget = &mut self.budget;
        for Request { pod_uid, namespace, name, ask } in self.roster.requests_due(now, || budget.take(now)) {
            let (client, metrics) = (self.client.clone(), self.metrics.clone());
            self.requests.push(match ask {
                Ask::Fetch => Box::pin(async move {
                    let outcome = objects::get(client, namespace, name, pod_uid.clone()).await;
                    metrics.requested("get", &outcome);
                    (pod_uid, Answer::Fetched(outcome.map(|object| object.map(Box::new))))
                }),
                Ask::Write { object_uid, status } => Box::pin(async move {
                    let ours = status.as_ref().clone();
                    let outcome = objects::apply(client, namespace, name, object_uid, ours).await;
                    metrics.requested("patch", &outcome);
                    (pod_uid, Answer::Written(status, outcome))
                }),
            });
        }
    }
}
