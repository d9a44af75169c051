//! Which pods wait to be looked at, and since when: kube's scheduler, which the queue is made of, does not tell. It knows no clock.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::pods::PodKey;

/// The pods that wait, each with the moment from which it is due.
#[derive(Debug, Default)]
pub struct Waiting {
    due: HashMap<PodKey, Instant>,
}

impl Waiting {
    /// A pod is to be looked at from this moment on. What is asked for sooner stands; says whether this does.
    pub fn add(&mut self, pod: &PodKey, due: Instant) -> bool {
        let sooner = self.due.get(pod).is_none_or(|before| due < *before);
        if sooner {
            self.due.insert(pod.clone(), due);
        }
        sooner
    }

    /// It has its turn, or is gone. How long it waited for that; nothing if nobody had asked for it.
    pub fn take(&mut self, pod: &PodKey, now: Instant) -> Option<Duration> {
        let due = self.due.remove(pod)?;
        // At the start all pods wait, and later few.
        if self.due.len() < self.due.capacity() / 8 {
            self.due.shrink_to_fit();
        }
        Some(now.saturating_duration_since(due))
    }

    /// How many are due.
    #[must_use]
    pub fn depth(&self, now: Instant) -> usize {
        self.due.values().filter(|due| **due <= now).count()
    }

    /// Nobody looks at any of them any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pod(name: &str) -> PodKey {
        PodKey::new("shop", name)
    }

    #[test]
    fn a_pod_waits_from_when_it_is_due() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        assert!(waiting.add(&pod("now"), start) && waiting.add(&pod("later"), start + 5 * SECOND));
        assert_eq!(waiting.depth(start + SECOND), 1);
        assert_eq!(waiting.depth(start + 5 * SECOND), 2);
        assert_eq!(waiting.take(&pod("now"), start + 2 * SECOND), Some(2 * SECOND));
        assert_eq!(waiting.take(&pod("later"), start + 6 * SECOND), Some(SECOND));
        assert_eq!(waiting.take(&pod("later"), start + 6 * SECOND), None, "nobody asked for it again");
    }

    #[test]
    fn the_sooner_of_two_wishes_stands() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        assert!(waiting.add(&pod("web"), start + 60 * SECOND));
        assert!(waiting.add(&pod("web"), start));
        assert!(!waiting.add(&pod("web"), start + SECOND));
        assert_eq!(waiting.depth(start), 1);
        waiting.clear();
        assert_eq!(waiting.depth(start), 0);
    }
}
