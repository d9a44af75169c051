//! The upstream binaries that make a node, in the order in which they start, with their arguments. Comments explain arguments that are not
//! obvious.

use std::fmt::Display;

use super::files;
use super::network::{ADDRESS, POD_SUBNET, SERVICE_SUBNET};
use super::plan::Layout;

const ETCD: &str = "http://127.0.0.1:2379";

/// An upstream binary that a node runs for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// The store.
    Etcd,
    /// The container runtime.
    Containerd,
    /// The API.
    Apiserver,
    /// Garbage collection, Deployments, DaemonSets, service accounts.
    ControllerManager,
    /// Gives pods their node.
    Scheduler,
    /// Service addresses.
    Proxy,
    /// Runs the pods.
    Kubelet,
}

impl Component {
    /// Each needs those before it.
    pub const ALL: [Self; 7] = [
        Self::Etcd,
        Self::Containerd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Proxy,
        Self::Kubelet,
    ];

    /// The name of the binary, which is also the name of its log.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Proxy => "kube-proxy",
            Self::Kubelet => "kubelet",
        }
    }

    pub(super) fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.program() == name)
    }

    pub(super) fn arguments(self, layout: &Layout) -> Vec<String> {
        match self {
            Self::Etcd => etcd(layout),
            Self::Containerd => vec![flag("config", files::containerd(layout).display())],
            Self::Apiserver => apiserver(layout),
            Self::ControllerManager => controller_manager(layout),
            Self::Scheduler => scheduler(layout),
            Self::Proxy => proxy(layout),
            Self::Kubelet => kubelet(layout),
        }
    }
}

fn flag(name: &str, value: impl Display) -> String {
    format!("--{name}={value}")
}

fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        flag("data-dir", layout.run("etcd").display()),
        flag("listen-client-urls", ETCD),
        flag("advertise-client-urls", ETCD),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        // Its data need not outlive the node.
        flag("unsafe-no-fsync", true),
    ]
}

fn apiserver(layout: &Layout) -> Vec<String> {
    let pki = |file| layout.pki(file).display().to_string();
    vec![
        flag("etcd-servers", ETCD),
        flag("service-cluster-ip-range", SERVICE_SUBNET),
        flag("secure-port", 6443),
        flag("bind-address", "0.0.0.0"),
        flag("advertise-address", ADDRESS),
        flag("tls-cert-file", pki("apiserver.crt")),
        flag("tls-private-key-file", pki("apiserver.key")),
        flag("client-ca-file", pki("ca.crt")),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        flag("service-account-key-file", pki("service-accounts.pub")),
        flag("service-account-signing-key-file", pki("service-accounts.key")),
        // Real authorization, or a test would prove nothing about the chart's roles.
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("admission-control-config-file", files::admission(layout).display()),
        flag("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
        flag("kubelet-client-key", pki("apiserver-kubelet-client.key")),
        flag("kubelet-certificate-authority", pki("ca.crt")),
        // The node's name cannot be resolved.
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("allow-privileged", true),
        flag("audit-policy-file", files::audit_policy(layout).display()),
        flag("audit-log-path", layout.audit_log().display()),
        // A long run counts Events at its end; by default they are gone after an hour.
        flag("event-ttl", "24h"),
    ]
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let mut arguments = control_plane_client(layout, "controller-manager");
    arguments.extend([
        flag("root-ca-file", layout.pki("ca.crt").display()),
        flag("service-account-private-key-file", layout.pki("service-accounts.key").display()),
        flag("use-service-account-credentials", true),
    ]);
    arguments
}

fn scheduler(layout: &Layout) -> Vec<String> {
    control_plane_client(layout, "scheduler")
}

fn control_plane_client(layout: &Layout, user: &str) -> Vec<String> {
    let kubeconfig = layout.kubeconfig(user);
    vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("authentication-kubeconfig", kubeconfig.display()),
        flag("authorization-kubeconfig", kubeconfig.display()),
        // There is one of each, and it should not write to the audit log every two seconds.
        flag("leader-elect", false),
        flag("bind-address", "127.0.0.1"),
    ]
}

fn proxy(layout: &Layout) -> Vec<String> {
    vec![
        flag("kubeconfig", layout.kubeconfig("proxy").display()),
        flag("proxy-mode", "iptables"),
        flag("cluster-cidr", POD_SUBNET),
        flag("hostname-override", &layout.name),
        // This limit is the whole machine's, and must not be changed.
        flag("conntrack-max-per-core", 0),
    ]
}

fn kubelet(layout: &Layout) -> Vec<String> {
    vec![
        flag("config", files::kubelet(layout).display()),
        flag("kubeconfig", layout.kubeconfig("kubelet").display()),
        flag("hostname-override", &layout.name),
        flag("node-ip", ADDRESS),
        flag("root-dir", layout.run("kubelet").display()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn component_is_found_by_name_of_binary() {
        for component in Component::ALL {
            assert_eq!(Component::of_program(component.program()), Some(component));
        }
        assert_eq!(Component::of_program("docker"), None);
    }
}
