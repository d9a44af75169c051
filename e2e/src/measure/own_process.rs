//! Processes of the benchmark's own binary inside of a node, on the node's loopback.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::scrape;
use crate::cluster::Node;
use crate::host::command;

/// The subcommand of such a process.
pub(super) const UNTIL_READY: &str = "__cost-until-ready";
const POLL: Duration = Duration::from_millis(20);
const TIMEOUT: Duration = Duration::from_secs(600);

/// Waits until the controller at this address is leader and ready, or the agent at this address is ready.
pub(super) fn until_ready(node: &Node, address: &str) -> Result<()> {
    command::output(node.command(std::env::current_exe()?).args([UNTIL_READY, address])).map(drop)
}

/// The process that waits.
pub(super) fn wait(address: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        // A standby is ready, too.
        let works = scrape::get(address, "/metrics", false).is_ok_and(|text| {
            let text = String::from_utf8_lossy(&text);
            !text.contains("sandboxhealth_leader")
                || scrape::sum_of(&text, "sandboxhealth_leader", &[]) >= 1.0
        });
        if works && scrape::get(address, "/readyz", false).is_ok() {
            return Ok(());
        }
        ensure!(begun.elapsed() < TIMEOUT, "not ready after {} s", TIMEOUT.as_secs());
        thread::sleep(POLL);
    }
}
