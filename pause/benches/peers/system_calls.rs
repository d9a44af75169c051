//! System calls for each reaped child, counted by an strace that is attached to PID 1 alone.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pid1_harness::{Namespace, eventually};

use crate::contenders::Contender;
use crate::namespace;
use crate::orphans::Ending;
use crate::per_child::{all_reaped, slope};

pub(crate) fn per_child(contender: &Contender, ending: Ending, folder: &Path) -> Result<f64> {
    slope(|count| counted(contender, ending, count, folder))
}

fn counted(contender: &Contender, ending: Ending, count: u32, folder: &Path) -> Result<u64> {
    let file = folder.join("strace");
    let namespace = namespace::start(&contender.command())?;
    let mut strace = Command::new("strace");
    strace.arg("-qq").arg("-o").arg(&file).args(["-p", &namespace.pid.to_string()]);
    let mut strace = strace.stdin(Stdio::null()).spawn().context("running strace")?;
    let reaped = attached(&namespace).and_then(|()| all_reaped(&namespace, ending, count));
    kill(Pid::from_raw(strace.id().try_into()?), Signal::SIGINT)?;
    eventually(|| strace.try_wait()?.context("strace still runs"))?;
    reaped?;
    let text = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    // The other lines are of signals ("---") and of its end ("+++").
    let calls =
        text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase())).count();
    Ok(calls.try_into()?)
}

fn attached(namespace: &Namespace) -> Result<()> {
    eventually(|| {
        let status = std::fs::read_to_string(namespace.proc("status"))?;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        ensure!(tracer.context("a TracerPid")?.trim() != "0", "strace is not attached");
        Ok(())
    })
}
