//! The operator on a node as users have it: Debian in a virtual machine, with systemd, cgroup v2 and the distribution's kernel and containerd.
//! The scenarios share the cluster `real-node` and its node `debian-1`, in this order; each can run alone, too. They need root and QEMU;
//! elsewhere they are reported as ignored.

mod boots;
mod pods;
mod runtimes;
mod tokens;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use e2e::build::{Image, Setup, preflight};
use e2e::cluster::{Node, VM_NODES};
use e2e::names::PAUSE;
use e2e::runner::arguments::is_long;
use e2e::scenario::{Cluster, Environment, Group, Scenario};
use e2e::vm::{self, Containerd, Kernel, Vm};

fn main() -> ExitCode {
    let in_the_gate: &[Scenario<RealNode>] = &[
        ("debian_node_has_systemd_and_cgroup_v2", runtimes::debian_node_has_systemd_and_cgroup_v2),
        ("pod_with_our_pause_is_observed_until_its_kill", pods::pod_with_our_pause),
        ("pod_with_third_party_pause_is_observed_until_its_kill", pods::pod_with_third_party_pause),
        ("exit_status_is_unavailable_before_linux_6_15", pods::exit_status_before_linux_6_15),
        (
            "restart_of_containerd_or_kubelet_is_no_sandbox_restart",
            runtimes::restart_of_containerd_or_kubelet,
        ),
        ("step_from_containerd_1_7_to_2_is_no_sandbox_restart", runtimes::step_from_containerd_1_7_to_2),
        ("pod_in_a_user_namespace_is_observed_like_others", pods::pod_in_a_user_namespace),
        ("agent_token_is_refused_for_objects_of_another_node", tokens::between_the_control_plane_and_debian),
        ("reboot_is_one_restart_of_each_pod", boots::reboot),
    ];
    let in_the_long_run: &[Scenario<RealNode>] = &[
        ("power_failure_is_one_restart_of_each_pod", boots::power_failure),
        ("powered_off_node_becomes_unknown_and_recovers", boots::powered_off_node),
        ("exit_status_is_reported_from_linux_6_15_on", pods::exit_status_from_linux_6_15),
        ("agent_token_is_refused_between_two_debian_nodes", tokens::between_two_debian_nodes),
    ];
    let group = Group::new("real-node").with(in_the_gate);
    if is_long() { group.with(in_the_long_run) } else { group }.run()
}

/// What runs on the Debian node. Importing images takes long there.
const VM_IMAGES: [Image; 4] = [Image::Pause, Image::OtherPause, Image::Busybox, Image::SandboxHealth];

/// A cluster with the chart installed, and a Debian node.
struct RealNode {
    cluster: Cluster,
    vm: Vm,
    /// What the machine runs now.
    containerd: Mutex<Containerd>,
}

impl Environment for RealNode {
    fn missing() -> Option<String> {
        preflight::missing().or_else(vm::missing)
    }

    fn start(name: &str) -> Result<Self> {
        let cluster = Cluster::start(name)?;
        let vm = Vm::start(&cluster.node, VM_NODES[0], Kernel::Stable, &Setup::prepare(&VM_IMAGES)?, PAUSE)?;
        Ok(Self { cluster, vm, containerd: Mutex::new(Containerd::V1) })
    }

    fn logs(&self) -> String {
        let journals = self.vm.keep_journals().err().map(|error| format!("no journals: {error:#}\n"));
        self.cluster.logs() + &journals.unwrap_or_default()
    }
}

impl RealNode {
    fn node(&self) -> &Node {
        &self.cluster.node
    }

    /// Switches containerd unless it is this version already.
    fn use_containerd(&self, version: Containerd) -> Result<()> {
        let mut current = self.containerd.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != version {
            self.vm.use_containerd(version, PAUSE)?;
            *current = version;
        }
        Ok(())
    }

    fn containerd(&self) -> Containerd {
        *self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
