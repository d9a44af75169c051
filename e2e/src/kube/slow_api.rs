//! An API server that takes seconds for each write, as on an overloaded node, and the term of the leader.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::in_release;
use crate::cluster::Node;
use crate::names::CONTROLLER;

/// Duration of a stop of etcd. Meanwhile every write and every consistent read waits.
const STOP: Duration = Duration::from_secs(5);

/// Stops etcd this many times, with a short pause in between, while `act` runs. No new term may begin meanwhile.
///
/// # Errors
///
/// When `act` fails or another leader was elected.
pub fn with_slow_api_server<T>(node: &Node, stops: u32, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = term(node)?;
    let begun = Instant::now();
    let script = format!(
        "for stop in $(seq {stops}); do pkill -STOP -x etcd; sleep {}; pkill -CONT -x etcd; sleep 0.3; done",
        STOP.as_secs()
    );
    let mut slow = node.command("sh").args(["-c", &script]).stdin(Stdio::null()).spawn()?;
    let outcome = act();
    slow.wait()?;
    let outcome = outcome?;
    ensure!(begun.elapsed() >= STOP * stops, "the API server was slow for a shorter time than planned");
    let after = term(node)?;
    ensure!(after == before, "another term began: {after}, before {before}");
    Ok(outcome)
}

/// The holder of the Lease and how often it changed.
fn term(node: &Node) -> Result<String> {
    let fields = "jsonpath={.spec.holderIdentity} {.spec.leaseTransitions}";
    in_release(node, &["get", "lease", CONTROLLER, "-o", fields])
}
