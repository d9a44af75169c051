//! Counts the processes of pods, and finds the parents of zombies, in one look through /proc. A zombie belongs to the pod of
//! its living parent: of its own cgroup the kernel tells nothing on cgroup v1. Decides by values alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::cgroup::CgroupIdentity;
use super::proc::ProcessId;

/// A process as a look through /proc found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Which process it is.
    pub id: ProcessId,
    /// Of a zombie, the PID of the parent that has to reap it; `None` for a process that lives.
    pub unreaped_by: Option<i32>,
    /// Container that it runs in, if it's one of a pod.
    pub container: Option<Arc<CgroupIdentity>>,
}

/// What a look found of all pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// By what a pod's cgroup is named by.
    pods: HashMap<String, PodCensus>,
    /// Zombies whose parents run outside of pods.
    pub outside: u32,
}

/// What a look found of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodCensus {
    /// Processes, zombies included.
    pub processes: u32,
    /// Those that ended and were not reaped.
    pub zombies: u32,
    /// Who does not reap them; most zombies first.
    pub parents: Vec<Parent>,
}

/// A process with zombies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Which process it is.
    pub id: ProcessId,
    /// Id of the container that it runs in.
    pub container: String,
    /// Its children that it did not wait for.
    pub zombies: Vec<ProcessId>,
}

impl Census {
    /// Counts.
    #[must_use]
    pub fn of(processes: &[Process]) -> Self {
        let living = |process: &&Process| process.unreaped_by.is_none();
        // Of all that live, few are asked for.
        let wanted: HashSet<i32> = processes.iter().filter_map(|process| process.unreaped_by).collect();
        let is_wanted = |process: &&Process| living(process) && wanted.contains(&process.id.pid);
        let by_pid: HashMap<i32, &Process> =
            processes.iter().filter(is_wanted).map(|process| (process.id.pid, process)).collect();
        let mut census = Self::default();
        let mut parents: HashMap<i32, usize> = HashMap::new();
        for process in processes.iter().filter(living) {
            if let Some(container) = &process.container {
                census.pod(&container.pod).processes += 1;
            }
        }
        for zombie in processes {
            // Between reading the one and the other the parent may have gone; the next look knows who inherited.
            let Some(parent) = zombie.unreaped_by.and_then(|pid| by_pid.get(&pid)) else { continue };
            match &parent.container {
                Some(container) => {
                    let pod = census.pod(&container.pod);
                    let index = *parents.entry(parent.id.pid).or_insert(pod.parents.len());
                    pod.add_zombie(zombie.id, index, parent.id, &container.container);
                }
                None => census.outside += 1,
            }
        }
        for pod in census.pods.values_mut() {
            pod.parents.sort_by_key(|parent| (std::cmp::Reverse(parent.zombies.len()), parent.id.pid));
        }
        census
    }

    /// What was found of the pod; of one that has no process that is nothing.
    #[must_use]
    pub fn of_pod(&self, cgroup_id: &str) -> Option<&PodCensus> {
        self.pods.get(cgroup_id)
    }

    fn pod(&mut self, cgroup_id: &str) -> &mut PodCensus {
        if !self.pods.contains_key(cgroup_id) {
            self.pods.insert(cgroup_id.to_owned(), PodCensus::default());
        }
        self.pods.entry(cgroup_id.to_owned()).or_default()
    }
}

impl PodCensus {
    /// `index`: where its parent stands, or is to stand, among those of the pod.
    fn add_zombie(&mut self, zombie: ProcessId, index: usize, parent: ProcessId, container: &str) {
        self.processes += 1;
        self.zombies += 1;
        match self.parents.get_mut(index) {
            Some(known) => known.zombies.push(zombie),
            None => self.parents.push(Parent {
                id: parent,
                container: container.to_owned(),
                zombies: vec![zombie],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(pod: &str, id: &str) -> Option<Arc<CgroupIdentity>> {
        Some(Arc::new(CgroupIdentity { pod: pod.to_owned(), container: id.to_owned() }))
    }

    const fn id(pid: i32) -> ProcessId {
        ProcessId { pid, start_ticks: 1 }
    }

    fn living(pid: i32, container: Option<Arc<CgroupIdentity>>) -> Process {
        Process { id: id(pid), unreaped_by: None, container }
    }

    fn zombie(pid: i32, parent: i32) -> Process {
        Process { id: id(pid), unreaped_by: Some(parent), container: None }
    }

    #[test]
    fn a_zombie_belongs_to_the_pod_of_its_living_parent() {
        let processes = [
            living(1, None),
            living(10, container("a", "pause")),
            living(11, container("a", "c1")),
            living(12, container("a", "c2")),
            living(20, container("b", "c3")),
            zombie(30, 12),
            zombie(31, 11),
            zombie(32, 12),
            zombie(33, 1),
        ];
        let census = Census::of(&processes);
        let a = census.of_pod("a").unwrap();
        assert_eq!((a.processes, a.zombies, census.outside), (6, 3, 1));
        let parents: Vec<_> = a
            .parents
            .iter()
            .map(|parent| (parent.id.pid, parent.container.as_str(), parent.zombies.len()))
            .collect();
        assert_eq!(parents, [(12, "c2", 2), (11, "c1", 1)]);
        assert_eq!(census.of_pod("b").unwrap().zombies, 0);
        assert_eq!(census.of_pod("c"), None);
    }

    #[test]
    fn a_zombie_whose_parent_went_between_two_reads_waits_for_the_next_look() {
        let census = Census::of(&[living(10, container("a", "pause")), zombie(30, 99)]);
        assert_eq!((census.of_pod("a").unwrap().zombies, census.outside), (0, 0));
    }
}
