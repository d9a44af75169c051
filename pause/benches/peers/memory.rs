//! What the idle PID 1 holds of the node's memory, as the kernel adds it up for each process.

use anyhow::{Context as _, Result};
use pid1_harness::Namespace;

/// In kB.
pub(crate) struct Memory {
    /// Pages in its address space, shared ones included. Summed over its mappings: the VmRSS of `/proc/<pid>/status` may
    /// lag by some pages (proc_pid_status(5)).
    pub(crate) resident: f64,
    /// Pages that no other process has: what one more pod costs.
    pub(crate) private: f64,
    pub(crate) page_tables: f64,
}

pub(crate) fn of(namespace: &Namespace) -> Result<Memory> {
    let mappings = std::fs::read_to_string(namespace.proc("smaps_rollup"))?;
    let status = std::fs::read_to_string(namespace.proc("status"))?;
    Ok(Memory {
        resident: kilobytes(&mappings, "Rss:")?,
        private: kilobytes(&mappings, "Private_Clean:")? + kilobytes(&mappings, "Private_Dirty:")?,
        page_tables: kilobytes(&status, "VmPTE:")?,
    })
}

fn kilobytes(text: &str, key: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}
