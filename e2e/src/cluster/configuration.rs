//! The configuration files of the components, as text that is generated from the node's layout.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::files::{
    CONTAINERD_SOCKET, admission, audit_policy, cni, cni_plugins, containerd, containerd_drop_ins, kubelet,
    network, static_pods,
};
use super::network::{ADDRESS, BRIDGE, CLUSTER_DNS, FIRST_POD, POD_SUBNET};
use super::plan::Layout;
use super::{cgroups, network_failure, snippet};
use crate::names::{self, RELEASE_NAMESPACE};

/// Writes all of them.
pub(super) fn write(layout: &Layout) -> Result<()> {
    let version = if cgroups::is_unified()? { 2 } else { 1 };
    fs::create_dir_all(cni(layout))?;
    fs::create_dir_all(cni_plugins(layout))?;
    fs::create_dir_all(layout.logs())?;
    fs::create_dir_all(containerd_drop_ins(layout))?;
    fs::create_dir_all(static_pods(layout))?;
    put(containerd(layout), &containerd_configuration(layout)?)?;
    write_sandbox_image(layout, names::PAUSE)?;
    put(kubelet(layout), &pretty(&kubelet_configuration(layout, version))?)?;
    put(audit_policy(layout), &pretty(&audit())?)?;
    put(admission(layout), &pretty(&admission_configuration())?)?;
    write_network(layout, network_failure::WORKING)
}

/// Writes the network configuration with `plugin` in place of the bridge plugin.
pub(super) fn write_network(layout: &Layout, plugin: &str) -> Result<()> {
    put(network(layout), &pretty(&bridge(layout, plugin))?)
}

/// Switches the node to another pause image, as docs/nodes/settings.md describes.
pub(super) fn write_sandbox_image(layout: &Layout, image: &str) -> Result<()> {
    put(containerd_drop_ins(layout).join("50-sandbox-health.toml"), &snippet::sandbox_image(image)?)
}

fn put(path: PathBuf, text: &str) -> Result<()> {
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// The components read YAML, a superset of JSON.
fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

fn containerd_configuration(layout: &Layout) -> Result<String> {
    let (root, cni, cni_plugins) = (layout.run("containerd"), cni(layout), cni_plugins(layout));
    let (root, cni, cni_plugins) = (root.display(), cni.display(), cni_plugins.display());
    let imports = snippet::imports(&containerd_drop_ins(layout).display().to_string())?;
    Ok(format!(
        r#"version = 3
{imports}root = "{root}"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj, and dies of it.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{}", "{cni_plugins}"]
  conf_dir = "{cni}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
        network_failure::PLUGINS
    ))
}

fn kubelet_configuration(layout: &Layout, cgroup_version: u8) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Other addresses of the namespace belong to virtual machines, whose kubelets use them.
        "address": ADDRESS,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.pki("kubelet.crt"),
        "tlsPrivateKeyFile": layout.pki("kubelet.key"),
        "staticPodPath": static_pods(layout),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.cgroup()),
        // By default the kubelet refuses cgroup v1; with v2 the default is kept.
        "failCgroupV1": cgroup_version != 1,
        "failSwapOn": false,
        // As in a cluster that protects its nodes; a test reaches this limit.
        "podPidsLimit": 1024,
        // Tests kill the same containers again and again, and the restart counts must keep up with the sandboxes.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        // Before Kubernetes 1.35 it is off by default.
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "clusterDomain": "cluster.local",
        // No DNS server has this address, but a pod without one gets a warning at each start. The API server's address is in each pod's
        // environment.
        "clusterDNS": [CLUSTER_DNS],
        "resolvConf": "",
        // The disk is the host's: its free space must not evict pods.
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

/// All writes, without their contents, and all requests of agent and controller. Reads of other clients are not logged.
fn audit() -> serde_json::Value {
    let release = format!("system:serviceaccounts:{RELEASE_NAMESPACE}");
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        // The first matching rule applies.
        "rules": [
            {"level": "Metadata", "userGroups": [release]},
            {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        ],
    })
}

/// As with some providers: a pod may have a system class only where a ResourceQuota names the class.
fn admission_configuration() -> serde_json::Value {
    let classes = ["system-node-critical", "system-cluster-critical"];
    let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": classes});
    let quota = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "ResourceQuotaConfiguration",
        "limitedResources": [{"resource": "pods", "matchScopes": [scope]}],
    });
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{"name": "ResourceQuota", "configuration": quota}],
    })
}

fn bridge(layout: &Layout, plugin: &str) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "e2e",
        "plugins": [
            {
                "type": plugin,
                "bridge": BRIDGE,
                "isGateway": false,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_SUBNET, "rangeStart": FIRST_POD, "gateway": ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": layout.run("cni-addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "loopback"},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn sandbox_image_is_in_imported_drop_in() {
        let layout = Layout::new(Path::new("/cache"), "a");
        let text = containerd_configuration(&layout).unwrap();
        let directory = containerd_drop_ins(&layout);
        // Above the first table: below it, it would be a key of that table.
        let (top, _) = text.split_once("\n[").unwrap();
        assert!(top.contains(&format!("\nimports = [\"{}/*.toml\"]\n", directory.display())), "{text}");
        assert!(!text.contains("pinned_images"), "{text}");
    }

    #[test]
    fn kubelet_accepts_cgroup_v1_only_without_v2() {
        let layout = Layout::new(Path::new("/cache"), "a");
        assert_eq!(kubelet_configuration(&layout, 1)["failCgroupV1"], false);
        assert_eq!(kubelet_configuration(&layout, 2)["failCgroupV1"], true);
    }
}
