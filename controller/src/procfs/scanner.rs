//! Scans /proc for processes and their pods, and for those that may be the sandbox of one. It remembers processes between scans, so that a
//! scan costs little where nothing changed. `core` interprets the result.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use jiff::Timestamp;
use pause_status::stat::{self, Stat};

use super::cgroup::{CgroupIdentity, identify};
use super::pause::{PauseProcess, has_no_memory};
use super::{FILE_MAX, Proc, ProcessDirectory, ProcessId, STAT_MAX};

/// Names of the container runtimes and kubelets, whose restart may end sandboxes. k3s and MicroK8s run the kubelet in a process of their own.
const SERVICES: [&str; 6] = ["containerd", "crio", "k3s-server", "k3s-agent", "kubelite", "kubelet"];
/// Age from which on a process keeps its cgroup and its name: a runtime moves and renames what it starts within a second.
const SETTLED_SECONDS: u64 = 10;
/// Start of the name of a process of runc that is to execute the program of a container.
const RUNC: &[u8] = b"runc:[";

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
    /// Of all pods and at any scope.
    pub inits: Vec<InitProcess>,
    pub processes: Vec<Process>,
    /// Container runtimes and kubelets outside of pods.
    pub services: Vec<Service>,
    /// Whether the kernel denied access to a process.
    pub is_denied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    pub name: &'static str,
    /// Start of its oldest process: others are commands, or are about to execute another program.
    pub started_at: Timestamp,
}

/// PID 1 of a PID namespace in a pod: its sandbox, or a container that has a PID namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitProcess {
    pub id: ProcessId,
    pub identity: Arc<CgroupIdentity>,
    started_at: Timestamp,
    /// Started only some seconds ago.
    is_new: bool,
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
}

#[derive(Debug)]
struct Known {
    start_ticks: u64,
    container: Option<Arc<CgroupIdentity>>,
    /// Name of a container runtime or kubelet outside of pods.
    service: Option<&'static str>,
    is_zombie: bool,
    is_init: bool,
    /// Old enough that its cgroup and name are final.
    settled: bool,
}

impl Scanner {
    pub fn new(proc: Proc) -> Self {
        Self { proc, known: HashMap::new(), containers: HashSet::new() }
    }

    /// Scans. `pods` are those of [`Scope::Pods`], by the names of their cgroups.
    pub fn scan(&mut self, scope: Scope, pods: &HashSet<String>) -> io::Result<Scan> {
        let uptime_ticks = self.proc.uptime_ticks()?;
        let now = Timestamp::now();
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
                match self.read(pid, uptime_ticks) {
                    Ok(process) => scan.processes.extend(process),
                    // One that exits meanwhile is not part of the result.
                    Err(error) => scan.is_denied |= error.kind() == ErrorKind::PermissionDenied,
                }
            }
        }
        self.forget_all_but(&pids);
        let inits = self.known.iter().filter(|(_, known)| known.is_init);
        scan.inits = inits.filter_map(|(&pid, known)| self.init(pid, known, uptime_ticks, now)).collect();
        let service = |name| {
            let processes = self.known.values().filter(|known| known.service == Some(name));
            let start_ticks = processes.map(|known| known.start_ticks).min()?;
            Some(Service { name, started_at: self.proc.start_time(start_ticks, uptime_ticks, now) })
        };
        scan.services = SERVICES.into_iter().filter_map(service).collect();
        Ok(scan)
    }

    fn read(&mut self, pid: i32, uptime_ticks: u64) -> io::Result<Option<Process>> {
        let line = self.proc.stat_line(pid)?;
        let Some(stat) = Stat::parse(&line) else { return Ok(None) };
        let id = ProcessId { pid, start_ticks: stat.start_ticks };
        let mut process = Process { id, threads: stat.threads, zombie_of: None, container: None };
        let known = self.known.get(&pid).filter(|known| known.is(id));
        if stat.is_zombie() {
            let parent = stat::parent(&line).and_then(|parent| i32::try_from(parent).ok());
            process.zombie_of = Some(parent.unwrap_or_default());
            let start_ticks = id.start_ticks;
            let (container, service, is_init) = (None, None, false);
            let known = Known { start_ticks, container, service, is_zombie: true, is_init, settled: true };
            self.known.insert(pid, known);
        } else if let Some(known) = known {
            process.container.clone_from(&known.container);
        } else {
            let known = self.read_known(id, stat.comm, uptime_ticks)?;
            process.container.clone_from(&known.container);
            self.known.insert(pid, known);
        }
        Ok(Some(process))
    }

    /// Reads the attributes that a process keeps, such as its container.
    fn read_known(&mut self, id: ProcessId, comm: &[u8], uptime_ticks: u64) -> io::Result<Known> {
        let directory = self.proc.process(id.pid)?;
        let cgroup = directory.read("cgroup", FILE_MAX)?;
        let container = identify(&String::from_utf8_lossy(&cgroup)).map(|identity| self.intern(identity));
        let is_init = container.is_some() && is_init_of_child_namespace(&directory);
        let is_service = |name: &&str| name.as_bytes() == comm && container.is_none();
        let service = SERVICES.into_iter().find(is_service);
        let settled = self.is_old(id.start_ticks, uptime_ticks);
        Ok(Known { start_ticks: id.start_ticks, container, service, is_zombie: false, is_init, settled })
    }

    fn init(&self, pid: i32, known: &Known, uptime_ticks: u64, now: Timestamp) -> Option<InitProcess> {
        let start_ticks = known.start_ticks;
        Some(InitProcess {
            id: ProcessId { pid, start_ticks },
            identity: known.container.clone()?,
            started_at: self.proc.start_time(start_ticks, uptime_ticks, now),
            is_new: !self.is_old(start_ticks, uptime_ticks),
        })
    }

    fn is_old(&self, start_ticks: u64, uptime_ticks: u64) -> bool {
        uptime_ticks.saturating_sub(start_ticks) >= self.proc.ticks(SETTLED_SECONDS)
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
        if self.known.len() > pids.len() {
            let pids: HashSet<_> = pids.iter().collect();
            self.known.retain(|pid, _| pids.contains(pid));
            self.containers.retain(|container| Arc::strong_count(container) > 1);
        }
    }
}

