//! Children: orphans and zombies below a living parent, and when they are reaped. The checks take any PID 1, so that
//! the same ones run against pause, its peers, and a PID 1 that never waits.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::sandbox::{Pid1, Sandbox};
use crate::{Named, must_fail};
use pid1_harness::{TIMEOUT, eventually, within};

pub(crate) const TESTS: &[Named] = &[
    ("an_orphan_is_reaped", || orphans_are_reaped(&Pid1::pause()?.start()?, 1)),
    ("control_a_pid_1_that_never_waits_reaps_no_orphan", || {
        must_fail(orphans_are_reaped(&Pid1::never_waits()?.start()?, 1), "zombies remain")
    }),
    ("a_burst_of_1000_orphans_is_reaped", || orphans_are_reaped(&Pid1::pause()?.start()?, 1000)),
    ("control_a_pid_1_that_never_waits_reaps_no_burst", || {
        must_fail(orphans_are_reaped(&Pid1::never_waits()?.start()?, 1000), "zombies remain")
    }),
    ("zombies_are_reaped_when_their_parent_exits", || {
        zombies_are_reaped_with_their_parent(&Pid1::pause()?.start()?, 3)
    }),
    ("control_pid_1_that_never_waits_keeps_zombies_of_a_parent", || {
        must_fail(zombies_are_reaped_with_their_parent(&Pid1::never_waits()?.start()?, 3), "zombies remain")
    }),
    ("storm_of_20000_orphans_is_reaped_and_published_once_a_second", storm_is_reaped),
    ("zombies_of_a_living_parent_are_counted_then_reaped_and_counted", || zombies_are_counted(3)),
    ("5000_zombies_of_a_parent_are_counted_then_reaped_and_counted", || zombies_are_counted(5000)),
    ("a_stopped_child_is_left_alone", a_stopped_child_is_left_alone),
    ("children_of_an_earlier_program_are_reaped", children_of_an_earlier_program_are_reaped),
];

pub(crate) fn no_zombies(sandbox: &Sandbox) -> Result<()> {
    // Long enough for any machine to reap, short enough for the controls, which wait it out.
    within(Duration::from_secs(10), || {
        let zombies = sandbox.zombies()?;
        ensure!(zombies == 0, "{zombies} zombies remain");
        Ok(())
    })
}

pub(crate) fn orphans_are_reaped(sandbox: &Sandbox, count: u32) -> Result<()> {
    sandbox.run_helper(&["orphans", &count.to_string()])?;
    no_zombies(sandbox)
}

pub(crate) fn zombies_are_reaped_with_their_parent(sandbox: &Sandbox, count: usize) -> Result<()> {
    let parent = sandbox.start_helper(&["never-wait", &count.to_string()])?;
    within(Duration::from_secs(60), || {
        let zombies = sandbox.zombies()?;
        ensure!(zombies == count, "{zombies} zombies, not {count}");
        Ok(())
    })?;
    parent.kill()?;
    no_zombies(sandbox)
}

fn storm_is_reaped() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let mut last = sandbox.status(|status| status.reaped)?;
    let started = Instant::now();
    let mut helper = sandbox.spawn_helper(&["orphans", "20000"])?;
    let mut updates = 0;
    while helper.try_wait()?.is_none() || last < 20_000 {
        let reaped = sandbox.status(|status| status.reaped)?;
        updates += u64::from(reaped != last);
        last = reaped;
        ensure!(started.elapsed() < TIMEOUT, "{last} of 20,000 orphans are reaped");
    }
    // A second between two updates, whatever the phase.
    let seconds = started.elapsed().as_secs() + 1;
    ensure!(updates <= seconds + 1, "{updates} updates in {seconds} s");
    let zombies = sandbox.zombies()?;
    ensure!(zombies == 0, "{zombies} zombies after the last orphan");
    Ok(())
}

fn zombies_are_counted(count: u32) -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let parent = sandbox.start_helper(&["never-wait", &count.to_string()])?;
    sandbox.shows((count, count, 0), |status| (status.zombies, status.peak_zombies, status.reaped))?;
    // Pause and the parent.
    sandbox.shows(count + 2, |status| status.processes)?;
    parent.kill()?;
    sandbox.shows((0, count, count.into()), |status| (status.zombies, status.peak_zombies, status.reaped))
}

fn a_stopped_child_is_left_alone() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.run("( exec sleep 1000 > /dev/null & )")?;
    sandbox
        .run("until pkill -STOP -x sleep; do sleep 0.1; done; pkill -CONT -x sleep; pkill -STOP -x sleep")?;
    eventually(|| {
        let state = sandbox.run("ps -o state= -C sleep")?;
        ensure!(state.trim() == "T", "it is in state {state:?}");
        Ok(())
    })?;
    sandbox.run_helper(&["orphans", "1"])?;
    sandbox.shows(1, |status| status.reaped)?;
    sandbox.run("pkill -KILL -x sleep")?;
    sandbox.shows(2, |status| status.reaped)
}

fn children_of_an_earlier_program_are_reaped() -> Result<()> {
    let sandbox = Pid1::pause()?.executed_by("exec-with-a-zombie")?.start()?;
    sandbox.shows(1, |status| status.reaped)
}
