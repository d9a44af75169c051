//! Looks through /proc for pause processes, and for all processes of pods. Remembers which processes it has seen, so that
//! to look again costs little where nothing is new; what it finds is made use of elsewhere.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use pause_status::stat::{self, Stat};

use super::census::Process;
use super::cgroup::{CgroupIdentity, identify};
use super::pause::{PAUSE_COMM, Pause};
use super::proc::{Boot, FILE_MAX, Proc, ProcessDirectory, ProcessId};

/// From this age on a process is in the cgroup and under the name that it keeps: a runtime moves and renames what it starts
/// within a second.
const SETTLED_SECONDS: u64 = 10;

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub struct Walker {
    known: HashMap<i32, Known>,
    containers: HashSet<Arc<CgroupIdentity>>,
}

#[derive(Debug)]
struct Known {
    start_ticks: u64,
    container: Option<Arc<CgroupIdentity>>,
    /// Old enough for `container` to stay what it is, and not the first of a PID namespace: a pause that is held may be wanted
    /// again, and a runtime may take its time to start one.
    settled: bool,
}

/// What can make a look cheaper, and its time.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The boot that the machine runs since.
    pub boot: &'a Boot,
    /// Clock ticks since.
    pub ticks: u64,
    /// Pauses that are held already.
    pub held: &'a HashSet<ProcessId>,
}

impl Walker {
    /// Pauses that are PID 1 of a pod's PID namespace, among the processes that are not known yet.
    pub fn find_new(&mut self, proc: &Proc, now: Moment<'_>) -> io::Result<Vec<Pause>> {
        let pids = proc.pids()?;
        let mut pauses = Vec::new();
        for &pid in &pids {
            if self.known.get(&pid).is_none_or(|known| !known.settled) {
                pauses.extend(self.look_at(proc, pid, now).and_then(|found| found.pause));
            }
        }
        self.forget_but(&pids);
        Ok(pauses)
    }

    /// The same among all processes; and all processes.
    pub fn look(&mut self, proc: &Proc, now: Moment<'_>) -> io::Result<(Vec<Pause>, Vec<Process>)> {
        let pids = proc.pids()?;
        let (mut pauses, mut processes) = (Vec::new(), Vec::with_capacity(pids.len()));
        for &pid in &pids {
            if let Some(found) = self.look_at(proc, pid, now) {
                pauses.extend(found.pause);
                processes.push(found.process);
            }
        }
        self.forget_but(&pids);
        Ok((pauses, processes))
    }

    /// A process that ends while we look is none that we look for.
    fn look_at(&mut self, proc: &Proc, pid: i32, now: Moment<'_>) -> Option<Found> {
        let line = proc.stat_line(pid).ok()?;
        let stat = Stat::parse(&line)?;
        let id = ProcessId { pid, start_ticks: stat.start_ticks };
        if stat.is_zombie() {
            let unreaped_by = stat::parent(&line).and_then(|parent| i32::try_from(parent).ok());
            // What it was is of no interest any more.
            self.known.insert(pid, Known { start_ticks: id.start_ticks, container: None, settled: true });
            let process = Process { id, unreaped_by: Some(unreaped_by.unwrap_or_default()), container: None };
            return Some(Found { process, pause: None });
        }
        if let Some(known) =
            self.known.get(&pid).filter(|known| known.settled && known.start_ticks == id.start_ticks)
        {
            let process = Process { id, unreaped_by: None, container: known.container.clone() };
            return Some(Found { process, pause: None });
        }
        self.meet(proc, id, stat.comm == PAUSE_COMM, now)
    }

