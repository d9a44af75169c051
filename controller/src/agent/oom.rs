//! Whether the OOM killer has just killed a process of the node, by the kernel's counter. `core` decides what that means for a pod.

use std::time::Duration;

use tokio::time::Instant;

use crate::procfs::Proc;

/// Time between an OOM kill and its effect on pause: the counter is read every few seconds.
const WINDOW: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct OomKills {
    proc: Proc,
    total: Option<u64>,
    /// When the counter was last found to have moved.
    moved_at: Option<Instant>,
}

impl OomKills {
    pub fn new(proc: Proc) -> Self {
        Self { total: proc.oom_kills(), proc, moved_at: None }
    }

    /// Reads the counter, which costs the kernel a sum over all cores: it is read at each reading of the pods, and for an exit of pause.
    pub fn are_recent(&mut self, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.total, self.proc.oom_kills());
        if self.total.zip(before).is_some_and(|(total, before)| total > before) {
            self.moved_at = Some(now);
        }
        self.moved_at.is_some_and(|at| now.duration_since(at) < WINDOW)
    }
}
