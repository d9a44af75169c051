//! The tracked pods of the node: ties what a scan of /proc finds to what the API reports. No request is sent here, and the time is an
//! argument.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use pause_status::stat::Stat;
use tokio::time::Instant;

use super::metrics::AgentMetrics;
use super::oom::OomKills;
use super::pod::{ExitWait, ReadContext, TrackedPod};
use crate::core::cause::Evidence;
use crate::core::sandbox::{Now, ZombieThreshold};
use crate::core::zombies::{Parent, PodCounts, ProcessCounts};
use crate::crd::{PARENTS_MAX, Source, ZombieParent};
use crate::k8s::pod::{NodePod, WatchOptions};
use crate::k8s::watch::GuardedObject;
use crate::procfs::pause::{OpenPidfd, ReadError, Reading, open_pidfd};
use crate::procfs::scanner::{InitProcess, Scan, Service};
use crate::procfs::{Proc, ProcessId, STAT_MAX};
use crate::text::printable;

/// Interval of scans where the agent counts processes of a pod: as often as pause does.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// Interval elsewhere, for the zombies outside of pods, and the parents of those in pods.
const HOST_INTERVAL: Duration = Duration::from_secs(60);
/// Limit of zombies whose age is remembered.
const AGES_MAX: usize = 100_000;

#[derive(Debug)]
pub struct Tracker {
    proc: Proc,
    threshold: ZombieThreshold,
    watch: WatchOptions,
    /// By UID.
    pub pods: HashMap<String, TrackedPod>,
    /// When each zombie was first seen.
    zombie_since: HashMap<ProcessId, Instant>,
    /// Container runtimes and kubelets as the last scan found them.
    services: Vec<Service>,
    oom_kills: OomKills,
    /// Whether the last scan was denied access to a process.
    is_denied: bool,
    open_pidfd: OpenPidfd,
}

impl Tracker {
    pub fn new(proc: Proc, threshold: ZombieThreshold, watch: WatchOptions) -> Self {
        Self {
            oom_kills: OomKills::new(proc.clone()),
            proc,
            threshold,
            watch,
            pods: HashMap::new(),
            zombie_since: HashMap::new(),
            services: Vec::new(),
            is_denied: false,
            open_pidfd,
        }
    }

    /// Tracks exactly the observed pods of the caches, each with its object. Returns whether one of them is new or changed.
    pub fn sync(&mut self, pods: &Store<NodePod>, objects: &Store<GuardedObject>, now: Now) -> bool {
        let mut is_changed = false;
        let mut before = std::mem::take(&mut self.pods);
        for pod in pods.state().into_iter().filter(|pod| pod.is_observed(&self.watch)) {
            let known = before.remove(pod.uid());
            is_changed |= known.as_ref().is_none_or(|tracked| !Arc::ptr_eq(&tracked.pod, &pod));
            let mut tracked = known.unwrap_or_else(|| TrackedPod::new(pod.clone(), now.instant));
            let object = objects.get(&ObjectRef::new(pod.name()).within(pod.namespace()));
            match object.as_ref().map(|object| &object.0) {
                // A newer version wrote it.
                Some(Err(_)) => {}
                Some(Ok(object)) if object.spec.pod_uid == pod.uid() => {
                    tracked.set_object(Some(object), now.instant)
                }
                // The object of an earlier pod of the same name is stale.
                Some(Ok(_)) | None => tracked.set_object(None, now.instant),
            }
            tracked.set_pod(pod, now, &mut self.oom_kills);
            self.pods.insert(tracked.pod.uid().to_owned(), tracked);
        }
        is_changed
    }

    pub fn lacks_sandbox(&self) -> bool {
        self.pods.values().any(TrackedPod::lacks_sandbox)
    }

    /// Longest time between scans of all processes.
    pub fn scan_interval(&self) -> Duration {
        let is_counting = self.pods.values().any(TrackedPod::is_counted_by_agent);
        if is_counting { COUNT_INTERVAL } else { HOST_INTERVAL }
    }

    /// The pods of which something is unknown until their processes are scanned, by the names of their cgroups.
    pub fn waiting_pods(&self) -> HashSet<String> {
        let waiting = self.pods.values().filter(|pod| pod.awaits_scan());
        waiting.map(|pod| pod.pod.cgroup_id.clone()).collect()
    }

    /// Ties the result of a scan to the pods. Returns the pauses that were not held before.
    pub fn scanned(&mut self, scan: Scan, now: Now) -> Vec<ExitWait> {
        self.is_denied = scan.is_denied;
        self.services = scan.services;
        let mut inits: HashMap<String, Vec<InitProcess>> = HashMap::new();
        for init in scan.inits {
            inits.entry(init.identity.pod.clone()).or_default().push(init);
        }
        let find = |tracked: &mut TrackedPod| {
            let inits = inits.get(&tracked.pod.cgroup_id)?;
            tracked.find_sandbox(inits, &self.proc, self.open_pidfd, now, &mut self.oom_kills)
        };
        self.pods.values_mut().filter_map(find).collect()
    }

