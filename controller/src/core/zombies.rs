//! Counts the processes of each pod and finds the parents of its zombies. A zombie belongs to the pod of its living parent: on cgroup
//! v1 the kernel does not report the cgroup of a zombie.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::procfs::ProcessId;
use crate::procfs::scanner::Process;

/// Process counts of all pods of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// By the name of the pod's cgroup.
    pods: HashMap<String, PodCounts>,
    /// Zombies of parents outside of pods; `None` if only some pods were counted.
    host_zombies: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// Number of processes, zombies included.
    pub processes: u32,
    pub threads: u32,
    pub zombies: u32,
    /// Parents of the zombies, those with the most first.
    pub parents: Vec<Parent>,
}

/// Zombies of the node by where their parents run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeZombies {
    /// Outside of pods: container runtimes and system services.
    pub host: u32,
    pub watched_pods: u32,
    pub other_pods: u32,
}

/// A process that has not reaped its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub id: ProcessId,
    /// Id of its container.
    pub container: String,
    pub zombies: Vec<ProcessId>,
}

impl ProcessCounts {
    pub fn of(processes: &[Process]) -> Self {
        let mut zombies: HashMap<i32, Vec<ProcessId>> = HashMap::new();
        for process in processes {
            if let Some(parent) = process.zombie_of {
                zombies.entry(parent).or_default().push(process.id);
            }
        }
        let (mut counts, mut host_zombies) = (Self::default(), 0);
        for process in processes.iter().filter(|process| process.zombie_of.is_none()) {
            // Zombies of a parent that exited during the scan are counted in the next one, below the process that adopted them.
            let zombies = zombies.remove(&process.id.pid).unwrap_or_default();
            let number = u32::try_from(zombies.len()).unwrap_or(u32::MAX);
            let Some(container) = &process.container else {
                host_zombies += number;
                continue;
            };
            let pod = counts.pods.entry(container.pod.clone()).or_default();
            pod.processes += 1 + number;
            pod.threads += process.threads + number;
            pod.zombies += number;
            if number > 0 {
                pod.parents.push(Parent { id: process.id, container: container.container.clone(), zombies });
            }
        }
        for pod in counts.pods.values_mut() {
            pod.parents.sort_by_key(|parent| (Reverse(parent.zombies.len()), parent.id.pid));
        }
        counts.host_zombies = Some(host_zombies);
        counts
    }

    /// The counts of these pods, by the names of their cgroups, where not all processes were scanned.
    pub fn of_pods(pods: &HashSet<String>, processes: &[Process]) -> Self {
        let mut counts = Self::of(processes);
        counts.pods.retain(|pod, _| pods.contains(pod));
        Self { host_zombies: None, ..counts }
    }

    /// The counts of a pod; `None` if it has no process.
    pub fn of_pod(&self, cgroup_id: &str) -> Option<&PodCounts> {
        self.pods.get(cgroup_id)
    }

    /// The zombies of the node; `None` if only some pods were counted. `watched` are the names of the cgroups of watched pods.
    pub fn of_node(&self, watched: &HashSet<&str>) -> Option<NodeZombies> {
        let mut zombies = NodeZombies { host: self.host_zombies?, watched_pods: 0, other_pods: 0 };
        for (pod, counts) in &self.pods {
            let is_watched = watched.contains(pod.as_str());
            *(if is_watched { &mut zombies.watched_pods } else { &mut zombies.other_pods }) += counts.zombies;
        }
        Some(zombies)
    }

    /// The zombies of all pods.
    pub fn pod_zombies(&self) -> impl Iterator<Item = ProcessId> {
        let parents = self.pods.values().flat_map(|pod| &pod.parents);
        parents.flat_map(|parent| parent.zombies.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::cgroup::CgroupIdentity;
    use std::sync::Arc;

    fn container(pod: &str, id: &str) -> Option<Arc<CgroupIdentity>> {
        Some(Arc::new(CgroupIdentity { pod: pod.to_owned(), container: id.to_owned() }))
    }

    const fn id(pid: i32) -> ProcessId {
        ProcessId { pid, start_ticks: 1 }
    }

    fn living(pid: i32, container: Option<Arc<CgroupIdentity>>) -> Process {
        Process { id: id(pid), threads: 2, zombie_of: None, container }
    }

    fn zombie(pid: i32, parent: i32) -> Process {
        Process { id: id(pid), threads: 1, zombie_of: Some(parent), container: None }
    }

    #[test]
    fn zombie_belongs_to_the_pod_of_its_living_parent() {
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
        let counts = ProcessCounts::of(&processes);
        let a = counts.of_pod("a").unwrap();
        assert_eq!((a.processes, a.threads, a.zombies, counts.host_zombies), (6, 9, 3, Some(1)));
        let parent = |parent: &Parent| (parent.id.pid, parent.container.clone(), parent.zombies.len());
        let parents: Vec<_> = a.parents.iter().map(parent).collect();
        assert_eq!(parents, [(12, "c2".to_owned(), 2), (11, "c1".to_owned(), 1)]);
        assert_eq!(counts.of_pod("b").unwrap().zombies, 0);
        assert_eq!(counts.of_pod("c"), None);
        assert_eq!(counts.pod_zombies().count(), 3);
        for (watched, watched_pods, other_pods) in [("a", 3, 0), ("b", 0, 3)] {
            let zombies = NodeZombies { host: 1, watched_pods, other_pods };
            assert_eq!(counts.of_node(&HashSet::from([watched])), Some(zombies));
        }
        let only_b = ProcessCounts::of_pods(&HashSet::from(["b".to_owned()]), &processes);
        assert_eq!((only_b.of_pod("b"), only_b.of_pod("a")), (counts.of_pod("b"), None));
        assert_eq!(only_b.of_node(&HashSet::new()), None);
    }

    #[test]
    fn zombie_of_a_vanished_parent_is_counted_later() {
        let counts = ProcessCounts::of(&[living(10, container("a", "pause")), zombie(30, 99)]);
        assert_eq!((counts.of_pod("a").unwrap().zombies, counts.host_zombies), (0, Some(0)));
    }
}
