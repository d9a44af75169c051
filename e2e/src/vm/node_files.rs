//! The files that make a Debian machine a node of a cluster: kubelet and kube-proxy as systemd units, the runtime's configuration as in
//! docs/nodes/settings.md, a network plugin, certificates. Text and files only; [`super::machine`] puts them in place.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::disk::Contents;
use crate::build::go;
use crate::cluster::{API_SERVER, Node, VmNode, snippet};

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// containerd 1.7 from Debian's package. A node that runs it can be switched to containerd 2.
    Containerd1,
    /// containerd 2, in the version of the other nodes of these tests.
    Containerd2,
    /// CRI-O with its own defaults: crun, systemd's cgroups, overlay.
    CriO,
}

impl Runtime {
    /// The directory on the disk whose files are copied to `/`.
    pub(super) const fn directory(self) -> &'static str {
        match self {
            Self::Containerd1 => "containerd-1",
            Self::Containerd2 => "containerd-2",
            Self::CriO => "crio",
        }
    }

    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Containerd1 | Self::Containerd2 => "containerd",
            Self::CriO => "crio",
        }
    }

    const fn socket(self) -> &'static str {
        match self {
            Self::Containerd1 | Self::Containerd2 => "unix:///run/containerd/containerd.sock",
            Self::CriO => "unix:///run/crio/crio.sock",
        }
    }

    /// A command that succeeds once the runtime answers.
    pub(super) const fn probe(self) -> &'static str {
        match self {
            Self::Containerd1 | Self::Containerd2 => "ctr version",
            Self::CriO => "crio status info",
        }
    }

    /// A command that imports the OCI archive `$image`.
    pub(super) const fn import(self) -> &'static str {
        match self {
            Self::Containerd1 | Self::Containerd2 => {
                "ctr -n k8s.io images import --local $image || ctr -n k8s.io images import $image"
            }
            Self::CriO => "buildah pull -q oci-archive:$image",
        }
    }
}

/// Upstream's binaries that the machine runs.
const BINARIES: [&str; 5] = ["kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr"];

/// The files of CRI-O's build, and their paths in its unit.
const CRIO_FILES: [(&str, &str); 3] =
    [("crio", "usr/local/bin"), ("pinns", "usr/local/bin"), ("crio.service", "etc/systemd/system")];

/// Adds everything for this node to the disk's contents.
pub(super) fn write(
    contents: &Contents,
    node: &Node,
    vm: VmNode,
    runtime: Runtime,
    images: &[PathBuf],
) -> Result<()> {
    for binary in BINARIES {
        contents.copy(&node.program(binary)?, &format!("bin/{binary}"))?;
    }
    for image in images {
        let name = image.file_name().context("an image without a name")?.to_string_lossy().into_owned();
        contents.copy(image, &format!("images/{name}"))?;
    }
    for (file, to) in vm_certificates(node, vm) {
        contents.copy(&file, &format!("etc/kubernetes/{to}"))?;
    }
    for user in ["kubelet", "proxy"] {
        contents.write(&format!("etc/kubernetes/{user}.conf"), &kubeconfig(user)?)?;
    }
    contents.write("etc/kubernetes/kubelet.yaml", &serde_json::to_string_pretty(&kubelet(runtime))?)?;
    contents.write("etc/cni/net.d/10-bridge.conflist", &serde_json::to_string_pretty(&bridge(vm))?)?;
    contents.write("etc/systemd/system/kubelet.service", &unit("kubelet", &kubelet_command(vm)))?;
    contents.write("etc/systemd/system/kube-proxy.service", &unit("kube-proxy", &proxy_command(vm)))?;
    let runtimes: &[Runtime] = match runtime {
        Runtime::Containerd1 | Runtime::Containerd2 => &[Runtime::Containerd1, Runtime::Containerd2],
        Runtime::CriO => {
            let built = go::crio_directory()?;
            for (file, directory) in CRIO_FILES {
                contents.copy(&built.join(file), &format!("{}/{directory}/{file}", runtime.directory()))?;
            }
            &[Runtime::CriO]
        }
    };
    for runtime in runtimes {
        for (path, text) in runtime_files(*runtime)? {
            contents.write(&format!("{}/{path}", runtime.directory()), &text)?;
        }
    }
    Ok(())
}

fn vm_certificates(node: &Node, vm: VmNode) -> Vec<(PathBuf, String)> {
    let mut files = vec![(node.pki_file("ca.crt"), "ca.crt".to_owned())];
    for extension in ["crt", "key"] {
        files.push((
            node.pki_file(&format!("kubelet-{}.{extension}", vm.name)),
            format!("kubelet.{extension}"),
        ));
        files.push((node.pki_file(&format!("proxy.{extension}")), format!("proxy.{extension}")));
    }
    files
}

fn kubeconfig(user: &str) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": API_SERVER,
            "certificate-authority": "/etc/kubernetes/ca.crt",
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": format!("/etc/kubernetes/{user}.crt"),
            "client-key": format!("/etc/kubernetes/{user}.key"),
        }}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
        "current-context": "e2e",
    }))?)
}

/// As distributions configure it, except for settings that tests need on the other nodes as well ([`crate::cluster`]).
fn kubelet(runtime: Runtime) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        // Only pods that select the node run there, so that tests and the demo control where the others run.
        "registerWithTaints": [{"key": "sandboxhealth.dev/virtual-machine", "effect": "NoSchedule"}],
        "cgroupDriver": "systemd",
        "podPidsLimit": 1024,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
        "containerRuntimeEndpoint": runtime.socket(),
        "clusterDomain": "cluster.local",
        "clusterDNS": ["10.96.0.10"],
        "resolvConf": "",
        "failSwapOn": false,
        "evictionHard": {"memory.available": "50Mi"},
    })
}

