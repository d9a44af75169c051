//! The agent: observes the pod sandboxes of its node and reports them. This file is the loop that waits for changes of pods and
//! objects, exits of pause, scans, and responses; decisions are in `core`.

pub mod metrics;
pub mod oom;
pub mod pod;
pub mod report;
pub mod reporter;
pub mod scan_schedule;
#[cfg(test)]
mod scenarios;
pub mod tracker;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use jiff::Timestamp;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use rustix::fd::OwnedFd;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use crate::core::cause::Evidence;
use crate::core::sandbox::{Now, STARTING, ZombieThreshold};
use crate::core::zombies::ProcessCounts;
use crate::health::Readiness;
use crate::k8s::pod::{NodePod, WatchOptions};
use crate::k8s::watch::{GuardedObject, prune, watch};
use crate::procfs::pidfd;
use crate::procfs::scanner::{Scan, Scanner, Scope};
use crate::procfs::{Proc, thread_cpu_time};
use metrics::AgentMetrics;
use pod::ExitWait;
use reporter::Reporter;
use scan_schedule::ScanSchedule;
use tracker::Tracker;

/// Delay of the search after a change of a pod: one change seldom comes alone.
const SEARCH_DELAY: Duration = Duration::from_millis(200);
/// Time after pause exited in which the agent searches for the new sandbox continuously: the kubelet takes a second or two.
const SUCCESSOR_TIME: Duration = Duration::from_secs(30);

/// Time between the exit of the shim of a container runtime and that of pause, which the runtime kills then.
const SHIM_WINDOW: Duration = Duration::from_secs(30);

/// Name in `/readyz`.
const PROC: &str = "/proc";

#[derive(Debug, Clone, clap::Args)]
pub struct AgentOptions {
    /// Name of the node that the agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Path of the procfs mount.
    #[arg(long, default_value = "/proc")]
    pub proc: String,
    /// Interval between readings of all sandboxes, such as 5s or 1m.
    #[arg(long, default_value = "5s", value_parser = crate::text::duration)]
    pub read_interval: Duration,
    /// Zombie count at which a pod becomes unhealthy; it recovers at half this value.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub zombie_threshold: u32,
    #[command(flatten)]
    pub watch: WatchOptions,
}

/// Runs forever.
pub async fn run(
    options: AgentOptions,
    proc: Proc,
    client: Client,
    readiness: Arc<Readiness>,
    metrics: Arc<AgentMetrics>,
) {
    // Lists come from the watch cache and as a whole: pages bypass the cache before Kubernetes 1.34, and etcd has no index by node.
    let config = watcher::Config { page_size: None, ..watcher::Config::default() };
    let config = config.any_semantic().fields(&format!("spec.nodeName={}", options.node_name));
    let pods = watch(Api::all(client.clone()), config.clone(), "pods", readiness.clone());
    let objects = watch(Api::all(client.clone()), config, "sandboxhealths", readiness.clone());
    let agent = Agent::new(&options, proc, client, readiness, metrics);
    agent.run(pin!(pods), pin!(objects)).await;
}

/// Exit of the pause of a sandbox; `None` if the pause is no longer tracked.
type Exit = Option<(String, String, io::Result<(Timestamp, Evidence)>)>;

/// The result of a scan, with the scanner for the next one.
struct FinishedScan {
    scanner: Scanner,
    scope: Scope,
    result: io::Result<(Scan, Option<ProcessCounts>)>,
    cpu: Duration,
}

struct Agent {
    /// Caches of the node's pods and objects.
    pods: Writer<NodePod>,
    objects: Writer<GuardedObject>,
    /// Whether the objects were listed. Before, every sandbox would seem to be the first of its pod.
    are_objects_known: bool,
    tracker: Tracker,
    reporter: Reporter,
    readiness: Arc<Readiness>,
    metrics: Arc<AgentMetrics>,
    exits: FuturesUnordered<BoxFuture<'static, Exit>>,
    read_interval: Duration,
    next_reading: Instant,
    /// Time of the last exit of pause after which a new sandbox is expected.
    last_exit: Option<Instant>,
    schedule: ScanSchedule,
    /// Absent while it scans.
    scanner: Option<Scanner>,
    scans: FuturesUnordered<JoinHandle<FinishedScan>>,
}

