//! Static pods: the kubelet runs them from files, under another UID than that of the mirror pod in the API.

use std::fs;

use anyhow::{Result, ensure};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{has_sandbox_health, kill_pause, pod, sandbox_health, wait_for_health};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] =
    [("describe_shows_events_of_static_pod", describe_shows_events_of_static_pod)];

fn describe_shows_events_of_static_pod(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut manifest = pod("static", &[]);
    // Static pods have no tokens, and the kubelet adds the node's name to theirs.
    manifest["spec"]["automountServiceAccountToken"] = false.into();
    let name = format!("static-{}", node.name());
    let file = node.static_pods().join("static.json");
    fs::write(&file, serde_json::to_vec(&manifest)?)?;
    wait_for_health(node, &name, "True", "SandboxHealthy")?;
    kill_pause(node, &name)?;
    retry::until("the restart is counted", TIMEOUT, || {
        let status = sandbox_health(node, &name)?["status"].take();
        ensure!(status["restarts"] == 1, "{status}");
        Ok(())
    })?;
    retry::until("kubectl describe shows the Event", TIMEOUT, || {
        let described = node.kubectl(["describe", "pod", &name])?;
        ensure!(described.contains("SandboxRestarted"), "{described}");
        Ok(())
    })?;
    fs::remove_file(file)?;
    retry::until("the object is deleted with the mirror pod", TIMEOUT, || {
        ensure!(!has_sandbox_health(node, &name)?, "it exists");
        Ok(())
    })
}