impl Known {
    /// Whether it is the same process and its attributes are final.
    fn is(&self, id: ProcessId) -> bool {
        self.settled && self.start_ticks == id.start_ticks
    }

    fn is_in(&self, pods: &HashSet<String>) -> bool {
        self.container.as_ref().is_some_and(|container| pods.contains(&container.pod))
    }
}

impl InitProcess {
    /// Holds it as the pause of a sandbox, if it still exists, has not exited, and has executed the program of its container: a runtime may
    /// fail to. The command line of a container's process is not read, because that can block.
    pub fn hold(&self, proc: &Proc) -> Option<PauseProcess> {
        let &Self { id, ref identity, started_at, is_new } = self;
        let directory = proc.process(id.pid).ok()?;
        let line = directory.read("stat", STAT_MAX).ok()?;
        let stat = Stat::parse(&line).filter(|stat| stat.start_ticks == id.start_ticks)?;
        // Processes of crun and youki are copies of the command that creates the container.
        let cmdline = directory.read("cmdline", FILE_MAX).unwrap_or_default();
        let creates =
            cmdline.split(|&byte| byte == 0).any(|argument| argument == identity.container.as_bytes());
        if creates || stat.comm.starts_with(RUNC) || has_no_memory(&line) {
            return None;
        }
        let identity = identity.as_ref().clone();
        Some(PauseProcess { id, identity, started_at, is_new, directory })
    }
}

