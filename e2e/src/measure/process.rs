//! The CPU time and the memory that a process has used, from /proc. All its threads count, including those that have ended.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// CPU time until now; none at first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    /// ns of each running thread (the first field of `/proc/<pid>/task/<tid>/schedstat`).
    threads: BTreeMap<u32, u64>,
    /// Clock ticks of the whole process, including threads that have ended (`utime` and `stime` of proc_pid_stat(5)).
    user_ticks: u64,
    system_ticks: u64,
}

/// Seconds of CPU time between two reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct CpuSeconds {
    pub(super) total: f64,
    /// The share in the kernel, between 0 and 1, with the precision of clock ticks.
    pub(super) system_share: f64,
}

impl Cpu {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
        let (user_ticks, system_ticks) = ticks(&stat).context("a line of /proc/<pid>/stat")?;
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread else { continue };
            // A thread may end during the read.
            let Ok(line) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")) else {
                continue;
            };
            let ns = line.split(' ').next().and_then(|field| field.parse().ok());
            threads.insert(thread, ns.context("a line of schedstat")?);
        }
        Ok(Self { threads, user_ticks, system_ticks })
    }

    /// In ns from the running threads, or in clock ticks if ended threads make that number higher.
    pub(super) fn until(&self, later: &Self, ticks_per_second: f64) -> CpuSeconds {
        let user = later.user_ticks.saturating_sub(self.user_ticks) as f64;
        let system = later.system_ticks.saturating_sub(self.system_ticks) as f64;
        let before = |thread| self.threads.get(thread).copied().unwrap_or_default();
        let ns = later.threads.iter().map(|(thread, ns)| ns.saturating_sub(before(thread))).sum::<u64>();
        let total = (ns as f64 / 1e9).max((user + system) / ticks_per_second);
        CpuSeconds { total, system_share: if user + system > 0.0 { system / (user + system) } else { 0.0 } }
    }
}

/// `utime` and `stime`: fields 14 and 15, counted after the name, which may contain any character.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Clock ticks a second.
pub(super) fn ticks_per_second() -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(ticks as f64)
}

/// kB, from proc_pid_status(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// `VmRSS`
    pub(super) resident: u64,
    /// `RssAnon`
    pub(super) anonymous: u64,
    /// `VmHWM`: the peak of the resident memory.
    pub(super) peak: u64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
        Self::parse(&status).context("/proc/<pid>/status has no memory")
    }

    fn parse(status: &str) -> Option<Self> {
        let kilobytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Self {
            resident: kilobytes("VmRSS")?,
            anonymous: kilobytes("RssAnon")?,
            peak: kilobytes("VmHWM")?,
        })
    }

    /// The maximum of each.
    pub(super) fn most(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            anonymous: self.anonymous.max(other.anonymous),
            peak: self.peak.max(other.peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(threads: &[(u32, u64)], user_ticks: u64, system_ticks: u64) -> Cpu {
        Cpu { threads: threads.iter().copied().collect(), user_ticks, system_ticks }
    }

    #[test]
    fn ticks_are_parsed_after_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 0 0 0 0 31 12 0 0 20 0 1 0 1200 0 0";
        assert_eq!(ticks(stat), Some((31, 12)));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn nanoseconds_are_used_unless_ended_threads_used_more() {
        let before = cpu(&[(1, 1_000_000_000), (2, 500_000_000)], 100, 100);
        let later = cpu(&[(1, 1_250_000_000), (2, 500_000_000), (3, 50_000_000)], 110, 130);
        let used = before.until(&later, 1000.0);
        assert!((used.total - 0.3).abs() < 1e-9, "{used:?}");
        assert!((used.system_share - 0.75).abs() < 1e-9, "{used:?}");
        let without_2 = cpu(&[(1, 1_250_000_000)], 110, 130);
        assert!((before.until(&without_2, 100.0).total - 0.4).abs() < 1e-9);
    }

    #[test]
    fn memory_is_read_from_a_status() {
        let status = "Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\nRssAnon:\t    1500 kB\n";
        assert_eq!(Memory::parse(status), Some(Memory { resident: 8000, anonymous: 1500, peak: 9000 }));
        assert_eq!(Memory::parse("Name:\tzombie\n"), None);
    }

    #[test]
    fn own_process_can_be_read() {
        let own = std::process::id();
        assert!(Memory::of(own).unwrap().resident > 0);
        let used = Cpu::of(own).unwrap().until(&Cpu::of(own).unwrap(), ticks_per_second().unwrap());
        assert!(used.total >= 0.0);
    }
}
