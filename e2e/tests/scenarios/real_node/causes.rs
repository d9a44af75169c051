//! Causes of the end of a sandbox and their Events: the list of `e2e::kube::causes` on Debian's kernel.

use anyhow::Result;
use e2e::cluster::Node;
use e2e::kube::causes::{self, CauseNode};
use serde_json::Value;

use super::RealNode;
use super::pods::on_debian;

pub(super) fn causes_of_restarts(real: &RealNode) -> Result<()> {
    causes::causes_are_named(real)
}

impl CauseNode for RealNode {
    fn cluster(&self) -> &Node {
        self.node()
    }

    fn pod(&self, name: &str) -> Value {
        on_debian(self, name)
    }

    fn run(&self, script: &str) -> Result<String> {
        self.vm.ssh(script)
    }

    fn stop_containerd(&self) -> Result<()> {
        self.vm.ssh("systemctl stop containerd").map(drop)
    }

    fn start_containerd(&self) -> Result<()> {
        self.vm.restart_runtime(self.runtime())
    }

    /// Kills pause, as crictl would, which Debian does not have.
    fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.vm.ssh(&format!("ctr --namespace k8s.io tasks kill --signal SIGKILL {id}")).map(drop)
    }

    fn network_configuration(&self) -> String {
        "/etc/cni/net.d/10-bridge.conflist".to_owned()
    }
}
