//! Programs that the benchmark calls, installed where they are missing.

use anyhow::Result;

use crate::host::apt;
use crate::host::command::find_here;

/// Makes sure of programs, each named with its Debian package.
pub(super) fn ensure(tools: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<_> =
        tools.iter().filter(|(tool, _)| find_here(tool).is_none()).map(|(_, package)| *package).collect();
    missing.dedup();
    apt::install(&missing)
}
