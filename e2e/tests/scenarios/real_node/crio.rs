//! CRI-O under the kubelet with its own defaults: crun, systemd's cgroups, cgroup v2, no pause where none is needed.

use anyhow::{Context as _, Result, ensure};
use e2e::kube::{create, delete, events, has_sandbox_health, http_script, pods_of, shell, uid_of};
use e2e::names::{OTHER_PAUSE, PAUSE};
use e2e::vm::Runtime;
use serde_json::json;

use super::RealNode;
use super::pods::{self, on_debian};

pub(super) fn pod_with_our_pause(real: &RealNode) -> Result<()> {
    let crio = real.crio()?;
    let version = "jsonpath={.status.nodeInfo.containerRuntimeVersion}";
    let version = crio.node().kubectl(["get", "node", crio.vm.name(), "-o", version])?;
    ensure!(version.starts_with("cri-o://"), "{version}");
    pods::pod_with_our_pause(crio)
}

/// Without the drop-in CRI-O uses the image and the command of its defaults. No registry has that image here, so a third-party pause gets
/// its name.
pub(super) fn pod_with_crios_own_pause(real: &RealNode) -> Result<()> {
    let crio = real.crio()?;
    let default_image = "crio config --default 2>/dev/null | sed -n 's/^.*pause_image = \"\\(.*\\)\"$/\\1/p'";
    crio.vm.ssh(&format!(
        "rm /etc/crio/crio.conf.d/50-sandbox-health.conf && buildah tag {OTHER_PAUSE} $({default_image})"
    ))?;
    crio.vm.restart_runtime(Runtime::CriO)?;
    let outcome = create(crio.node(), &on_debian(crio, "crios-own-pause")).and_then(|pod| {
        pods::third_party(crio, &pod)?;
        delete(crio.node(), &pod)
    });
    crio.vm.use_sandbox_image(Runtime::CriO, PAUSE)?;
    outcome
}

pub(super) fn pod_without_shared_pids(real: &RealNode) -> Result<()> {
    let crio = real.crio()?;
    let mut pod = on_debian(crio, "own-pids");
    pod["spec"]["shareProcessNamespace"] = json!(false);
    let pod = create(crio.node(), &pod)?;
    has_no_pause(crio, &pod)?;
    has_no_fault(crio, &pod)?;
    delete(crio.node(), &pod)
}

/// The one process in the pod's cgroup is that of its container, as PID 1.
fn has_no_pause(crio: &RealNode, pod: &str) -> Result<()> {
    let uid = uid_of(crio.node(), pod)?.replace('-', "_");
    let processes = crio.vm.ssh(&format!(
        "for file in $(grep -ls {uid} /proc/[0-9]*/cgroup); do cat ${{file%cgroup}}comm $file; done"
    ))?;
    let slice =
        format!("0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/crio-");
    let lines: Vec<_> = processes.lines().collect();
    ensure!(matches!(lines[..], ["sleep", cgroup] if cgroup.starts_with(&slice)), "{processes}");
    let first = shell(crio.node(), pod, "cat /proc/1/comm")?;
    ensure!(first == "sleep\n", "{first}");
    Ok(())
}

/// No object, no Event of the operator, and no series of the pod that differs from 0.
fn has_no_fault(crio: &RealNode, pod: &str) -> Result<()> {
    let node = crio.node();
    ensure!(!has_sandbox_health(node, pod)?, "{pod} has an object");
    let events = events(node, &format!("involvedObject.uid={}", uid_of(node, pod)?))?;
    ensure!(events.iter().all(|event| event["source"]["component"] == "kubelet"), "{events:?}");
    let agents = pods_of(node, "agent")?;
    let agent = agents.iter().find(|agent| agent["spec"]["nodeName"] == crio.vm.name());
    let address = agent.and_then(|agent| agent["status"]["podIP"].as_str()).context("no agent")?;
    let metrics = crio.vm.ssh(&http_script(address, "/metrics"))?;
    ensure!(metrics.contains("sandboxhealth_build_info"), "{metrics}");
    let label = format!("pod=\"{pod}\"");
    let faults: Vec<_> =
        metrics.lines().filter(|line| line.contains(&label) && !line.ends_with(" 0")).collect();
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(())
}
