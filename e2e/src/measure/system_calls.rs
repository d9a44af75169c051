//! System calls of running processes, counted by strace, which is attached for a while. It slows them down, so nothing else is measured
//! meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Calls by name.
pub(super) type Calls = BTreeMap<String, u64>;

/// Counts the calls of each process over the same time.
pub(super) fn count<const PROCESSES: usize>(
    pids: [u32; PROCESSES],
    time: Duration,
    directory: &Path,
) -> Result<[Calls; PROCESSES]> {
    let file = |pid: u32| directory.join(format!("strace-{pid}"));
    let mut straces = vec![];
    for pid in pids {
        let strace = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string(), "-o"])
            .arg(file(pid))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run strace")?;
        straces.push(strace);
    }
    thread::sleep(time);
    for strace in &mut straces {
        // It detaches, writes its table and ends.
        kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT)?;
        strace.wait()?;
    }
    let tables = pids.map(|pid| fs::read_to_string(file(pid)).with_context(|| format!("strace of {pid}")));
    let mut counted = [const { Calls::new() }; PROCESSES];
    for (calls, table) in counted.iter_mut().zip(tables) {
        *calls = parse(&table?);
    }
    Ok(counted)
}

/// Parses the table of `strace -c -U calls,name`; its last line is the total.
fn parse(table: &str) -> Calls {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (calls, name) = (words.next()?.parse().ok()?, words.next()?);
        (words.next().is_none() && name != "total").then(|| (name.to_owned(), calls))
    };
    table.lines().filter_map(line).collect()
}

/// The most frequent, as a line.
pub(super) fn most_frequent(calls: &Calls, how_many: usize) -> String {
    let mut sorted: Vec<_> = calls.iter().collect();
    sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let words = sorted.iter().take(how_many).map(|(name, count)| format!("{name} {count}"));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_table_is_parsed() {
        let table = "    calls syscall\n--------- ----------------\n     1200 read\n      300 openat\n        7 epoll_wait\n\
                     --------- ----------------\n     1507 total\n";
        let calls = parse(table);
        assert_eq!(calls.values().sum::<u64>(), 1507);
        assert_eq!(most_frequent(&calls, 2), "read 1200, openat 300");
    }
}