/// Whether a process is PID 1 of a PID namespace that is a child of the node's. A pod's own containers can create only those further below.
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
        let (container, cmdline) = (Some(SANDBOX), b"/pause\0");
        FakeProcess { pid, comm: "pause", pids, container, cmdline, ..FakeProcess::default() }
    }

    struct Scans {
        fake: FakeProc,
        scanner: Scanner,
        pods: HashSet<String>,
    }

    impl Scans {
        fn new() -> Self {
            let fake = FakeProc::new();
            Self { scanner: Scanner::new(fake.proc()), fake, pods: HashSet::new() }
        }

        fn scan(&mut self, scope: Scope) -> Scan {
            self.scanner.scan(scope, &self.pods).unwrap()
        }

        fn inits(&mut self, scope: Scope) -> Vec<i32> {
            self.scan(scope).inits.iter().map(|init| init.id.pid).collect()
        }
    }

    #[test]
    fn init_of_a_pod_is_found_with_its_identity_and_start_time() {
        let mut scans = Scans::new();
        scans.fake.add(pause(40, "40 1"));
        scans.fake.add(FakeProcess { pid: 41, comm: "nginx", pids: "41 7", ..FakeProcess::default() });
        let found = scans.scan(New).inits;
        let [init] = &found[..] else { panic!("{found:?}") };
        assert_eq!((init.identity.pod.as_str(), init.identity.container.as_str()), (UID, SANDBOX));
        let age = Timestamp::now().duration_since(init.started_at).as_secs();
        assert!((3588..3600).contains(&age), "an hour less 12 s: {age}");
    }

    /// As the pause of OpenShift is.
    #[test]
    fn init_with_any_name_is_found() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess { comm: "pod", ..pause(40, "40 1") });
        assert_eq!([New, All].map(|scope| scans.inits(scope)), [[40], [40]]);
    }

    #[test]
    fn ordinary_process_is_no_init() {
        let mut scans = Scans::new();
        for (pid, pids) in [(50, "50 12"), (51, "51 13 1"), (52, "52")] {
            scans.fake.add(pause(pid, pids));
        }
        scans.fake.add(FakeProcess { container: None, ..pause(54, "54 1") });
        assert_eq!(scans.inits(All), NONE);
    }

    #[test]
    fn init_is_found_by_each_scan_until_it_exits() {
        let mut scans = Scans::new();
        scans.fake.add(pause(40, "40 1"));
        assert_eq!([New, New, All].map(|scope| scans.inits(scope)), [[40], [40], [40]]);
        scans.fake.remove(40);
        assert_eq!([New, All].map(|scope| scans.inits(scope)), [NONE, NONE]);
    }

    #[test]
    fn process_of_the_runtime_is_not_held_before_it_executes_pause() {
        let crun = format!("/usr/bin/crun\0create\0--bundle\0/run\0{SANDBOX}\0");
        for (comm, cmdline) in [("runc:[2:INIT]", b"runc\0init\0".as_slice()), ("6", crun.as_bytes())] {
            let mut scans = Scans::new();
            scans.fake.add(FakeProcess { comm, cmdline, ..pause(40, "40 1") });
            let is_held = |scans: &mut Scans| {
                let [init] = &scans.scan(New).inits[..] else { panic!("it is not found") };
                init.hold(&scans.fake.proc()).is_some()
            };
            assert!(!is_held(&mut scans), "{comm}");
            scans.fake.add(pause(40, "40 1"));
            assert!(is_held(&mut scans), "{comm}");
        }
    }

    #[test]
    fn young_process_is_read_again() {
        let mut scans = Scans::new();
        let young = FakeProcess { start_ticks: 359_900, ..pause(40, "40 1") };
        scans.fake.add(FakeProcess { container: None, ..young });
        assert_eq!(scans.inits(New), NONE);
        scans.fake.add(FakeProcess { start_ticks: 359_900, ..pause(40, "40 1") });
        assert_eq!(scans.inits(New), [40], "its runtime moved it");
    }

    #[test]
    fn reused_pid_is_another_process() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess { comm: "sh", ..pause(40, "40 7") });
        assert_eq!(scans.inits(New), NONE);
        scans.fake.add(FakeProcess { start_ticks: 2000, ..pause(40, "40 1") });
        assert_eq!(scans.inits(New), NONE, "a scan of new processes takes it for the known one");
        assert_eq!(scans.inits(All), [40]);
        let [init] = &scans.scan(New).inits[..] else { panic!("it is known") };
        assert!(init.hold(&scans.fake.proc()).is_some());
        scans.fake.add(FakeProcess { start_ticks: 2000, cmdline: b"", ..pause(40, "40 1") });
        assert!(init.hold(&scans.fake.proc()).is_none(), "it has exited");
        scans.fake.add(pause(40, "40 1"));
        assert!(init.hold(&scans.fake.proc()).is_none(), "it was replaced");
        scans.fake.remove(40);
        scans.inits(New);
        scans.fake.add(pause(40, "40 1"));
        assert_eq!(scans.inits(New), [40], "it was missing from the last scan");
    }

    #[test]
    fn access_that_is_denied_is_reported_by_each_scan() {
        let mut scans = Scans::new();
        scans.fake.add(FakeProcess::default());
        scans.fake.add(pause(40, "40 1"));
        let is_denied = |scans: &mut Scans| [New, Pods, All].map(|scope| scans.scan(scope).is_denied);
        assert_eq!(is_denied(&mut scans), [false; 3]);
        for file in ["stat", "cgroup"] {
            scans.scanner = Scanner::new(scans.fake.proc());
            let denied = scans.fake.deny(40, file);
            assert_eq!(is_denied(&mut scans), [true; 3], "{file}");
            drop(denied);
            assert_eq!(is_denied(&mut scans), [false; 3], "{file}");
        }
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