    /// Why processes of other users are not visible. Access is denied by a security module, or to all of them by hidepid=1.
    fn obstacle(&self) -> Option<ReadError> {
        if self.is_denied && !self.proc.has_hidepid() {
            return Some(ReadError::Denied);
        }
        (!self.proc.shows_other_users()).then_some(ReadError::Hidden)
    }

    /// The pause of this sandbox exited. Returns whether another sandbox is expected.
    pub fn pause_exited(
        &mut self,
        uid: &str,
        sandbox: &str,
        time: Timestamp,
        evidence: Evidence,
        now: Instant,
    ) -> bool {
        let evidence = Evidence { oom_killed: self.oom_kills.are_recent(now), ..evidence };
        self.pods.get_mut(uid).is_some_and(|tracked| tracked.pause_exited(sandbox, time, evidence))
    }

    pub fn observe(&mut self, now: Now, metrics: &AgentMetrics) {
        let obstacle = if self.lacks_sandbox() { self.obstacle() } else { None };
        self.oom_kills.are_recent(now.instant);
        let (threshold, boot_id, services) = (self.threshold, self.proc.boot_id(), &*self.services);
        let obstacle = obstacle.as_ref();
        let context = ReadContext { now, boot_id, obstacle, threshold, services, metrics };
        for pod in self.pods.values_mut() {
            pod.observe(context, &mut self.oom_kills);
        }
        metrics.set_pods(self.pods.values().map(TrackedPod::series).collect());
    }

    pub fn counted(&mut self, counts: &ProcessCounts, now: Now, metrics: &AgentMetrics) {
        let since = |id| (id, self.zombie_since.get(&id).copied().unwrap_or(now.instant));
        let seen: HashMap<_, _> = counts.pod_zombies().take(AGES_MAX).map(since).collect();
        // A pause of the agent's own user is visible despite hidepid, and would pass for all processes of its pod.
        let obstacle = (!self.proc.shows_other_users()).then(|| self.obstacle()).flatten();
        let watched = self.pods.values().map(|tracked| &*tracked.pod.cgroup_id).collect();
        if let Some(zombies) = counts.of_node(&watched) {
            self.zombie_since = seen;
            metrics.set_node_zombies(Some(zombies).filter(|_| obstacle.is_none()));
        } else {
            self.zombie_since.extend(seen);
        }
        for tracked in self.pods.values_mut() {
            if let Some(obstacle) = &obstacle {
                if tracked.is_counted_by_agent() {
                    metrics.read_failed(obstacle);
                    tracked.sandbox.read(Err(obstacle.clone()), now, self.threshold);
                }
                continue;
            }
            let Some(counts) = counts.of_pod(&tracked.pod.cgroup_id) else { continue };
            if tracked.is_counted_by_agent() {
                let &PodCounts { zombies, processes, threads, .. } = counts;
                let (source, pause) = (Source::ProcScan, tracked.pause_report());
                let reading = Reading { zombies, processes, threads, source, pause };
                tracked.counted(reading, now, self.threshold);
            }
            if tracked.sandbox.is_accumulating() {
                let user_view =
                    |parent| zombie_parent(&self.proc, &self.zombie_since, &tracked.pod, parent, now.instant);
                let parents = counts.parents.iter().filter_map(user_view).take(PARENTS_MAX).collect();
                tracked.sandbox.set_zombie_parents(parents);
            }
        }
    }
}

/// A parent of zombies for users; `None` if it has exited meanwhile.
fn zombie_parent(
    proc: &Proc,
    zombie_since: &HashMap<ProcessId, Instant>,
    pod: &NodePod,
    parent: &Parent,
    now: Instant,
) -> Option<ZombieParent> {
    let process = proc.process(parent.id.pid).ok()?;
    let line = process.read("stat", STAT_MAX).ok()?;
    let stat = Stat::parse(&line).filter(|stat| stat.start_ticks == parent.id.start_ticks)?;
    let oldest = parent.zombies.iter().filter_map(|zombie| zombie_since.get(zombie)).min();
    let age = oldest.map_or(0, |since| now.duration_since(*since).as_secs());
    Some(ZombieParent {
        // The one in the PID namespace of the pod, which is a child of the node's. Some runtimes' own processes are in the node's.
        pid: process.pids().get(1).or(process.pids().first()).copied()?,
        command: printable(stat.comm),
        container: pod.containers.get(&parent.container).cloned().unwrap_or_default(),
        zombies: i64::try_from(parent.zombies.len()).unwrap_or(i64::MAX),
        // Zombies that this scan found first may be of any age.
        oldest_seconds: i64::try_from(age).ok().filter(|&age| age > 0),
    })
}

#[cfg(test)]
mod tests;
