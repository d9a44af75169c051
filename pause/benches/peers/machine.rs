//! Where and when the numbers were measured.

use std::process::Command;

use anyhow::{Context as _, Result};

pub(crate) fn line() -> Result<String> {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().context("running date")?;
    let date = String::from_utf8(date.stdout)?;
    let system = nix::sys::utsname::uname()?;
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{}; {} {} {}; {model}, {cores} cores",
        date.trim(),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    ))
}
