//! The node's network, inside its own network namespace: a bridge that is the node's address and the pods' gateway. It has no route to
//! other networks.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::reaper::Reaper;

/// The node's address, and the pods' gateway.
pub(crate) const ADDRESS: &str = "10.200.0.1";
/// Address at which virtual machines reach the API server.
pub(crate) const API_SERVER: &str = "https://10.200.0.1:6443";
/// Address of the kubelet.
pub(crate) const KUBELET: &str = "10.200.0.1:10250";
pub(super) const POD_SUBNET: &str = "10.200.0.0/24";
/// The first address that a pod may get.
pub(super) const FIRST_POD: &str = "10.200.0.10";
pub(super) const SERVICE_SUBNET: &str = "10.96.0.0/16";
/// Address at which pods reach the API server: the first address of the services.
pub(super) const API_SERVICE_ADDRESS: &str = "10.96.0.1";
/// Address of the DNS server in pods. There is none.
pub(super) const CLUSTER_DNS: &str = "10.96.0.10";
pub(super) const BRIDGE: &str = "cni0";

/// A virtual machine's place in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmNode {
    /// Of the node.
    pub name: &'static str,
    /// Address of the node. The cluster's network namespace has it on its loopback, from where QEMU forwards it.
    pub address: &'static str,
    /// The network between QEMU and the machine.
    pub subnet: &'static str,
    /// The network of its pods. They reach the cluster; nothing needs to reach them.
    pub pod_subnet: &'static str,
}

/// The machines that may join.
pub const VM_NODES: [VmNode; 2] = [
    VmNode { name: "debian-1", address: "10.0.2.15", subnet: "10.0.2.0/24", pod_subnet: "10.201.1.0/24" },
    VmNode { name: "debian-2", address: "10.0.3.15", subnet: "10.0.3.0/24", pod_subnet: "10.201.2.0/24" },
];

pub(super) fn set_up(reaper: &Reaper) -> Result<()> {
    let address = format!("{ADDRESS}/24");
    let steps: [&[&str]; 5] = [
        &["link", "set", "lo", "up"],
        &["link", "add", BRIDGE, "type", "bridge"],
        &["address", "add", &address, "dev", BRIDGE],
        &["link", "set", BRIDGE, "up"],
        // The API server and the kubelet look for a default route to know their own address.
        &["route", "add", "default", "dev", BRIDGE],
    ];
    for step in steps {
        reaper.output(Command::new("ip").args(step))?;
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding between pods")
}
