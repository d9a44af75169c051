//! How often an idle PID 1 wakes up: each wake-up costs the node energy, times every pod. All contenders idle at the same time, each
//! alone in a namespace and with one other sleeping process in another.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use pid1_harness::Namespace;

use crate::contenders::Contender;
use crate::memory;
use crate::namespace::{self, Inside, times_woken};

/// Pause scans every 20 s alone, and every 10 s once a scan has found another process.
const SETTLE: Duration = Duration::from_secs(30);

/// One contender, idle in two namespaces.
pub(crate) struct Idle {
    alone: Namespace,
    with_others: Namespace,
    _other: Inside,
    since: Instant,
}

impl Idle {
    pub(crate) fn start(contender: &Contender) -> Result<Self> {
        let alone = namespace::start(&contender.command())?;
        let with_others = namespace::start(&contender.command())?;
        let other = Inside::start(&with_others, &["sleep", "infinity"])?;
        Ok(Self { alone, with_others, _other: other, since: Instant::now() })
    }

    fn times_woken(&self) -> Result<[u64; 2]> {
        Ok([times_woken(&self.alone)?, times_woken(&self.with_others)?])
    }
}

/// Waits until all have settled and for `minutes` more. Of each its resident, private and page table memory in kB, and its wake-ups a
/// minute alone and with the other process.
pub(crate) fn after(minutes: u32, idle: &[Result<Idle>]) -> Vec<Result<[f64; 5]>> {
    let started = idle.iter().filter_map(|idle| idle.as_ref().ok()).map(|idle| idle.since).max();
    if let Some(started) = started {
        std::thread::sleep(SETTLE.saturating_sub(started.elapsed()));
    }
    let count = || -> Vec<Result<[u64; 2]>> {
        let times_woken = |idle: &Result<Idle>| match idle {
            Ok(idle) => idle.times_woken(),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        idle.iter().map(times_woken).collect()
    };
    let before = count();
    std::thread::sleep(Duration::from_secs(60) * minutes);
    let after = count();
    let cost = |((idle, before), after): ((&Result<Idle>, Result<_>), Result<_>)| -> Result<[f64; 5]> {
        let ([alone_before, others_before], [alone_after, others_after]): ([u64; 2], [u64; 2]) =
            (before?, after?);
        let idle = idle.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let [resident, private, page_tables] = memory::of(&idle.alone)?;
        // A handful.
        let a_minute = |before: u64, after: u64| (after - before) as f64 / f64::from(minutes);
        let alone = a_minute(alone_before, alone_after);
        Ok([resident, private, page_tables, alone, a_minute(others_before, others_after)])
    };
    idle.iter().zip(before).zip(after).map(cost).collect()
}