    fn meet(&mut self, proc: &Proc, id: ProcessId, named_pause: bool, now: Moment<'_>) -> Option<Found> {
        let directory = proc.process(id.pid).ok()?;
        let cgroup = directory.read("cgroup", FILE_MAX).ok()?;
        let container = identify(&String::from_utf8_lossy(&cgroup)).map(|identity| self.intern(identity));
        let old = now.ticks.saturating_sub(id.start_ticks) >= proc.ticks(SETTLED_SECONDS);
        let may_be_a_pause = (named_pause || old) && is_first_of_a_pid_namespace(&directory);
        let candidate = named_pause && may_be_a_pause && !now.held.contains(&id) && directory.is_still(id);
        let known = Known {
            start_ticks: id.start_ticks,
            container: container.clone(),
            settled: old && !may_be_a_pause,
        };
        self.known.insert(id.pid, known);
        let pause = match &container {
            Some(identity) if candidate => Some(Pause {
                id,
                identity: identity.as_ref().clone(),
                started_at: proc.started_at(now.boot, id.start_ticks),
                directory,
            }),
            _ => None,
        };
        Some(Found { process: Process { id, unreaped_by: None, container }, pause })
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

    fn forget_but(&mut self, pids: &[i32]) {
        if self.known.len() > pids.len() {
            let pids: HashSet<_> = pids.iter().collect();
            self.known.retain(|pid, _| pids.contains(pid));
            self.containers.retain(|container| Arc::strong_count(container) > 1);
        }
    }
}

struct Found {
    process: Process,
    pause: Option<Pause>,
}

/// Whether a process is PID 1 of a PID namespace that is a child of ours, as the sandbox of a pod is. A container without a
/// shared PID namespace is the same; whether it's the sandbox the pod's status tells.
fn is_first_of_a_pid_namespace(process: &ProcessDirectory) -> bool {
    matches!(process.pids()[..], [_, 1])
}

#[cfg(test)]
mod tests {
    use super::super::proc::fake::{CONTAINER, FakeProc, FakeProcess, SANDBOX, UID};
    use super::*;

    fn pause(pid: i32, pids: &str) -> FakeProcess<'_> {
        FakeProcess { pid, comm: "pause", pids, container: Some(SANDBOX), ..FakeProcess::default() }
    }

    struct Looks {
        fake: FakeProc,
        walker: Walker,
        held: HashSet<ProcessId>,
    }

    impl Looks {
        fn new() -> Self {
            Self { fake: FakeProc::new(), walker: Walker::default(), held: HashSet::new() }
        }

        fn pauses(&mut self, new_alone: bool) -> Vec<i32> {
            let proc = self.fake.proc();
            let boot = proc.boot().unwrap();
            let now = Moment { boot: &boot, ticks: proc.uptime_ticks().unwrap(), held: &self.held };
            let found = if new_alone {
                self.walker.find_new(&proc, now).unwrap()
            } else {
                self.walker.look(&proc, now).unwrap().0
            };
            found.iter().map(|pause| pause.id.pid).collect()
        }

        fn processes(&mut self) -> Vec<Process> {
            let proc = self.fake.proc();
            let boot = proc.boot().unwrap();
            let now = Moment { boot: &boot, ticks: proc.uptime_ticks().unwrap(), held: &self.held };
            let mut processes = self.walker.look(&proc, now).unwrap().1;
            processes.sort_by_key(|process| process.id.pid);
            processes
        }
    }

    #[test]
    fn a_pause_is_found_with_whose_it_is_and_when_it_started() {
        let mut looks = Looks::new();
        looks.fake.add(pause(40, "40 1"));
        looks.fake.add(FakeProcess { pid: 41, comm: "nginx", pids: "41 7", ..FakeProcess::default() });
        let proc = looks.fake.proc();
        let boot = proc.boot().unwrap();
        let now = Moment { boot: &boot, ticks: proc.uptime_ticks().unwrap(), held: &looks.held };
        let found = looks.walker.find_new(&proc, now).unwrap();
        let [pause] = &found[..] else { panic!("{found:?}") };
        assert_eq!((pause.identity.pod.as_str(), pause.identity.container.as_str()), (UID, SANDBOX));
        assert_eq!(pause.started_at.as_second(), 1_700_000_012);
    }

