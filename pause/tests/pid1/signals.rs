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
    ("sigterm_from_inside_ends_it_with_143", || it_ends_from_inside(Signal::SIGTERM, "Terminated")),
    ("sigint_from_inside_ends_it_with_130", || it_ends_from_inside(Signal::SIGINT, "Interrupt")),
    ("no_other_signal_from_outside_ends_it", no_other_signal_from_outside_ends_it),
    ("no_other_signal_from_inside_ends_it_not_even_sigkill", no_other_signal_from_inside_ends_it),
    ("sigkill_from_outside_ends_it", sigkill_from_outside_ends_it),
    ("signals_that_were_ignored_when_it_was_executed_are_taken", ignored_signals_are_taken),
    ("unused_signals_are_not_queued", unused_signals_are_not_queued),
    ("flood_of_signals_delays_neither_reaping_nor_exit", flood_delays_nothing),
    ("stopped_child_does_not_wake_it", stopped_child_does_not_wake_it),
];

fn it_ends_with_0(signal: Signal, name: &str) -> Result<()> {
    let (code, stderr) = Pid1::pause()?.start()?.end_by(signal)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    ensure!(stderr == format!("Shutting down, got signal: {name}\n"), "it wrote {stderr:?}");
    Ok(())
}

/// `kubectl exec POD -- kill 1`: the exit status shows that a process of the pod sent the signal.
fn it_ends_from_inside(signal: Signal, name: &str) -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    // It ends with the namespace that its signal ends.
    let mut sender = sandbox.spawn(&format!("kill -{} 1; exec sleep 100", signal as i32))?;
    let (code, stderr) = sandbox.wait()?;
    sender.wait()?;
    ensure!(code == Some(128 + signal as i32), "it ended with {code:?}");
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
    // unshare(1) passes it on as a signal or as 128 and its number.
    ensure!(code != Some(0), "it ended with {code:?}");
    Ok(())
}

fn ignored_signals_are_taken() -> Result<()> {
    let sandbox = Pid1::pause()?.prepared_by("trap '' CHLD TERM INT").start()?;
    for reaped in [3, 6] {
        orphans_are_reaped(&sandbox, 3)?;
        sandbox.shows(reaped, |status| status.reaped)?;
    }
    let (code, _) = sandbox.end_by(Signal::SIGTERM)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    Ok(())
}

fn unused_signals_are_not_queued() -> Result<()> {
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

fn flood_delays_nothing() -> Result<()> {
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

/// By the system calls that it makes: SA_NOCLDSTOP keeps SIGCHLD away, and reaping would need WUNTRACED.
fn stopped_child_does_not_wake_it() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.run("( exec sleep 1000 > /dev/null & )")?;
    sandbox.run("until pgrep -x sleep > /dev/null; do sleep 0.1; done")?;
    let is_pending = |set: &str| -> Result<bool> {
        let status = std::fs::read_to_string(sandbox.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(set)).context("no such line")?;
        Ok(u64::from_str_radix(line.trim(), 16)? & (1 << (Signal::SIGCHLD as u32 - 1)) != 0)
    };
    // A stopped pause takes no signal, so that what the kernel sent stays pending.
    let state = |state: &str| {
        eventually(|| {
            let stat = std::fs::read_to_string(sandbox.proc("stat"))?;
            ensure!(stat.contains(&format!(") {state} ")), "pause is not in state {state}: {stat}");
            Ok(())
        })
    };
    nix::sys::signal::kill(sandbox.pid, Signal::SIGSTOP)?;
    state("T")?;
    sandbox.run("pkill -STOP -x sleep; pkill -CONT -x sleep; pkill -STOP -x sleep")?;
    ensure!(!is_pending("ShdPnd:")?, "a child that stopped sent SIGCHLD");
    sandbox.run("pkill -KILL -x sleep")?;
    eventually(|| {
        ensure!(is_pending("ShdPnd:")?, "a child that exited sent no SIGCHLD");
        Ok(())
    })?;
    nix::sys::signal::kill(sandbox.pid, Signal::SIGCONT)?;
    sandbox.shows(true, |status| status.reaped > 0)
}
