//! Programs that the benchmark runs, installed if they are missing.

use anyhow::Result;

use crate::host::apt;
use crate::host::command::which;

/// Installs missing programs, each named with its Debian package.
pub(super) fn ensure(tools: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<_> =
        tools.iter().filter(|(tool, _)| which(tool).is_none()).map(|(_, package)| *package).collect();
    missing.dedup();
    apt::install(&missing)
}
