//! The node boots again: by a reboot, after a power failure, after it was off for a while. Each is exactly one restart of each pod.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, sandbox_health, wait_for_health};
use e2e::vm::Kernel;

use super::RealNode;
use super::pods::{observe_new_pod, steady_pods};

/// Bounds the wait for the agent of a node that has just booted, and for its reports.
const AFTER_BOOT: Duration = TIMEOUT.saturating_mul(2);
/// After a power failure everything is reported within this time of the node's return.
const AFTER_RETURN: Duration = Duration::from_secs(120);

pub(super) fn reboot(real: &RealNode) -> Result<()> {
    let before = steady_pods(real)?;
    real.vm.reboot()?;
    real.vm.wait_until_ready()?;
    each_restarted_once(real, &before, AFTER_BOOT)
}

pub(super) fn power_failure(real: &RealNode) -> Result<()> {
    let before = steady_pods(real)?;
    write_back(real)?;
    real.vm.power_failure()?;
    real.vm.wait_until_ready()?;
    each_restarted_once(real, &before, AFTER_RETURN)
}

pub(super) fn powered_off_node(real: &RealNode) -> Result<()> {
    let before = steady_pods(real)?;
    write_back(real)?;
    real.vm.power_off()?;
    for (pod, restarts) in &before {
        let object = wait_for_health(real.node(), pod, "Unknown", "NodeNotReady")?;
        ensure!(object["status"]["restarts"] == *restarts, "{object}");
    }
    // With the newer kernel, which the next scenario needs: a boot saved.
    real.vm.power_on(Kernel::Backports)?;
    real.vm.wait_until_ready()?;
    each_restarted_once(real, &before, AFTER_BOOT)
}

/// Without it the results that CNI keeps of young pods are empty files after the power is cut (libcni does not sync them), and the kubelet
/// does not replace their sandboxes for ever: "failed to get network cached result: unexpected end of JSON input".
fn write_back(real: &RealNode) -> Result<()> {
    real.vm.ssh("sync").map(drop)
}

/// Each pod has one more restart, for this reason, with one Event.
fn each_restarted_once(real: &RealNode, before: &[(&str, usize)], within: Duration) -> Result<()> {
    let (node, begun) = (real.node(), Instant::now());
    let count = |pod: &str, restarts: usize| {
        let status = sandbox_health(node, pod)?["status"].take();
        ensure!(status["restarts"] == restarts + 1, "{pod} had {restarts} restarts; now {status}");
        ensure!(status["lastRestart"]["reason"] == "NodeRebooted", "{status}");
        ensure!(status["lastRestart"]["message"] == "the node was rebooted", "{status}");
        let events = events_of(node, pod, "SandboxRestarted")?;
        ensure!(events.len() == restarts + 1, "{events:?}");
        Ok(())
    };
    for (pod, restarts) in before {
        let left = within.saturating_sub(begun.elapsed());
        retry::until(&format!("{pod} has one more restart"), left, || count(pod, *restarts))?;
    }
    // Nothing is added while the others come back, or by what the kubelet does next.
    observe_new_pod(real)?;
    before.iter().try_for_each(|(pod, restarts)| count(pod, *restarts))
}
