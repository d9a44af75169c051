//! User instructions for each reaped child, counted by callgrind: the same number in each run, on shared cores and on machines
//! without hardware counters too.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};

use crate::contenders::Contender;
use crate::namespace;
use crate::orphans::Ending;
use crate::per_child::{all_reaped, slope};

pub(crate) fn per_child(contender: &Contender, ending: Ending, folder: &Path) -> Result<f64> {
    slope(|count| counted(contender, ending, count, folder))
}

fn counted(contender: &Contender, ending: Ending, count: u32, folder: &Path) -> Result<u64> {
    // PID 1 writes one file, when it ends, even if it executes itself again.
    let prefix = folder.join("callgrind");
    let mut valgrind: Vec<OsString> = [
        "valgrind",
        "--tool=callgrind",
        "--vgdb=no",
        "--trace-children=yes",
        "--trace-children-skip=*/sleep",
    ]
    .map(Into::into)
    .into();
    valgrind.push(format!("--callgrind-out-file={}.%p", prefix.display()).into());
    valgrind.extend(contender.command());
    let namespace = namespace::start(&valgrind)?;
    all_reaped(&namespace, ending, count)?;
    kill(namespace.pid, Signal::SIGTERM)?;
    namespace.wait().context("SIGTERM did not end it")?;
    let file = prefix.with_extension("1");
    let text = std::fs::read_to_string(&file).context("callgrind wrote nothing")?;
    std::fs::remove_file(&file)?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("totals: ")).context("callgrind wrote no total")?;
    Ok(total.trim().parse()?)
}