impl Agent {
    fn new(
        options: &AgentOptions,
        proc: Proc,
        client: Client,
        readiness: Arc<Readiness>,
        metrics: Arc<AgentMetrics>,
    ) -> Self {
        if proc.boot_id().is_none() {
            tracing::warn!("the boot id is not readable; restarts by a reboot are reported as Replaced");
        }
        Self {
            pods: Writer::default(),
            objects: Writer::default(),
            are_objects_known: false,
            tracker: Tracker::new(
                proc.clone(),
                ZombieThreshold(options.zombie_threshold),
                options.watch.clone(),
            ),
            reporter: Reporter::new(client, readiness.clone(), Instant::now()),
            readiness,
            metrics,
            exits: FuturesUnordered::new(),
            read_interval: options.read_interval,
            next_reading: Instant::now(),
            last_exit: None,
            schedule: ScanSchedule::default(),
            scanner: Some(Scanner::new(proc)),
            scans: FuturesUnordered::new(),
        }
    }

    async fn run(
        mut self,
        mut pods: impl Stream<Item = Event<NodePod>> + Unpin,
        mut objects: impl Stream<Item = Event<GuardedObject>> + Unpin,
    ) {
        loop {
            // While no scan can start, its time must not wake the loop.
            let may_scan = self.scanner.is_some() && self.are_objects_known;
            let search_at = self.schedule.next_search().filter(|_| may_scan);
            tokio::select! {
                Some(event) = pods.next() => self.pod_event(&event),
                Some(event) = objects.next() => self.object_event(event),
                Some(exit) = self.exits.next() => self.pause_exited(exit),
                Some(response) = self.reporter.responses.next() => {
                    self.reporter.answered(&mut self.tracker, response, Instant::now());
                }
                // A scan that panics ends the process.
                Some(Ok(finished)) = self.scans.next() => self.scan_finished(finished),
                Some(()) = OptionFuture::from(search_at.map(sleep_until)) => {}
                () = sleep_until(self.next_reading) => self.read(),
            }
            if self.are_objects_known {
                self.start_scan();
                self.reporter.send_due(&mut self.tracker, Instant::now());
            }
        }
    }

    fn pod_event(&mut self, event: &Event<NodePod>) {
        self.pods.apply_watcher_event(event);
        self.sync(event);
    }

    fn object_event(&mut self, event: Event<GuardedObject>) {
        let event = event.modify(prune);
        self.objects.apply_watcher_event(&event);
        self.sync(&event);
        if matches!(event, Event::InitDone) {
            self.are_objects_known = true;
            self.observe();
        }
    }

    fn sync<K>(&mut self, event: &Event<K>) {
        // A list enters the cache when it is complete.
        let has_cache_changed = !matches!(event, Event::Init | Event::InitApply(_));
        let (pods, objects, now) = (self.pods.as_reader(), self.objects.as_reader(), Now::read());
        if has_cache_changed && self.tracker.sync(&pods, &objects, now) {
            self.schedule.search_at(now.instant + SEARCH_DELAY);
        }
    }

    /// Reads all known sandboxes, and searches for those that are not known.
    fn read(&mut self) {
        self.reporter.check_readiness(&self.tracker);
        self.observe();
        let now = Instant::now();
        self.next_reading = now + self.read_interval;
        if self.tracker.lacks_sandbox() {
            if self.awaits_successor() {
                // The new pause may reuse the PID of a known process that has exited; only a scan of all processes finds it.
                self.schedule.request_all();
            } else if self.schedule.is_rested(Scope::New, Duration::ZERO, now) {
                self.schedule.search_at(now);
            }
        }
    }

