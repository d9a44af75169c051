//! The operator on a node as users have it: Debian in a virtual machine, with systemd, cgroup v2 and the distribution's kernel and containerd.
//! The scenarios share the cluster `real-node` and its node `debian-1`, in this order; those of the long run also `debian-2`, which has
//! CRI-O. Each can run alone, too. They need root and QEMU; elsewhere they are reported as ignored.

mod boots;
mod causes;
mod crio;
mod installer;
mod pods;
mod preload;
mod runtimes;
mod tokens;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, anyhow};
use e2e::build::{Image, Setup, preflight};
use e2e::cluster::{Node, VM_NODES, VmNode};
use e2e::names::PAUSE;
use e2e::runner::arguments::is_long;
use e2e::scenario::{Cluster, Environment, Group, Scenario};
use e2e::vm::{self, Kernel, Runtime, Vm};

fn main() -> ExitCode {
    let with_containerd_1_7: &[Scenario<RealNode>] = &[
        ("debian_node_has_systemd_and_cgroup_v2", runtimes::debian_node_has_systemd_and_cgroup_v2),
        ("pod_with_our_pause_is_observed_until_its_kill", pods::pod_with_our_pause),
        (
            "restart_of_containerd_or_kubelet_is_no_sandbox_restart",
            runtimes::restart_of_containerd_or_kubelet,
        ),
    ];
    let with_containerd_1_7_in_the_long_run: &[Scenario<RealNode>] = &[
        ("pod_with_third_party_pause_is_observed_until_its_kill", pods::pod_with_third_party_pause),
        ("causes_of_restarts_are_named_before_linux_6_15", causes::causes_of_restarts),
        ("installer_switches_and_restores_a_node_with_containerd_1_7", installer::containerd_1_7),
        ("broken_pause_image_is_reverted_with_containerd_1_7", |real| {
            installer::broken_image(real, Runtime::Containerd1)
        }),
        ("refused_configuration_is_reverted_with_containerd_1_7", |real| {
            installer::refused_configuration(real, Runtime::Containerd1)
        }),
        ("image_of_another_architecture_changes_nothing_with_containerd_1_7", |real| {
            installer::image_of_another_architecture(real, Runtime::Containerd1)
        }),
        ("killed_installer_continues_after_every_step_with_containerd_1_7", |real| {
            installer::killed_installer(real, Runtime::Containerd1)
        }),
        ("uninstall_waits_for_a_node_with_containerd_1_7", |real| {
            installer::uninstall(real, Runtime::Containerd1)
        }),
    ];
    let in_the_gate: &[Scenario<RealNode>] = &[
        (
            "upgrade_from_containerd_1_7_to_2_is_no_sandbox_restart",
            runtimes::upgrade_from_containerd_1_7_to_2,
        ),
        ("agent_token_is_refused_for_objects_of_another_node", tokens::between_the_control_plane_and_debian),
        ("installer_switches_and_restores_a_labelled_node", installer::containerd_2),
    ];
    let in_the_long_run: &[Scenario<RealNode>] = &[
        ("pod_in_a_user_namespace_is_observed_like_others", pods::pod_in_a_user_namespace),
        ("slow_api_server_ends_no_term_on_debian", pods::slow_api_server),
        ("reboot_is_one_restart_of_each_pod", boots::reboot),
        ("preloaded_pause_stays_without_registry_and_pin", preload::preloaded_image),
        ("installer_restores_a_node_whose_pause_image_is_broken", |real| {
            installer::broken_image(real, Runtime::Containerd2)
        }),
        ("installer_restores_a_node_whose_runtime_refuses_the_file", |real| {
            installer::refused_configuration(real, Runtime::Containerd2)
        }),
        ("installer_leaves_a_node_of_another_architecture_alone", |real| {
            installer::image_of_another_architecture(real, Runtime::Containerd2)
        }),
        ("killed_installer_continues_after_every_step", |real| {
            installer::killed_installer(real, Runtime::Containerd2)
        }),
        ("uninstall_waits_until_the_node_is_restored", |real| {
            installer::uninstall(real, Runtime::Containerd2)
        }),
        ("power_failure_is_one_restart_of_each_pod", boots::power_failure),
        ("powered_off_node_becomes_unknown_and_recovers", boots::powered_off_node),
        ("exit_status_is_reported_from_linux_6_15_on", pods::exit_status_from_linux_6_15),
        ("agent_token_is_refused_between_two_debian_nodes", tokens::between_two_debian_nodes),
        ("crio_pod_with_our_pause_is_observed_until_its_kill", crio::pod_with_our_pause),
        ("crio_pod_with_crios_own_pause_is_observed_until_its_kill", crio::pod_with_crios_own_pause),
        ("crio_pod_without_shared_pids_has_no_pause_and_no_fault", crio::pod_without_shared_pids),
    ];
    let group = Group::new("real-node").with(with_containerd_1_7);
    if is_long() {
        group.with(with_containerd_1_7_in_the_long_run).with(in_the_gate).with(in_the_long_run)
    } else {
        group.with(in_the_gate)
    }
    .run()
}

/// Images for the Debian node. Importing them takes long there.
const VM_IMAGES: [Image; 4] = [Image::Pause, Image::OtherPause, Image::Busybox, Image::SandboxHealth];

/// A cluster with the chart installed, and a Debian node.
struct RealNode {
    cluster: Arc<Cluster>,
    vm: Vm,
    /// The current runtime of the machine.
    runtime: Mutex<Runtime>,
    /// A further node of the cluster, or why it did not start.
    crio: OnceLock<Result<Box<Self>, String>>,
}

impl Environment for RealNode {
    fn missing() -> Option<String> {
        preflight::missing().or_else(vm::missing)
    }

    fn start(name: &str) -> Result<Self> {
        Self::join(&Arc::new(Cluster::start(name)?), VM_NODES[0], Runtime::Containerd1)
    }

    fn logs(&self) -> String {
        let crio = self.crio.get().and_then(|crio| crio.as_ref().ok()).map(|crio| &crio.vm);
        let no_journals = [Some(&self.vm), crio].into_iter().flatten().filter_map(|vm| {
            vm.save_journals().err().map(|error| format!("no journals of {}: {error:#}\n", vm.name()))
        });
        self.cluster.logs() + &no_journals.collect::<String>()
    }
}

impl RealNode {
    fn node(&self) -> &Node {
        &self.cluster.node
    }

    fn join(cluster: &Arc<Cluster>, place: VmNode, runtime: Runtime) -> Result<Self> {
        let setup = Setup::prepare(&VM_IMAGES)?;
        let vm = Vm::start(&cluster.node, place, Kernel::Stable, runtime, &setup, PAUSE)?;
        let (cluster, runtime) = (Arc::clone(cluster), Mutex::new(runtime));
        Ok(Self { cluster, vm, runtime, crio: OnceLock::new() })
    }

    /// The node that runs CRI-O, started by the first scenario that needs it.
    fn crio(&self) -> Result<&Self> {
        let crio = self.crio.get_or_init(|| {
            let node = Self::join(&self.cluster, VM_NODES[1], Runtime::CriO);
            node.map(Box::new).map_err(|error| format!("{error:#}"))
        });
        crio.as_deref().map_err(|error| anyhow!("{error}"))
    }

    /// Switches the runtime unless it is this one already.
    fn use_runtime(&self, runtime: Runtime) -> Result<()> {
        let mut current = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != runtime {
            self.vm.use_runtime(runtime, PAUSE)?;
            *current = runtime;
        }
        Ok(())
    }

    fn runtime(&self) -> Runtime {
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
