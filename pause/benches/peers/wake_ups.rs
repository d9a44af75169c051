//! How often an idle PID 1 wakes up: each wake-up costs the node energy, times every pod. All contenders idle at the
//! same time, each alone in a namespace and with one other sleeping process in another.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use pid1_harness::Namespace;

use crate::contenders::{Contender, in_path};
use crate::memory::{self, Memory};
use crate::namespace::{self, times_woken};

/// Pause takes up its slow rhythm when it has been alone for a minute.
const SETTLE: Duration = Duration::from_secs(75);

/// One contender, idle in two namespaces.
pub(crate) struct Idle {
    alone: Namespace,
    with_others: Namespace,
    other: Child,
    since: Instant,
}

/// What an idle contender cost.
pub(crate) struct Cost {
    pub(crate) memory: Memory,
    /// Wake-ups a minute.
    pub(crate) alone: f64,
    pub(crate) with_others: f64,
}

impl Idle {
    pub(crate) fn start(contender: &Contender) -> Result<Self> {
        let alone = namespace::start(&contender.command())?;
        let with_others = namespace::start(&contender.command())?;
        let sleep = in_path("sleep").context("there is no sleep(1)")?;
        let other = with_others.enter().arg(sleep).arg("infinity").spawn().context("running nsenter")?;
        Ok(Self { alone, with_others, other, since: Instant::now() })
    }

    fn times_woken(&self) -> Result<[u64; 2]> {
        Ok([times_woken(&self.alone)?, times_woken(&self.with_others)?])
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // The namespace takes the process inside with it; this is the nsenter that waits for it.
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

/// Waits until all have settled, then for `minutes`, and says what each cost in that time.
pub(crate) fn after(minutes: u32, idle: &[Result<Idle>]) -> Vec<Result<Cost>> {
    let started = idle.iter().filter_map(|idle| idle.as_ref().ok()).map(|idle| idle.since).max();
    if let Some(started) = started {
        std::thread::sleep(SETTLE.saturating_sub(started.elapsed()));
    }
    let look = || -> Vec<Result<[u64; 2]>> {
        let times_woken = |idle: &Result<Idle>| match idle {
            Ok(idle) => idle.times_woken(),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        idle.iter().map(times_woken).collect()
    };
    let before = look();
    std::thread::sleep(Duration::from_secs(60) * minutes);
    let after = look();
    let cost = |((idle, before), after): ((&Result<Idle>, Result<_>), Result<_>)| -> Result<Cost> {
        let ([alone_before, others_before], [alone_after, others_after]): ([u64; 2], [u64; 2]) =
            (before?, after?);
        let idle = idle.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        // A handful.
        let a_minute = |before: u64, after: u64| (after - before) as f64 / f64::from(minutes);
        Ok(Cost {
            memory: memory::of(&idle.alone)?,
            alone: a_minute(alone_before, alone_after),
            with_others: a_minute(others_before, others_after),
        })
    };
    idle.iter().zip(before).zip(after).map(cost).collect()
}
