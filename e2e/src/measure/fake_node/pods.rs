//! The processes of the node: for each pod a shim, a pause as PID 1 of a PID namespace with its own /proc, and containers in that
//! namespace, each in a cgroup as the kubelet creates it. The other processes of the node belong to no pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::{Plan, processes};
use crate::host::retry;

/// Containers per pod.
pub(super) const CONTAINERS: usize = 2;
/// Further processes of a pod: the shim, pause, and for each container one outside of the namespace.
const OTHERS_OF_A_POD: usize = 2 + CONTAINERS;
/// Minimum number of processes outside of pods.
const OUTSIDE_OF_PODS: usize = 50;
const TIMEOUT: Duration = Duration::from_secs(120);

/// Names of a pod and its containers in the API and in cgroups.
#[derive(Debug, Clone)]
pub(in crate::measure) struct Identity {
    pub(super) name: String,
    pub(super) uid: String,
    sandbox: String,
    pub(super) containers: [String; CONTAINERS],
}

impl Identity {
    pub(in crate::measure) fn of(number: usize) -> Self {
        let id = |part: &str| format!("{:x}", Sha256::digest(format!("{number}/{part}")));
        Self {
            name: format!("web-7c9f8d6b5-{number:05}"),
            uid: format!("6f1c2a34-0b5e-4c64-a0d1-{number:012x}"),
            sandbox: id("sandbox"),
            containers: std::array::from_fn(|container| id(&format!("container {container}"))),
        }
    }
}

/// Starts all pods. The children are not waited for: they end with the PID namespace.
pub(super) fn start(plan: &Plan, pods: &[Identity], pause: &Path, cgroup: &Path) -> Result<()> {
    let each = in_each_container(plan)?;
    for (number, pod) in pods.iter().enumerate() {
        if number % 20 == 0 {
            eprintln!("cost: {number} of {} pods", pods.len());
        }
        start_pod(pod, each, pause, cgroup).with_context(|| format!("pod {number}"))?;
    }
    for pod in pods {
        for container in &pod.containers {
            let directory = directory(cgroup, pod, container);
            retry::until("a container's processes run", TIMEOUT, || {
                let inside = fs::read_to_string(directory.join("cgroup.procs"))?.lines().count();
                ensure!(inside == each, "{inside} of {each} in {}", directory.display());
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Adds processes outside of pods, up to the planned number after `coming` more have started.
pub(super) fn fill_up(plan: &Plan, coming: usize) -> Result<()> {
    let there = processes()? + coming;
    // One more is the shell that starts them.
    let missing = plan.processes.checked_sub(there + 1).context("there are too many processes already")?;
    sleepers(&mut Command::new("sh"), missing, "true")?;
    retry::until("all processes run", TIMEOUT, || {
        let there = processes()? + coming;
        ensure!(there == plan.processes, "{there} of {}", plan.processes);
        Ok(())
    })
}

fn in_each_container(plan: &Plan) -> Result<usize> {
    let in_pods = plan.processes.saturating_sub(OUTSIDE_OF_PODS) / plan.pods.max(1);
    let each = in_pods.saturating_sub(OTHERS_OF_A_POD) / CONTAINERS;
    ensure!(each > 0, "{} processes are too few for {} pods", plan.processes, plan.pods);
    Ok(each)
}

fn directory(cgroup: &Path, pod: &Identity, container: &str) -> PathBuf {
    cgroup.join("kubepods/burstable").join(format!("pod{}", pod.uid)).join(container)
}

fn start_pod(pod: &Identity, each: usize, pause: &Path, cgroup: &Path) -> Result<()> {
    let mut shim = Command::new("unshare");
    shim.args(["--pid", "--mount-proc", "--fork", "--kill-child", "--"]).arg(pause);
    let shim = quiet(&mut shim).spawn().context("cannot run unshare")?;
    let first = retry::until("pause runs", TIMEOUT, || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shim.id()))?;
        let first: u32 = children.trim().parse().context("unshare has no child")?;
        let name = fs::read_to_string(format!("/proc/{first}/comm"))?;
        ensure!(name.trim() == "pause", "it is still {name}");
        Ok(first)
    })?;
    let own = directory(cgroup, pod, &pod.sandbox);
    fs::create_dir_all(&own)?;
    fs::write(own.join("cgroup.procs"), first.to_string()).context("moving pause into its cgroup")?;
    for container in &pod.containers {
        let own = directory(cgroup, pod, container);
        fs::create_dir_all(&own)?;
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &first.to_string(), "--pid", "--mount", "--", "sh"]);
        // A process that writes 0 moves itself and its later children.
        sleepers(&mut nsenter, each - 1, &format!("echo 0 > {}/cgroup.procs", own.display()))?;
    }
    Ok(())
}

/// A shell that runs `first`, starts `count` processes and becomes one more.
fn sleepers(shell: &mut Command, count: usize, first: &str) -> Result<Child> {
    let script = format!(
        "{first} && i=0 && while [ $i -lt {count} ]; do sleep 1000000 & i=$((i+1)); done; exec sleep 1000000"
    );
    quiet(shell.args(["-c", &script])).spawn().context("cannot run a shell")
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pods: usize, processes: usize) -> Plan {
        let zero = Duration::ZERO;
        Plan {
            sandbox_health: "".into(),
            node_exporter: "".into(),
            pause: "".into(),
            pods,
            processes,
            read_interval: zero,
            scrape_interval: zero,
            settle: zero,
            observe: zero,
            trace: zero,
        }
    }

    #[test]
    fn full_node_has_room_for_its_own_processes() {
        let each = in_each_container(&plan(110, 5000)).unwrap();
        let in_pods = 110 * (each * CONTAINERS + OTHERS_OF_A_POD);
        assert!((4500..=4950).contains(&in_pods), "{in_pods}");
        assert!(in_each_container(&plan(110, 500)).is_err());
    }

    #[test]
    fn ids_have_format_of_runtime() {
        let pod = Identity::of(7);
        assert_eq!(pod.uid.len(), 36);
        for id in pod.containers.iter().chain([&pod.sandbox]) {
            assert_eq!(id.len(), 64);
        }
        assert!(!pod.containers.contains(&pod.sandbox));
        assert_ne!(pod.uid, Identity::of(8).uid);
    }
}
