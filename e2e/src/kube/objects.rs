//! All objects of a cluster, whatever their kind.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::cluster::Node;

/// Kinds whose objects are created and deleted all the time.
const TRANSIENT: [&str; 3] = ["events", "leases.coordination.k8s.io", "pods"];

/// The names of all objects of the cluster, of every kind that can be listed.
///
/// # Errors
///
/// When they cannot be listed.
pub fn object_names(node: &Node) -> Result<BTreeSet<String>> {
    let kinds = node.kubectl(["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<_> =
        kinds.lines().filter(|kind| !kind.starts_with("events") && !TRANSIENT.contains(kind)).collect();
    let path = "jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let output = node.kubectl(["get", &kinds.join(","), "-A", "-o", path])?;
    Ok(output.lines().map(str::to_owned).collect())
}
