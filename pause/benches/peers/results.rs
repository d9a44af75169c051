//! The quantities and the results. A number that is missing has a reason, and is never 0.

use std::collections::BTreeMap;

use anyhow::Result;

/// In the order in which the table shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    Binary,
    Image,
    Resident,
    Private,
    PageTables,
    Instructions,
    InstructionsAtOnce,
    SystemCalls,
    SystemCallsAtOnce,
    Ready,
    WakeUpsAlone,
    WakeUpsWithOthers,
    ScanCpu,
    ReapingDelay,
    SigtermDelay,
}

impl Quantity {
    pub(crate) const ALL: [Self; 15] = [
        Self::Binary,
        Self::Image,
        Self::Resident,
        Self::Private,
        Self::PageTables,
        Self::Instructions,
        Self::InstructionsAtOnce,
        Self::SystemCalls,
        Self::SystemCallsAtOnce,
        Self::Ready,
        Self::WakeUpsAlone,
        Self::WakeUpsWithOthers,
        Self::ScanCpu,
        Self::ReapingDelay,
        Self::SigtermDelay,
    ];

    /// With its unit.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary, bytes",
            Self::Image => "image, bytes",
            Self::Resident => "RSS, kB",
            Self::Private => "private memory, kB",
            Self::PageTables => "page tables, kB",
            Self::Instructions => "instructions per child",
            Self::InstructionsAtOnce => "instructions per child, all at once",
            Self::SystemCalls => "system calls per child",
            Self::SystemCallsAtOnce => "system calls per child, all at once",
            Self::Ready => "exec to ready, µs",
            Self::WakeUpsAlone => "idle wake-ups a minute, alone",
            Self::WakeUpsWithOthers => "idle wake-ups a minute, with another process",
            Self::ScanCpu => "CPU of scans in a large pod, % of a core",
            Self::ReapingDelay => "longest delay of reaping in a large pod, ms",
            Self::SigtermDelay => "delay of SIGTERM in a large pod, ms",
        }
    }

    pub(crate) fn decimals(self) -> usize {
        match self {
            Self::Binary | Self::Image | Self::Resident | Self::Private | Self::PageTables | Self::Ready => 0,
            Self::Instructions | Self::InstructionsAtOnce => 0,
            Self::WakeUpsAlone | Self::WakeUpsWithOthers => 1,
            Self::ReapingDelay | Self::SigtermDelay => 2,
            Self::SystemCalls | Self::SystemCallsAtOnce | Self::ScanCpu => 2,
        }
    }
}

/// The numbers of one contender.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<Quantity, Result<f64, String>>);

impl Results {
    pub(crate) fn set(&mut self, quantity: Quantity, measured: Result<f64>) {
        self.0.insert(quantity, measured.map_err(|error| format!("{error:#}")));
    }

    pub(crate) fn get(&self, quantity: Quantity) -> Result<f64, &str> {
        match self.0.get(&quantity) {
            Some(Ok(number)) => Ok(*number),
            Some(Err(reason)) => Err(reason),
            None => Err("not measured"),
        }
    }

    /// As displayed: a system call more in one of the runs is no cost per child.
    pub(crate) fn rounded(&self, quantity: Quantity) -> Option<f64> {
        let number = self.get(quantity).ok()?;
        format!("{number:.*}", quantity.decimals()).parse().ok()
    }

    /// How many times upstream's number; `None` where either is missing or upstream's is 0.
    pub(crate) fn ratio(&self, quantity: Quantity, upstream: &Self) -> Option<f64> {
        let (number, unit) = (self.get(quantity).ok()?, upstream.get(quantity).ok()?);
        (unit > 0.0).then(|| number / unit)
    }
}
