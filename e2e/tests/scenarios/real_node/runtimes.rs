//! The software below the pods: systemd, cgroups, two versions of containerd, the kubelet. Restarting or upgrading it restarts no sandbox.

use anyhow::{Context as _, Result, ensure};
use e2e::kube::{events_of, uid_of};
use e2e::vm::{DEBIAN, DEBIAN_CONTAINERD, DEBIAN_KERNEL, Runtime};

use super::RealNode;
use super::pods::{observe_new_pod, restarts_of, steady_pods};

pub(super) fn debian_node_has_systemd_and_cgroup_v2(real: &RealNode) -> Result<()> {
    let ask = |script: &str| real.vm.ssh(script).map(|text| text.trim().to_owned());
    let filesystem = ask("stat -f -c %T /sys/fs/cgroup")?;
    ensure!(filesystem == "cgroup2fs", "{filesystem}");
    let init = ask("cat /proc/1/comm")?;
    ensure!(init == "systemd", "{init}");
    let version = ask("containerd --version")?;
    ensure!(version.contains(&format!(" {DEBIAN_CONTAINERD}.")), "{version}");
    let kernel = ask("uname -r")?;
    ensure!(kernel.starts_with(&format!("{DEBIAN_KERNEL}.")), "{kernel}");
    let release = ask("cat /etc/debian_version")?;
    ensure!(DEBIAN.ends_with(release.split('.').next().unwrap_or_default()), "{release}");
    steady_pods(real)?;
    // As the systemd driver names it: dashes of the UID are underscores.
    let uid = uid_of(real.node(), "steady-1")?.replace('-', "_");
    let cgroups = ask(&format!("grep -hs {uid} /proc/[0-9]*/cgroup"))?;
    ensure!(
        cgroups
            .lines()
            .all(|line| line.starts_with("0::/kubepods.slice/") && line.contains("/cri-containerd-")),
        "{cgroups}"
    );
    Ok(())
}

pub(super) fn restart_of_containerd_or_kubelet(real: &RealNode) -> Result<()> {
    let before = steady_pods(real)?;
    for unit in ["containerd", "kubelet"] {
        real.vm.ssh(&format!("systemctl restart {unit}"))?;
    }
    real.vm.wait_until_ready()?;
    nothing_restarted(real, &before)
}

pub(super) fn upgrade_from_containerd_1_7_to_2(real: &RealNode) -> Result<()> {
    ensure!(real.runtime() == Runtime::Containerd1, "the step was made before");
    let before = steady_pods(real)?;
    real.use_runtime(Runtime::Containerd2)?;
    let versions = real.vm.ssh("ctr version")?;
    let (_, server) = versions.split_once("Server:").context("no server")?;
    ensure!(server.contains("v2."), "{versions}");
    real.vm.wait_until_ready()?;
    nothing_restarted(real, &before)
}

fn nothing_restarted(real: &RealNode, before: &[(&str, usize)]) -> Result<()> {
    let node = real.node();
    observe_new_pod(real)?;
    for (pod, restarts) in before {
        let now = restarts_of(real, pod)?;
        ensure!(now == *restarts, "{pod} has {now} restarts and had {restarts}");
        let changed = events_of(node, pod, "SandboxChanged")?;
        ensure!(changed.len() == *restarts, "{changed:?}");
    }
    Ok(())
}
