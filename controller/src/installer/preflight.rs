//! Whether a node can be switched, and by which changes of its files. Pure: facts of the node object and the files in, changes or a
//! refusal out.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::InstallerOptions;
use super::config_toml::{self, EditError, Setting};
use super::files::{Change, Files, HEADER, Target};
use crate::pause_config::{Platform, snippet};

/// The label of nodes that the installer may switch, and its value.
pub const LABEL: (&str, &str) = ("sandboxhealth.dev/pause", "managed");

/// What configures the pause image of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// /etc/containerd.
    Containerd,
    /// /etc/crio.
    Crio,
    /// /etc/rancher/k3s.
    K3s,
    /// /etc/rancher/rke2.
    Rke2,
}

impl Runtime {
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Containerd => "/etc/containerd",
            Self::Crio => "/etc/crio",
            Self::K3s => "/etc/rancher/k3s",
            Self::Rke2 => "/etc/rancher/rke2",
        }
    }

    pub(super) fn config(self) -> &'static str {
        match self {
            Self::Containerd => "config.toml",
            Self::Crio => "crio.conf",
            Self::K3s | Self::Rke2 => "config.yaml",
        }
    }

    pub(super) fn drop_in(self) -> &'static str {
        match self {
            Self::Containerd => "conf.d/50-sandbox-health.toml",
            Self::Crio => "crio.conf.d/50-sandbox-health.conf",
            Self::K3s | Self::Rke2 => "config.yaml.d/50-sandbox-health.yaml",
        }
    }

    /// Units of systemd, of which one is active.
    pub(super) fn units(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &["containerd.service"],
            Self::Crio => &["crio.service"],
            Self::K3s => &["k3s.service", "k3s-agent.service"],
            Self::Rke2 => &["rke2-server.service", "rke2-agent.service"],
        }
    }

    pub(super) fn is_rancher(self) -> bool {
        matches!(self, Self::K3s | Self::Rke2)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
        }
    }
}

/// The fields of the node object that the installer reads.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeFacts {
    pub(super) runtime_version: String,
    pub(super) kubelet_version: String,
    pub(super) os_image: String,
    pub(super) labels: BTreeMap<String, String>,
}

impl From<Node> for NodeFacts {
    fn from(node: Node) -> Self {
        let info = node.status.and_then(|status| status.node_info).unwrap_or_default();
        Self {
            runtime_version: info.container_runtime_version,
            kubelet_version: info.kubelet_version,
            os_image: info.os_image,
            labels: node.metadata.labels.unwrap_or_default(),
        }
    }
}

impl NodeFacts {
    pub(super) fn is_managed(&self) -> bool {
        self.labels.get(LABEL.0).is_some_and(|value| value == LABEL.1)
    }

    /// Whether there is a version. While the runtime is down, the kubelet reports `containerd://Unknown`.
    pub(super) fn is_runtime_known(&self) -> bool {
        self.runtime_version
            .split("://")
            .nth(1)
            .is_some_and(|version| version.starts_with(|it: char| it.is_ascii_digit()))
    }

    /// What configures the node, as its object shows it.
    fn runtime(&self) -> Option<Runtime> {
        if self.runtime_version.starts_with("cri-o://") {
            return Some(Runtime::Crio);
        }
        self.runtime_version.strip_prefix("containerd://")?;
        // containerd's version has the suffix -k3s with both.
        Some(match &self.kubelet_version {
            version if version.contains("+rke2") => Runtime::Rke2,
            version if version.contains("+k3s") => Runtime::K3s,
            _ => Runtime::Containerd,
        })
    }

    /// The platform, if it writes the runtime's configuration itself, and the name that people know it by.
    fn manager(&self) -> Option<(&'static str, Option<Platform>)> {
        let has = |label: &str| self.labels.contains_key(label);
        let os = |name: &str| self.os_image.contains(name);
        if has("kubernetes.azure.com/cluster") {
            Some(("AKS", Some(Platform::Aks)))
        } else if has("cloud.google.com/gke-nodepool") || os("Container-Optimized OS") {
            Some(("GKE", Some(Platform::Gke)))
        } else if has("node.openshift.io/os_id") || os("CoreOS") && !os("Fedora") {
            Some(("OpenShift", Some(Platform::Openshift)))
        } else if os("Talos") {
            Some(("Talos Linux", Some(Platform::Talos)))
        } else if os("Bottlerocket") {
            Some(("Bottlerocket", Some(Platform::Bottlerocket)))
        } else if self.kubelet_version.contains("+k0s") {
            Some(("k0s", None))
        } else if has("microk8s.io/cluster") {
            Some(("MicroK8s", None))
        } else {
            None
        }
    }

    fn is_eks(&self) -> bool {
        self.kubelet_version.contains("-eks-")
    }
}

/// Why a node is not switched, and how an administrator can fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) advice: String,
    /// The platform whose own way the log shows, as `pause-config` prints it.
    pub(super) platform: Option<Platform>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, so the node is unchanged. {}", self.reason, self.advice)
    }
}

fn refusal(
    platform: impl Into<Option<Platform>>,
    reason: impl Into<String>,
    advice: impl Into<String>,
) -> Refusal {
    Refusal { reason: reason.into(), advice: advice.into(), platform: platform.into() }
}

