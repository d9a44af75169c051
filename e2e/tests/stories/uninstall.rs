//! What a release leaves behind.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use e2e::node::Node;
use e2e::story::{PATIENCE, RELEASE, RELEASE_NAMESPACE};
use e2e::wait;

use super::Cluster;

/// Kinds whose objects come and go by themselves.
const TRANSIENT: [&str; 3] = ["events", "leases.coordination.k8s.io", "pods"];

/// The names of all objects of the cluster, of every kind that can be listed.
pub(super) fn census(node: &Node) -> Result<BTreeSet<String>> {
    let kinds = node.kubectl(["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<_> =
        kinds.lines().filter(|kind| !kind.starts_with("events") && !TRANSIENT.contains(kind)).collect();
    let path = "jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let said = node.kubectl(["get", &kinds.join(","), "-A", "-o", path])?;
    Ok(said.lines().map(str::to_owned).collect())
}

pub(super) fn leaves_the_crd_and_nothing_else(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["delete", "pods", "--all", "-n", "default", "--wait"])?;
    wait::until("the rows are gone with their pods", PATIENCE, || {
        let rows = node.kubectl(["get", "sandboxhealths", "-A", "-o", "name"])?;
        ensure!(rows.is_empty(), "{rows}");
        Ok(())
    })?;
    node.helm(["uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait"])?;
    wait::until("nothing else is left", PATIENCE, || {
        let left: Vec<_> = census(node)?.difference(&cluster.before).cloned().collect();
        // The API server makes an APIService for the group of each CRD.
        let crd = [
            "APIService /v1alpha1.sandboxhealth.dev",
            "CustomResourceDefinition /sandboxhealths.sandboxhealth.dev",
        ];
        ensure!(left == crd, "{left:?}");
        let transient = node.kubectl(["get", "pods,leases", "-n", RELEASE_NAMESPACE, "-o", "name"])?;
        ensure!(transient.is_empty(), "{transient}");
        Ok(())
    })
}
