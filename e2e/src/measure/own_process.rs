//! Processes of the benchmark's own program inside of a node, where its loopback is.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::scrape;
use crate::cluster::Node;
use crate::host::command;

/// What this program is told to be when it runs itself there.
pub(super) const UNTIL_READY: &str = "__cost-until-ready";
const POLL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until the controller that listens there is the leader and ready, or the agent that does is ready.
pub(super) fn until_ready(node: &Node, address: &str) -> Result<()> {
    command::output(node.command(std::env::current_exe()?).args([UNTIL_READY, address])).map(drop)
}

/// The process that does.
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
        ensure!(begun.elapsed() < PATIENCE, "not ready after {} s", PATIENCE.as_secs());
        thread::sleep(POLL);
    }
}
