//! Scans /proc for pause processes, and for all processes with their pods. It remembers processes between scans, so that a scan costs
//! little where nothing changed. What the result means is decided elsewhere.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use pause_status::stat::{self, Stat};

use super::cgroup::{CgroupIdentity, identify};
use super::pause::{PAUSE_COMM, PauseProcess};
use super::{FILE_MAX, Proc, ProcessDirectory, ProcessId};

/// Names of the container runtimes and kubelets, whose restart may end sandboxes. k3s and MicroK8s run the kubelet in a process of their own.
const SERVICES: [&str; 6] = ["containerd", "crio", "k3s-server", "k3s-agent", "kubelite", "kubelet"];
/// Age from which on a process keeps its cgroup and its name: a runtime moves and renames what it starts within a second.
const SETTLED_SECONDS: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Processes that are not known yet.
    New,
    /// Those, and all of some pods.
    Pods,
    All,
}

#[derive(Debug, Default)]
pub struct Scan {
    /// Pause processes that are not held already.
    pub pauses: Vec<PauseProcess>,
    pub processes: Vec<Process>,
    /// Container runtimes and kubelets outside of pods.
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    pub name: &'static str,
    /// Start of its oldest process: others are commands, or are about to execute another program.
    pub started_at: Timestamp,
}

/// A process as a scan found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub id: ProcessId,
    pub threads: u32,
    /// Of a zombie, the PID of its parent.
    pub zombie_of: Option<i32>,
    /// Container of a process that lives, if it belongs to a pod.
    pub container: Option<Arc<CgroupIdentity>>,
}

#[derive(Debug)]
pub struct Scanner {
    proc: Proc,
    known: HashMap<i32, Known>,
    containers: HashSet<Arc<CgroupIdentity>>,
    /// Name and start time of processes that are services, by PID.
    services: HashMap<i32, (&'static str, u64)>,
}

#[derive(Debug)]
struct Known {
    start_ticks: u64,
    container: Option<Arc<CgroupIdentity>>,
    is_zombie: bool,
    /// Old enough for `container` to be final, and not PID 1 of a PID namespace: a runtime may be slow to start a pause.
    settled: bool,
}

#[derive(Clone, Copy)]
struct Context<'a> {
    uptime_ticks: u64,
    now: Timestamp,
    held: &'a HashSet<ProcessId>,
}

impl Scanner {
    pub fn new(proc: Proc) -> Self {
        Self { proc, known: HashMap::new(), containers: HashSet::new(), services: HashMap::new() }
    }

    /// Scans. `held` are the pause processes that need not be found again; `pods` are those of [`Scope::Pods`], by the names of their cgroups.
    pub fn scan(
        &mut self,
        scope: Scope,
        held: &HashSet<ProcessId>,
        pods: &HashSet<String>,
    ) -> io::Result<Scan> {
        let context = Context { uptime_ticks: self.proc.uptime_ticks()?, now: Timestamp::now(), held };
        let pids = self.proc.pids()?;
        let mut scan = Scan::default();
        for &pid in &pids {
            let is_needed = |known: &Known| match scope {
                Scope::New => !known.settled,
                // The kernel does not report the pod of a zombie on cgroup v1.
                Scope::Pods => !known.settled || known.is_zombie || known.is_in(pods),
                Scope::All => true,
            };
            if self.known.get(&pid).is_none_or(is_needed) {
                // A process that exits meanwhile is not part of the result.
                let _ = self.read(pid, context, &mut scan);
            }
        }
        self.forget_all_but(&pids);
        scan.services = self.services(context);
        Ok(scan)
    }

    fn services(&self, Context { uptime_ticks, now, .. }: Context<'_>) -> Vec<Service> {
        let start_ticks = |name| {
            let processes = self.services.values().filter(|(of, _)| *of == name);
            processes.map(|(_, start_ticks)| *start_ticks).min()
        };
        let service = |name| {
            let started_at = self.proc.start_time(start_ticks(name)?, uptime_ticks, now);
            Some(Service { name, started_at })
        };
        SERVICES.into_iter().filter_map(service).collect()
    }