    #[test]
    fn an_ordinary_process_cannot_pose_as_a_pause() {
        let mut looks = Looks::new();
        for (pid, pids) in [(50, "50 12"), (51, "51 13 1"), (52, "52")] {
            looks.fake.add(pause(pid, pids));
        }
        looks.fake.add(FakeProcess { comm: "pausing", ..pause(53, "53 1") });
        looks.fake.add(FakeProcess { container: None, ..pause(54, "54 1") });
        assert_eq!(looks.pauses(false), [0; 0]);
    }

    #[test]
    fn a_pause_that_nobody_holds_is_found_again_and_one_that_is_held_is_not() {
        let mut looks = Looks::new();
        looks.fake.add(pause(40, "40 1"));
        assert_eq!(
            (looks.pauses(true), looks.pauses(true), looks.pauses(false)),
            (vec![40], vec![40], vec![40])
        );
        looks.held.insert(ProcessId { pid: 40, start_ticks: 1200 });
        assert_eq!((looks.pauses(true), looks.pauses(false)), (vec![], vec![]));
    }

    #[test]
    fn a_process_that_is_young_is_looked_at_again() {
        let mut looks = Looks::new();
        let young = FakeProcess { comm: "runc:[2:INIT]", start_ticks: 359_900, ..pause(40, "40 1") };
        looks.fake.add(young);
        assert_eq!(looks.pauses(true), [0; 0]);
        looks.fake.add(FakeProcess { start_ticks: 359_900, ..pause(40, "40 1") });
        assert_eq!(looks.pauses(true), [40]);
    }

    #[test]
    fn a_pause_that_took_its_time_to_start_or_was_held_is_found() {
        let mut looks = Looks::new();
        looks.fake.add(FakeProcess { comm: "runc:[2:INIT]", ..pause(40, "40 1") });
        assert_eq!(looks.pauses(true), [0; 0]);
        looks.fake.add(pause(40, "40 1"));
        looks.held.insert(ProcessId { pid: 40, start_ticks: 1200 });
        assert_eq!((looks.pauses(true), looks.pauses(false)), (vec![], vec![]));
        looks.held.clear();
        assert_eq!(looks.pauses(true), [40]);
    }

    #[test]
    fn a_pid_that_was_used_again_is_another_process() {
        let mut looks = Looks::new();
        looks.fake.add(FakeProcess { comm: "sh", ..pause(40, "40 7") });
        assert_eq!(looks.pauses(true), [0; 0]);
        looks.fake.add(FakeProcess { start_ticks: 2000, ..pause(40, "40 1") });
        assert_eq!(looks.pauses(true), [0; 0], "a short look takes it for the one that it knew");
        assert_eq!(looks.pauses(false), [40], "a whole look sees it");
        looks.fake.remove(40);
        looks.pauses(true);
        looks.fake.add(pause(40, "40 1"));
        assert_eq!(looks.pauses(true), [40], "and so does a short one that saw it gone");
    }

    #[test]
    fn every_process_has_its_container_and_a_zombie_its_parent() {
        let mut looks = Looks::new();
        looks.fake.add(FakeProcess::default());
        looks.fake.add(FakeProcess { pid: 7, container: Some(CONTAINER), ..FakeProcess::default() });
        looks.fake.add(FakeProcess { pid: 8, parent: 7, state: 'Z', ..FakeProcess::default() });
        for _ in 0..2 {
            let processes = looks.processes();
            let seen: Vec<_> = processes
                .iter()
                .map(|process| {
                    let container = process.container.as_ref().map(|identity| identity.container.as_str());
                    (process.id.pid, process.unreaped_by, container)
                })
                .collect();
            assert_eq!(seen, [(1, None, None), (7, None, Some(CONTAINER)), (8, Some(7), None)]);
        }
        assert_eq!(looks.walker.containers.len(), 1);
    }
}
