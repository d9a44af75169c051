//! The memory of the idle PID 1, as the kernel accounts it.

use anyhow::{Context as _, Result};
use pid1_harness::Namespace;

/// In kB: pages in its address space, shared ones included; pages that no other process has, the cost of one more pod; page tables.
pub(crate) fn of(namespace: &Namespace) -> Result<[f64; 3]> {
    // Summed over its mappings: the VmRSS of `status` may lag by some pages (proc_pid_status(5)).
    let mappings = std::fs::read_to_string(namespace.proc("smaps_rollup"))?;
    let status = std::fs::read_to_string(namespace.proc("status"))?;
    let private = kilobytes(&mappings, "Private_Clean:")? + kilobytes(&mappings, "Private_Dirty:")?;
    Ok([kilobytes(&mappings, "Rss:")?, private, kilobytes(&status, "VmPTE:")?])
}

fn kilobytes(text: &str, key: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}