    fn read(&mut self, pid: i32, context: Context<'_>, scan: &mut Scan) -> Option<()> {
        let line = self.proc.stat_line(pid).ok()?;
        let stat = Stat::parse(&line)?;
        let id = ProcessId { pid, start_ticks: stat.start_ticks };
        let mut process = Process { id, threads: stat.threads, zombie_of: None, container: None };
        if stat.is_zombie() {
            let parent = stat::parent(&line).and_then(|parent| i32::try_from(parent).ok());
            process.zombie_of = Some(parent.unwrap_or_default());
            let start_ticks = id.start_ticks;
            self.known.insert(pid, Known { start_ticks, container: None, is_zombie: true, settled: true });
        } else if let Some(known) = self.known.get(&pid).filter(|known| known.is(id)) {
            process.container.clone_from(&known.container);
        } else {
            process.container = self.meet(id, stat.comm, context, &mut scan.pauses)?;
        }
        scan.processes.push(process);
        Some(())
    }

    /// Reads what a process keeps for its life.
    fn meet(
        &mut self,
        id: ProcessId,
        comm: &[u8],
        context: Context<'_>,
        pauses: &mut Vec<PauseProcess>,
    ) -> Option<Option<Arc<CgroupIdentity>>> {
        let Context { uptime_ticks, now, held } = context;
        let is_named_pause = comm == PAUSE_COMM;
        let directory = self.proc.process(id.pid).ok()?;
        let cgroup = directory.read("cgroup", FILE_MAX).ok()?;
        let container = identify(&String::from_utf8_lossy(&cgroup)).map(|identity| self.intern(identity));
        let is_old = uptime_ticks.saturating_sub(id.start_ticks) >= self.proc.ticks(SETTLED_SECONDS);
        let is_init = (is_named_pause || is_old) && is_init_of_child_namespace(&directory);
        let (start_ticks, settled) = (id.start_ticks, is_old && !is_init);
        let known = Known { start_ticks, container: container.clone(), is_zombie: false, settled };
        self.known.insert(id.pid, known);
        let service = SERVICES.into_iter().find(|name| name.as_bytes() == comm && container.is_none());
        match service {
            Some(name) => self.services.insert(id.pid, (name, id.start_ticks)),
            None => self.services.remove(&id.pid),
        };
        if let Some(identity) = &container
            && is_named_pause
            && is_init
            && !held.contains(&id)
            && directory.is_still(id)
        {
            pauses.push(PauseProcess {
                id,
                identity: identity.as_ref().clone(),
                started_at: self.proc.start_time(id.start_ticks, uptime_ticks, now),
                is_new: !is_old,
                directory,
            });
        }
        Some(container)
    }

    /// One copy of each identity, however many processes have it.
    fn intern(&mut self, identity: CgroupIdentity) -> Arc<CgroupIdentity> {
        if let Some(known) = self.containers.get(&identity) {
            return known.clone();
        }
        let identity = Arc::new(identity);
        self.containers.insert(identity.clone());
        identity
    }

    fn forget_all_but(&mut self, pids: &[i32]) {
        self.services.retain(|pid, _| pids.contains(pid));
        if self.known.len() > pids.len() {
            let pids: HashSet<_> = pids.iter().collect();
            self.known.retain(|pid, _| pids.contains(pid));
            self.containers.retain(|container| Arc::strong_count(container) > 1);
        }
    }
}

impl Known {
    /// Whether this is the process, with nothing to read again.
    fn is(&self, id: ProcessId) -> bool {
        self.settled && self.start_ticks == id.start_ticks
    }

    fn is_in(&self, pods: &HashSet<String>) -> bool {
        self.container.as_ref().is_some_and(|container| pods.contains(&container.pod))
    }
}

/// Whether a process is PID 1 of a PID namespace that is a child of ours, as the sandbox of a pod is. A container that does not share
/// its PID namespace has the same; the pod's status tells which are containers.
fn is_init_of_child_namespace(process: &ProcessDirectory) -> bool {
    matches!(process.pids()[..], [_, 1])
}