/// The changes that give the node the wanted image; none if it has it.
pub(super) fn changes(
    wanted: &InstallerOptions,
    node: &NodeFacts,
    files: &Files,
) -> Result<Vec<Change>, Refusal> {
    let directory = wanted.runtime.directory();
    let platform = platform(wanted, node)?;
    if !files.is_writable {
        let advice =
            "Mount it writable; an immutable operating system has its own way to configure the runtime";
        return Err(refusal(platform, format!("{directory} is not writable"), advice));
    }
    if files.is_drop_in_foreign() {
        let path = format!("{directory}/{}", wanted.runtime.drop_in());
        let reason = format!("{path} exists and was not written by sandbox-health");
        return Err(refusal(None, reason, "Remove or rename the file"));
    }
    let advised = if node.is_eks() { Platform::Eks } else { platform };
    let mut changes = match platform {
        Platform::Containerd1 => {
            edit_config(wanted, files, Setting::SandboxImage(&wanted.image.to_string()), advised)?
        }
        Platform::Containerd2 => edit_config(wanted, files, Setting::Import, advised)?,
        _ => Vec::new(),
    };
    if wanted.runtime.is_rancher() {
        check_other_files(wanted, files, platform)?;
    }
    if platform != Platform::Containerd1 {
        let setting = snippet(platform, &wanted.image)
            .map_err(|error| refusal(None, error.to_string(), "Use another image"))?
            .content;
        let text = format!("{HEADER}\n{setting}");
        if files.drop_in.as_ref() != Some(&text) {
            changes.push((Target::DropIn, Some(text)));
        }
    }
    Ok(changes)
}

/// The way to configure the node, if the installer has one and was started for it.
fn platform(wanted: &InstallerOptions, node: &NodeFacts) -> Result<Platform, Refusal> {
    let unlabel = format!("remove the label {}={} from the node", LABEL.0, LABEL.1);
    if let Some((manager, platform)) = node.manager() {
        let reason = format!("{manager} manages the runtime's configuration itself");
        let advice = format!("Use the platform's own way if it has one, and {unlabel}");
        return Err(refusal(platform, reason, advice));
    }
    let found = node.runtime();
    if found != Some(wanted.runtime) {
        let reason = format!(
            "the installer was started for {}, and the node {} (runtime {}, kubelet {})",
            wanted.runtime.name(),
            found.map_or("has an unsupported runtime".to_owned(), |it| format!(
                "is configured by {}",
                it.name()
            )),
            node.runtime_version,
            node.kubelet_version,
        );
        return Err(refusal(None, reason, format!("Set pauseInstaller.runtime to the node's, or {unlabel}")));
    }
    Ok(match wanted.runtime {
        Runtime::Containerd if node.runtime_version.starts_with("containerd://1.") => Platform::Containerd1,
        Runtime::Containerd => Platform::Containerd2,
        Runtime::Crio => Platform::Crio,
        Runtime::K3s => Platform::K3s,
        Runtime::Rke2 => Platform::Rke2,
    })
}

/// The changes of containerd's main file, if it lacks the setting. `advised` is the platform whose way a refusal shows.
fn edit_config(
    wanted: &InstallerOptions,
    files: &Files,
    setting: Setting,
    advised: Platform,
) -> Result<Vec<Change>, Refusal> {
    const BY_HAND: &str = "Configure the node by hand, as the log shows";
    let config = files.config.as_deref();
    let unreadable = |error: EditError| {
        refusal(advised, format!("/etc/containerd/config.toml cannot be edited: {error}"), BY_HAND)
    };
    if config.map_or(Ok(false), |text| config_toml::is_set(text, setting)).map_err(unreadable)? {
        return Ok(Vec::new());
    }
    if advised == Platform::Eks {
        let reason = "nodeadm manages /etc/containerd/config.toml";
        return Err(refusal(advised, reason, "Configure the node as the log shows"));
    }
    if !wanted.edit_config {
        let reason = match setting {
            Setting::Import => "/etc/containerd/config.toml does not import /etc/containerd/conf.d/*.toml",
            Setting::SandboxImage(_) => {
                "containerd 1 has no usable drop-ins: its pause image is set in /etc/containerd/config.toml"
            }
        };
        let advice = "Set pauseInstaller.editConfig=true to let the installer edit that file, or configure the node by hand, as the \
                      log shows";
        return Err(refusal(advised, reason, advice));
    }
    if files.is_config_link {
        let reason = "/etc/containerd/config.toml is a symbolic link, which an edit would replace";
        return Err(refusal(advised, reason, BY_HAND));
    }
    let edited = config_toml::edit(config, setting).map_err(unreadable)?;
    // The copy is kept as long as the file has an edit of the installer.
    let is_edited = |original: &str| {
        let undone = config.map(|config| config_toml::undo(config, original));
        undone.is_some_and(|undone| undone.is_ok_and(|undone| undone.as_deref() != config))
    };
    let mut changes = Vec::new();
    if !files.original.as_deref().is_some_and(is_edited) {
        changes.push((Target::Original, Some(config.unwrap_or_default().to_owned())));
    }
    changes.push((Target::Config, Some(edited)));
    Ok(changes)
}

/// k3s and RKE2 read drop-ins in the order of their names after config.yaml; the last value wins.
fn check_other_files(wanted: &InstallerOptions, files: &Files, platform: Platform) -> Result<(), Refusal> {
    let main = files.config.iter().map(|text| (wanted.runtime.config().to_owned(), text));
    let others = files.others.iter().map(|(name, text)| (format!("config.yaml.d/{name}"), text));
    for (name, text) in main.chain(others).filter(|(_, text)| !text.trim().is_empty()) {
        let path = format!("{}/{name}", wanted.runtime.directory());
        let settings: Value = serde_saphyr::from_str(text)
            .map_err(|_| refusal(platform, format!("{path} is not valid YAML"), "Correct the file"))?;
        if let Some(image) = settings.get("pause-image")
            && *image != *wanted.image.to_string()
        {
            let reason = format!("{path} sets pause-image to {image}");
            return Err(refusal(platform, reason, "Remove that setting to let the installer set it"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
