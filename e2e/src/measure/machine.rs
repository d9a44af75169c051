//! The machine and the time of the measurement: without them the numbers mean nothing.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::host::command::output;

/// A line for the top of the results.
pub(super) fn line() -> Result<String> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?;
    let system = nix::sys::utsname::uname()?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "{}; {} {} {}; {}, {} cores; load {} before the run",
        date.trim(),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        model.trim_start_matches(['\t', ' ', ':']),
        std::thread::available_parallelism()?,
        load.split(' ').next().unwrap_or_default(),
    ))
}
