//! Signals, from outside and from inside of the namespace.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Named;
use crate::reaping::orphans_are_reaped;
use crate::sandbox::Pid1;
use pid1_harness::eventually;

pub(crate) const TESTS: &[Named] = &[
    ("sigterm_ends_it_with_0", || it_ends_with_0(Signal::SIGTERM, "Terminated")),
    ("sigint_ends_it_with_0", || it_ends_with_0(Signal::SIGINT, "Interrupt")),
    ("sigterm_from_inside_ends_it_with_0", || it_ends_from_inside("TERM", "Terminated")),
    ("sigint_from_inside_ends_it_with_0", || it_ends_from_inside("INT", "Interrupt")),
    ("no_other_signal_from_outside_ends_it", no_other_signal_from_outside_ends_it),
    ("no_other_signal_from_inside_ends_it_not_even_sigkill", no_other_signal_from_inside_ends_it),
    ("sigkill_from_outside_ends_it", sigkill_from_outside_ends_it),
    ("signals_that_were_ignored_when_it_was_executed_are_taken", ignored_signals_are_taken),
    ("signals_that_mean_nothing_do_not_pile_up", signals_do_not_pile_up),
    ("a_flood_of_signals_keeps_it_from_nothing", a_flood_keeps_it_from_nothing),
    ("alarms_of_others_neither_hasten_nor_stop_its_updates", alarms_of_others_change_nothing),
];

fn it_ends_with_0(signal: Signal, name: &str) -> Result<()> {
    let (code, stderr) = Pid1::pause()?.start()?.end_by(signal)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    ensure!(stderr == format!("Shutting down, got signal: {name}\n"), "it wrote {stderr:?}");
    Ok(())
}

fn it_ends_from_inside(signal: &str, name: &str) -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    // It ends with the namespace that its signal ends.
    let mut sender = sandbox.spawn(&format!("kill -{signal} 1; exec sleep 100"))?;
    let (code, stderr) = sandbox.wait()?;
    sender.wait()?;
    ensure!(code == Some(0), "it ended with {code:?}");
    ensure!(stderr == format!("Shutting down, got signal: {name}\n"), "it wrote {stderr:?}");
    Ok(())
}

/// All but those that end it, and those that from outside nothing can resist.
pub(crate) fn others() -> impl Iterator<Item = i32> {
    let special = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSTOP];
    (1..=64).filter(move |number| !special.iter().any(|signal| *signal as i32 == *number))
}

fn no_other_signal_from_outside_ends_it() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    for number in others() {
        send(number, sandbox.pid)?;
    }
    orphans_are_reaped(&sandbox, 1)?;
    sandbox.shows(1, |status| status.reaped)
}

/// By the shell, which sends those from 32 on, too.
pub(crate) fn send(number: i32, pid: Pid) -> Result<()> {
    let sent = Command::new("sh").args(["-c", &format!("kill -{number} {pid}")]).status()?;
    ensure!(sent.success(), "kill -{number}: {sent}");
    Ok(())
}

fn no_other_signal_from_inside_ends_it() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    // The kernel keeps SIGKILL and SIGSTOP from a namespace's PID 1 when they come from inside (pid_namespaces(7)).
    for number in others().chain([Signal::SIGKILL as i32, Signal::SIGSTOP as i32]) {
        sandbox.run(&format!("kill -{number} 1"))?;
    }
    orphans_are_reaped(&sandbox, 1)?;
    sandbox.shows(1, |status| status.reaped)
}

fn sigkill_from_outside_ends_it() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    let (code, _) = sandbox.end_by(Signal::SIGKILL)?;
    // unshare(1) tells it by a signal or by 128 and its number.
    ensure!(code != Some(0), "it ended with {code:?}");
    Ok(())
}

fn ignored_signals_are_taken() -> Result<()> {
    let sandbox = Pid1::pause()?.prepared_by("trap '' CHLD TERM INT ALRM").start()?;
    for reaped in [3, 6] {
        orphans_are_reaped(&sandbox, 3)?;
        sandbox.shows(reaped, |status| status.reaped)?;
    }
    let (code, _) = sandbox.end_by(Signal::SIGTERM)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    Ok(())
}

fn signals_do_not_pile_up() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    // Those past 31 are queued each for itself.
    sandbox.run("i=0; while [ $i -lt 1000 ]; do kill -40 1; i=$((i + 1)); done")?;
    eventually(|| {
        let status = std::fs::read_to_string(sandbox.proc("status"))?;
        let pending = status.lines().find(|line| line.starts_with("ShdPnd:")).context("no ShdPnd")?;
        ensure!(pending.ends_with("\t0000000000000000"), "{pending}");
        Ok(())
    })?;
    orphans_are_reaped(&sandbox, 1)
}

fn a_flood_keeps_it_from_nothing() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    // Lower numbers than those that pause waits for, and the kernel hands out the lowest first.
    let mut floods = vec![];
    for _ in 0..2 {
        floods.push(sandbox.spawn("while :; do kill -HUP 1; kill -QUIT 1; done")?);
    }
    orphans_are_reaped(&sandbox, 1000)?;
    sandbox.shows(1000, |status| status.reaped)?;
    let (code, _) = sandbox.end_by(Signal::SIGTERM)?;
    for mut flood in floods {
        flood.wait()?;
    }
    ensure!(code == Some(0), "it ended with {code:?}");
    Ok(())
}

fn alarms_of_others_change_nothing() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let before = sandbox.status(|status| (status.seq, status.updated))?;
    for round in 1..=3 {
        sandbox.run_helper(&["orphans", "1"])?;
        sandbox.run("i=0; while [ $i -lt 300 ]; do kill -ALRM 1; i=$((i + 1)); done")?;
        sandbox.shows(round, |status| status.reaped)?;
    }
    let after = sandbox.status(|status| (status.seq, status.updated))?;
    let (updates, seconds) = (after.0 - before.0, (after.1 - before.1).div_ceil(1000));
    ensure!(updates <= seconds, "{updates} updates in {seconds} s");
    Ok(())
}
