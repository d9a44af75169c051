//! The platforms that scenarios run on, as lines of the table in docs/install/compatibility.md. Versions are those that the nodes are built of.

use anyhow::Result;

use crate::build::go::minor_version;
use crate::vm::{DEBIAN, DEBIAN_CONTAINERD, DEBIAN_KERNEL};

/// A platform in the table.
pub struct Tested {
    /// All cells except the last.
    pub cells: String,
    /// The last cell: scenarios that run there.
    pub scenarios: &'static [&'static str],
}

impl Tested {
    /// The line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let scenarios: Vec<_> = self.scenarios.iter().map(|name| format!("`{name}`")).collect();
        format!("{} {} |", self.cells, scenarios.join(", "))
    }
}

/// All platforms, in the order of the table.
///
/// # Errors
///
/// When a go.mod does not require its program.
pub fn tested() -> Result<Vec<Tested>> {
    let kubernetes = |directory: &str| minor_version(directory, "k8s.io/kubernetes");
    let (newest, oldest) = (kubernetes("kubernetes")?, kubernetes("kubernetes-1.33")?);
    let containerd = minor_version("containerd", "github.com/containerd/containerd/v2")?;
    let crio = minor_version("crio", "github.com/cri-o/cri-o")?;
    let machine = "cgroupfs, v1 or v2 as the machine has | the machine's";
    let debian = format!("systemd, v2 | {DEBIAN_KERNEL}");
    let platform =
        |cells: String, scenarios| Tested { cells: format!("| {cells} | tested by us |"), scenarios };
    Ok(vec![
        platform(
            format!("upstream's binaries in namespaces | {newest} | containerd {containerd} | {machine}"),
            &["pause_kill_is_one_restart_each", "randomized_kills_equal_restarts_and_events"],
        ),
        platform(
            format!("upstream's binaries in namespaces | {oldest} | containerd {containerd} | {machine}"),
            &["step_6_kill_of_pause_restarts_the_sandbox"],
        ),
        platform(
            format!("{DEBIAN} | {newest} | containerd {DEBIAN_CONTAINERD} | {debian}"),
            &[
                "pod_with_our_pause_is_observed_until_its_kill",
                "causes_of_restarts_are_named_before_linux_6_15",
            ],
        ),
        platform(
            format!("{DEBIAN} | {newest} | containerd {containerd} | {debian}"),
            &["upgrade_from_containerd_1_7_to_2_is_no_sandbox_restart"],
        ),
        platform(
            format!("{DEBIAN} | {newest} | CRI-O {crio} | {debian}"),
            &[
                "crio_pod_with_our_pause_is_observed_until_its_kill",
                "crio_pod_without_shared_pids_has_no_pause_and_no_fault",
            ],
        ),
        platform(
            format!(
                "{DEBIAN}, kernel of backports | {newest} | containerd {DEBIAN_CONTAINERD} or {containerd} | systemd, v2 | 6.15 or later"
            ),
            &["exit_status_is_reported_from_linux_6_15_on"],
        ),
    ])
}