fn bridge(vm: VmNode) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "e2e",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": vm.pod_subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "loopback"},
        ],
    })
}

fn unit(name: &str, command: &str) -> String {
    format!(
        "[Unit]\nDescription={name}\nAfter=containerd.service crio.service network-online.target node.mount\nRequires=node.mount\n\
         [Service]\nExecStart={command}\nRestart=always\nRestartSec=3\nDelegate=yes\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

fn kubelet_command(vm: VmNode) -> String {
    format!(
        "/node/bin/kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \
         --hostname-override={} --node-ip={}",
        vm.name, vm.address
    )
}

fn proxy_command(vm: VmNode) -> String {
    format!(
        "/node/bin/kube-proxy --kubeconfig=/etc/kubernetes/proxy.conf --proxy-mode=iptables --conntrack-max-per-core=0 \
         --cluster-cidr={} --hostname-override={}",
        vm.pod_subnet, vm.name
    )
}

/// The configuration files of a runtime below `/`. The sandbox image is set later: [`sandbox_image`].
fn runtime_files(runtime: Runtime) -> Result<Vec<(&'static str, String)>> {
    let network = "bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"/etc/cni/net.d\"\n";
    Ok(match runtime {
        Runtime::Containerd1 => {
            let cri = "io.containerd.grpc.v1.cri";
            let text = format!(
                "version = 2\n{SANDBOX_IMAGE}\n[plugins.\"{cri}\".cni]\n  {network}\n\
                 [plugins.\"{cri}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\
                 [plugins.\"{cri}\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n"
            );
            vec![("etc/containerd/config.toml", text)]
        }
        Runtime::Containerd2 => {
            let runtime = "io.containerd.cri.v1.runtime";
            let handler = |name: &str, options: &str| {
                let table = format!("[plugins.'{runtime}'.containerd.runtimes.{name}");
                format!(
                    "{table}]\n  runtime_type = \"io.containerd.runc.v2\"\n{table}.options]\n  SystemdCgroup = true\n{options}"
                )
            };
            let text = format!(
                "version = 3\n{}\n[plugins.'{runtime}'.cni]\n  bin_dirs = [\"/usr/lib/cni\"]\n  conf_dir = \"/etc/cni/net.d\"\n{}{}",
                snippet::imports("/etc/containerd/conf.d")?,
                handler("runc", ""),
                handler("crun", "  BinaryName = \"/usr/bin/crun\"\n"),
            );
            // The unit is Debian's, with another binary. It finds its shim in PATH.
            let unit = "[Service]\nEnvironment=PATH=/node/bin:/usr/sbin:/usr/bin:/sbin:/bin\nExecStart=\nExecStart=/node/bin/containerd\n";
            vec![
                ("etc/containerd/config.toml", text),
                ("etc/systemd/system/containerd.service.d/version-2.conf", unit.to_owned()),
            ]
        }
        Runtime::CriO => {
            let text = "[crio.network]\nplugin_dirs = [\"/usr/lib/cni\"]\n";
            vec![("etc/crio/crio.conf.d/10-debian.conf", text.to_owned())]
        }
    })
}

/// Placeholder of the snippet in containerd 1.7's configuration.
pub(super) const SANDBOX_IMAGE: &str = "# sandbox image";

/// The file that sets the sandbox image, and its text as in docs/nodes/settings.md.
pub(super) fn sandbox_image(runtime: Runtime, image: &str) -> Result<(&'static str, String)> {
    Ok(match runtime {
        Runtime::Containerd1 => {
            let files = runtime_files(runtime)?;
            let (_, text) = files.into_iter().next().context("no configuration")?;
            ("/etc/containerd/config.toml", text.replace(SANDBOX_IMAGE, &snippet::sandbox_image_1_7(image)?))
        }
        Runtime::Containerd2 => {
            ("/etc/containerd/conf.d/50-sandbox-health.toml", snippet::sandbox_image(image)?)
        }
        Runtime::CriO => {
            ("/etc/crio/crio.conf.d/50-sandbox-health.conf", snippet::pause_image_of_crio(image)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippets_of_docs_set_sandbox_image() {
        let (path, text) = sandbox_image(Runtime::Containerd1, "localhost/x:1").unwrap();
        assert_eq!(path, "/etc/containerd/config.toml");
        assert!(
            text.contains("sandbox_image = \"localhost/x:1\"\n") && !text.contains(SANDBOX_IMAGE),
            "{text}"
        );
        assert!(text.starts_with("version = 2\n"), "{text}");
        let (path, text) = sandbox_image(Runtime::Containerd2, "localhost/x:1").unwrap();
        assert_eq!(path, "/etc/containerd/conf.d/50-sandbox-health.toml");
        assert!(text.contains("sandbox = \"localhost/x:1\""), "{text}");
        let (path, text) = sandbox_image(Runtime::CriO, "localhost/x:1").unwrap();
        assert_eq!(path, "/etc/crio/crio.conf.d/50-sandbox-health.conf");
        assert_eq!(text, "[crio.image]\npause_image = \"localhost/x:1\"\npause_command = \"\"\n");
    }

    #[test]
    fn imports_precede_first_table() {
        let files = runtime_files(Runtime::Containerd2).unwrap();
        let (top, _) = files[0].1.split_once("\n[").unwrap();
        assert!(top.contains("imports = [\"/etc/containerd/conf.d/*.toml\"]"), "{top}");
    }
}