#[cfg(test)]
mod tests {
    use super::super::fake::{CONTAINER, FakeProc, FakeProcess, SANDBOX, UID};
    use super::*;
    use Scope::{All, New, Pods};

    const NONE: [i32; 0] = [];

    fn pause(pid: i32, pids: &str) -> FakeProcess<'_> {
        FakeProcess { pid, comm: "pause", pids, container: Some(SANDBOX), ..FakeProcess::default() }
    }

    struct Scans {
        fake: FakeProc,
        scanner: Scanner,
        held: HashSet<ProcessId>,
        pods: HashSet<String>,
    }

    impl Scans {
        fn new() -> Self {
            let fake = FakeProc::new();
            let (held, pods) = (HashSet::new(), HashSet::new());
            Self { scanner: Scanner::new(fake.proc()), fake, held, pods }
        }

        fn scan(&mut self, scope: Scope) -> Scan {
            self.scanner.scan(scope, &self.held, &self.pods).unwrap()
        }

        fn pauses(&mut self, scope: Scope) -> Vec<i32> {
            self.scan(scope).pauses.iter().map(|pause| pause.id.pid).collect()
        }
    }

    #[test]
    fn pause_is_found_with_its_identity_and_start_time() {
        let mut scans = Scans::new();
        scans.fake.add(pause(40, "40 1"));
        scans.fake.add(FakeProcess { pid: 41, comm: "nginx", pids: "41 7", ..FakeProcess::default() });
        let found = scans.scan(New).pauses;
        let [pause] = &found[..] else { panic!("{found:?}") };
        assert_eq!((pause.identity.pod.as_str(), pause.identity.container.as_str()), (UID, SANDBOX));
        let age = Timestamp::now().duration_since(pause.started_at).as_secs();
        assert!((3588..3600).contains(&age), "an hour less 12 s: {age}");
    }

    #[test]
    fn ordinary_process_cannot_pose_as_pause() {
        let mut scans = Scans::new();
        for (pid, pids) in [(50, "50 12"), (51, "51 13 1"), (52, "52")] {
            scans.fake.add(pause(pid, pids));
        }
        scans.fake.add(FakeProcess { comm: "pausing", ..pause(53, "53 1") });
        scans.fake.add(FakeProcess { container: None, ..pause(54, "54 1") });
        assert_eq!(scans.pauses(All), NONE);
    }

    #[test]
    fn pause_is_found_again_unless_it_is_held() {
        let mut scans = Scans::new();
        scans.fake.add(pause(40, "40 1"));
        assert_eq!([New, New, All].map(|scope| scans.pauses(scope)), [[40], [40], [40]]);
        scans.held.insert(ProcessId { pid: 40, start_ticks: 1200 });
        assert_eq!([New, All].map(|scope| scans.pauses(scope)), [NONE, NONE]);
    }

    #[test]
    fn young_process_is_read_again() {
        let mut scans = Scans::new();
        let young = FakeProcess { comm: "runc:[2:INIT]", start_ticks: 359_900, ..pause(40, "40 1") };
        scans.fake.add(young);
        assert_eq!(scans.pauses(New), NONE);
        scans.fake.add(FakeProcess { start_ticks: 359_900, ..pause(40, "40 1") });
        assert_eq!(scans.pauses(New), [40]);
    }

    #[test]
    fn pause_that_started_slowly_or_was_released_is_found() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess { comm: "runc:[2:INIT]", ..pause(40, "40 1") });
        assert_eq!(scans.pauses(New), NONE);
        scans.fake.add(pause(40, "40 1"));
        scans.held.insert(ProcessId { pid: 40, start_ticks: 1200 });
        assert_eq!([New, All].map(|scope| scans.pauses(scope)), [NONE, NONE]);
        scans.held.clear();
        assert_eq!(scans.pauses(New), [40]);
    }

    #[test]
    fn reused_pid_is_another_process() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess { comm: "sh", ..pause(40, "40 7") });
        assert_eq!(scans.pauses(New), NONE);
        scans.fake.add(FakeProcess { start_ticks: 2000, ..pause(40, "40 1") });
        assert_eq!(scans.pauses(New), NONE, "a scan of new processes takes it for the known one");
        assert_eq!(scans.pauses(All), [40]);
        scans.fake.remove(40);
        scans.pauses(New);
        scans.fake.add(pause(40, "40 1"));
        assert_eq!(scans.pauses(New), [40], "it was missing from the last scan");
    }

    #[test]
    fn services_start_with_their_oldest_process_outside_of_pods() {
        let mut scans = Scans::new();
        let service =
            |pid, comm, start_ticks| FakeProcess { pid, comm, start_ticks, ..FakeProcess::default() };
        let seconds = |scans: &mut Scans, scope| -> Vec<_> {
            let services = scans.scan(scope).services;
            let age = |start: Timestamp| Timestamp::now().duration_since(start).as_secs();
            services
                .iter()
                .map(|service| (service.name, (3600 - age(service.started_at) + 5) / 10 * 10))
                .collect()
        };
        scans.fake.add(service(8, "kubelet", 3_000));
        scans.fake.add(service(7, "containerd", 2_000));
        scans.fake.add(service(9, "containerd", 300_000));
        scans.fake.add(FakeProcess { container: Some(CONTAINER), ..service(10, "crio", 2_000) });
        assert_eq!(seconds(&mut scans, All), [("containerd", 20), ("kubelet", 30)]);
        scans.fake.remove(9);
        scans.fake.remove(7);
        scans.fake.add(service(11, "containerd", 359_000));
        assert_eq!(seconds(&mut scans, New), [("containerd", 3590), ("kubelet", 30)]);
    }

    #[test]
    fn process_has_its_container_and_zombie_its_parent() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess::default());
        scans.fake.add(FakeProcess {
            pid: 7,
            threads: 3,
            container: Some(CONTAINER),
            ..FakeProcess::default()
        });
        scans.fake.add(FakeProcess { pid: 8, parent: 7, state: 'Z', ..FakeProcess::default() });
        for _ in 0..2 {
            let mut processes = scans.scan(All).processes;
            processes.sort_by_key(|process| process.id.pid);
            let container = |process: &Process| process.container.as_ref().map(|of| of.container.clone());
            let read =
                |process: &Process| (process.id.pid, process.threads, process.zombie_of, container(process));
            let read: Vec<_> = processes.iter().map(read).collect();
            let in_container = Some(CONTAINER.to_owned());
            assert_eq!(read, [(1, 1, None, None), (7, 3, None, in_container), (8, 1, Some(7), None)]);
        }
        assert_eq!(scans.scanner.containers.len(), 1);
    }

    #[test]
    fn scan_of_pods_reads_their_processes_and_all_zombies() {
        let mut scans = Scans::new();
        let shell = FakeProcess { pid: 7, container: Some(CONTAINER), ..FakeProcess::default() };
        let child = |state| FakeProcess {
            pid: 8,
            parent: 7,
            state,
            container: Some(CONTAINER),
            ..FakeProcess::default()
        };
        scans.fake.add(FakeProcess::default());
        scans.fake.add(shell);
        scans.fake.add(child('S'));
        let pids = |scans: &mut Scans, scope| {
            let mut pids: Vec<_> = scans.scan(scope).processes.iter().map(|process| process.id.pid).collect();
            pids.sort_unstable();
            pids
        };
        scans.pods.insert(UID.to_owned());
        assert_eq!(
            [All, New, Pods].map(|scope| pids(&mut scans, scope)),
            [vec![1, 7, 8], vec![], vec![7, 8]]
        );
        scans.fake.add(child('Z'));
        for _ in 0..2 {
            let processes = scans.scan(Pods).processes;
            let zombies: Vec<_> = processes.iter().filter_map(|process| process.zombie_of).collect();
            assert_eq!((processes.len(), zombies), (2, vec![7]));
        }
        scans.pods = HashSet::from(["another".to_owned()]);
        assert_eq!([Pods, New].map(|scope| pids(&mut scans, scope)), [vec![8], vec![]]);
    }
}