    fn observe(&mut self) {
        if self.are_objects_known {
            self.tracker.observe(Now::read(), &self.metrics);
        }
    }

    fn awaits_successor(&self) -> bool {
        self.last_exit.is_some_and(|exit| exit.elapsed() < SUCCESSOR_TIME)
    }

    fn pause_exited(&mut self, exit: Exit) {
        let Some((uid, sandbox, result)) = exit else { return };
        match result {
            Ok((time, evidence)) => {
                let now = Instant::now();
                if self.tracker.pause_exited(&uid, &sandbox, time, evidence, now) {
                    self.last_exit = Some(now);
                }
                self.schedule.search_at(now + SEARCH_DELAY);
            }
            Err(error) => {
                if let Some(tracked) = self.tracker.pods.get_mut(&uid) {
                    tracked.poll(&sandbox, &error);
                }
            }
        }
    }

    /// Starts the scan that is due, on another thread: with 50,000 processes it takes a second.
    fn start_scan(&mut self) {
        let (pods, now) = (self.tracker.waiting_pods(), Instant::now());
        let scope = self.schedule.due(self.tracker.scan_interval(), !pods.is_empty(), now);
        let Some(scope) = scope else { return };
        let Some(mut scanner) = self.scanner.take() else { return };
        self.schedule.started(scope, now);
        self.scans.push(spawn_blocking(move || {
            let before = thread_cpu_time();
            let result = scanner.scan(scope, &pods).map(|scan| {
                let counts = match scope {
                    Scope::New => None,
                    Scope::Pods => Some(ProcessCounts::of_pods(&pods, &scan.processes)),
                    Scope::All => Some(ProcessCounts::of(&scan.processes)),
                };
                (scan, counts)
            });
            FinishedScan { scanner, scope, result, cpu: thread_cpu_time().saturating_sub(before) }
        }));
    }

    fn scan_finished(&mut self, FinishedScan { scanner, scope, result, cpu }: FinishedScan) {
        self.scanner = Some(scanner);
        self.schedule.finished(scope, cpu, Instant::now());
        let (scan, counts) = match result {
            Ok(found) => found,
            Err(error) => return self.readiness.pending(PROC, error.to_string()),
        };
        self.readiness.done(PROC);
        let waits = self.tracker.scanned(scan, Now::read());
        if !waits.is_empty() {
            self.next_reading = self.next_reading.min(Instant::now() + STARTING);
        }
        if !waits.is_empty() || counts.is_some() {
            self.exits.extend(waits.into_iter().map(|wait| wait_for_exit(wait).boxed()));
            self.observe();
        }
        if let Some(counts) = counts {
            self.tracker.counted(&counts, Now::read(), &self.metrics);
        }
        if self.awaits_successor() && self.tracker.lacks_sandbox() {
            self.schedule.search_at(Instant::now() + SEARCH_DELAY);
        }
    }
}

async fn wait_for_exit(ExitWait { pod_uid, sandbox, pidfd, shim, released }: ExitWait) -> Exit {
    tokio::select! {
        result = observe_exit(pidfd, shim) => Some((pod_uid, sandbox, result)),
        _ = released => None,
    }
}

async fn observe_exit(pause: OwnedFd, shim: Option<OwnedFd>) -> io::Result<(Timestamp, Evidence)> {
    let (mut pause, mut shim_exited_at) = (pin!(pidfd::wait(pause)), None);
    let pause = tokio::select! {
        // The runtime ends the shim after pause: if both exits are noticed together, pause exited first.
        biased;
        exited = &mut pause => exited,
        Some(Ok(_)) = OptionFuture::from(shim.map(pidfd::wait)) => {
            shim_exited_at = Some(Instant::now());
            pause.await
        }
    }?;
    let time = Timestamp::now();
    let shim_exited = shim_exited_at.is_some_and(|at| at.elapsed() < SHIM_WINDOW);
    let status = pidfd::exit_status(&pause).await;
    Ok((time, Evidence { status, shim_exited, oom_killed: false }))
}
