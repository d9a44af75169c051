//! What an uninstalled release leaves.

use anyhow::{Result, ensure};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::object_names;
use e2e::names::{CONTROLLER, RELEASE, RELEASE_NAMESPACE};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] =
    [("uninstall_leaves_the_crd_and_the_lease", uninstall_leaves_the_crd_and_the_lease)];

fn uninstall_leaves_the_crd_and_the_lease(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["delete", "pods", "--all", "-n", "default", "--wait"])?;
    retry::until("the objects are deleted with their pods", TIMEOUT, || {
        let objects = node.kubectl(["get", "sandboxhealths", "-A", "-o", "name"])?;
        ensure!(objects.is_empty(), "{objects}");
        Ok(())
    })?;
    node.helm(["uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait"])?;
    retry::until("nothing else is left", TIMEOUT, || {
        let left: Vec<_> = object_names(node)?.difference(&cluster.objects_before).cloned().collect();
        // The API server creates an APIService for the group of each CRD.
        let crd = [
            "APIService /v1alpha1.sandboxhealth.dev",
            "CustomResourceDefinition /sandboxhealths.sandboxhealth.dev",
        ];
        ensure!(left == crd, "{left:?}");
        let pods = node.kubectl(["get", "pods", "-n", RELEASE_NAMESPACE, "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })?;
    // The controller creates the Lease, and Helm does not delete it. Another release in this namespace left one, too.
    node.kubectl(["delete", "leases", "-n", RELEASE_NAMESPACE, CONTROLLER]).map(drop)
}
