//! `sandbox-health pause-config`: how the nodes of a platform get a pause image. It prints the setting, where to put it, and what to run
//! afterwards. Nothing here reads or changes a node, and nothing depends on one.

use std::fmt;

pub use image::{Image, ImageError};

mod image;

/// The setting without which containerd 2 reads no drop-ins; `containerd config default` has it since 2.2.
pub const CONTAINERD_IMPORTS: &str = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n";

/// Counting zombies and restarts works with every pause image.
const WITHOUT_OUR_PAUSE: &str = "The operator works there with the nodes' own pause image: the agent counts zombie processes and \
                                 sandbox restarts, and only the number of reaped processes (REAPED) stays empty.";

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct PauseConfigOptions {
    /// What configures the nodes: a container runtime, a Kubernetes distribution, or a tool.
    #[arg(long = "for", value_enum, value_name = "PLATFORM")]
    pub platform: Platform,
    /// Complete name of the pause image, with a tag or a digest: registry.example/pause:0.1.0.
    #[arg(long)]
    pub image: Image,
}

/// What configures a node's runtime, and so chooses its pause image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// containerd 2, by a drop-in.
    Containerd2,
    /// containerd 1.7, which has no usable drop-ins.
    Containerd1,
    /// CRI-O, by a drop-in.
    Crio,
    /// k3s, by a drop-in.
    K3s,
    /// RKE2, by a drop-in.
    Rke2,
    /// Amazon EKS with Amazon Linux 2023, by nodeadm's NodeConfig.
    Eks,
    /// OpenShift, by a MachineConfig.
    Openshift,
    /// Talos Linux, by the machine configuration.
    Talos,
    /// Bottlerocket, by its settings.
    Bottlerocket,
    /// Kubespray, by its variables.
    Kubespray,
    /// Cluster API with the kubeadm bootstrap provider.
    ClusterApi,
    /// kind, by the cluster's configuration.
    Kind,
    /// Google Kubernetes Engine, which allows no other pause image.
    Gke,
    /// Azure Kubernetes Service, which allows no other pause image.
    Aks,
}

/// How the nodes of a platform get an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    pub platform: Platform,
    pub place: Place,
    pub format: Format,
    /// The setting, without comments.
    pub content: String,
    /// A line that another file must have for the setting to take effect.
    pub requirement: Option<Requirement>,
    /// Shell commands that make it take effect: on each node, if the place is a file there.
    pub commands: &'static [&'static str],
    /// What else matters for the platform, a sentence or two each.
    pub notes: &'static [&'static str],
}

/// Where to put the setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This file on each node, which contains nothing else.
    NewFile(&'static str),
    /// This file on each node, beside what it has.
    ExistingFile(&'static str),
    /// A document that configures nodes.
    Document(&'static str),
}

/// A line of another file, without which the setting has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    pub reason: &'static str,
    pub line: &'static str,
}

/// The language of a setting. Both have comments that begin with #.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    Yaml,
}

/// Why nodes of a platform cannot have the image, and what they have nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error(
        "GKE does not let users choose the pause image: it manages containerd's configuration, and its runtime configuration file has \
         no field for the sandbox image. {WITHOUT_OUR_PAUSE}"
    )]
    Gke,
    #[error(
        "AKS does not let users choose the pause image: it manages containerd's configuration, its node configuration has no field for \
         the sandbox image, and changes that are made on a node are outside its support and are lost when the node is reimaged. \
         {WITHOUT_OUR_PAUSE}"
    )]
    Aks,
    #[error(
        "Kubespray composes the name of the pause image from a repository and a tag: give the image by a tag, not by a digest"
    )]
    KubesprayDigest,
}

/// How the nodes of this platform get this image.
pub fn snippet(platform: Platform, image: &Image) -> Result<Snippet, Unsupported> {
    let (place, format, content): (_, _, String) = match platform {
        Platform::Containerd2 => (
            Place::NewFile("/etc/containerd/conf.d/50-sandbox-health.toml"),
            Format::Toml,
            format!("version = 3\n\n{}", containerd_table(image)),
        ),
        Platform::Containerd1 => (
            Place::ExistingFile("/etc/containerd/config.toml"),
            Format::Toml,
            containerd_1_table(&image.to_string()),
        ),
        Platform::Crio => {
            (Place::NewFile("/etc/crio/crio.conf.d/50-sandbox-health.conf"), Format::Toml, crio_table(image))
        }
        Platform::K3s | Platform::Rke2 => {
            let file = match platform {
                Platform::K3s => "/etc/rancher/k3s/config.yaml.d/50-sandbox-health.yaml",
                _ => "/etc/rancher/rke2/config.yaml.d/50-sandbox-health.yaml",
            };
            (Place::NewFile(file), Format::Yaml, format!("pause-image: \"{image}\"\n"))
        }
        Platform::Eks => {
            (Place::Document("the user data of the nodes' launch template"), Format::Yaml, node_config(image))
        }
        Platform::Openshift => {
            (Place::Document("a MachineConfig object"), Format::Yaml, machine_config(image))
        }
        Platform::Talos => {
            (Place::Document("a patch of the machine configuration"), Format::Yaml, talos_patch(image))
        }
        Platform::Bottlerocket => (
            Place::Document("the user data of the nodes"),
            Format::Toml,
            format!("[settings.kubernetes]\npod-infra-container-image = \"{image}\"\n"),
        ),
        Platform::Kubespray => {
            let tag = image.tag().ok_or(Unsupported::KubesprayDigest)?;
            let repository = image.repository();
            let content = format!("pod_infra_image_repo: \"{repository}\"\npod_infra_image_tag: \"{tag}\"\n");
            (Place::Document("the inventory's `group_vars/all`"), Format::Yaml, content)
        }
        Platform::ClusterApi => {
            (Place::Document("the KubeadmConfigTemplate of the nodes"), Format::Yaml, kubeadm_config(image))
        }
        Platform::Kind => (Place::Document("the cluster's configuration"), Format::Yaml, kind_cluster(image)),
        Platform::Gke => return Err(Unsupported::Gke),
        Platform::Aks => return Err(Unsupported::Aks),
    };
    let (requirement, commands, notes) = (requirement(platform), commands(platform), notes(platform));
    Ok(Snippet { platform, place, format, content, requirement, commands, notes })
}

/// Of containerd 2, whose sandbox image is one of the pinned images.
fn containerd_table(image: &Image) -> String {
    format!("[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"{image}\"\n")
}

/// Of containerd 1.7, and of a configuration of version 2.
pub fn containerd_1_table(image: &str) -> String {
    format!("[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{image}\"\n")
}

/// With an empty command CRI-O runs the image's own, whose argument gives pause the room for its status.
fn crio_table(image: &Image) -> String {
    format!("[crio.image]\npause_image = \"{image}\"\npause_command = \"\"\n")
}

fn node_config(image: &Image) -> String {
    format!(
        "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  containerd:\n    config: |\n{}",
        indented(&containerd_table(image), 6)
    )
}

fn machine_config(image: &Image) -> String {
    let data = percent_encoded(&crio_table(image));
    format!(
        "apiVersion: machineconfiguration.openshift.io/v1\n\
         kind: MachineConfig\n\
         metadata:\n  \
           name: 99-worker-sandbox-health-pause\n  \
           labels:\n    \
             machineconfiguration.openshift.io/role: worker\n\
         spec:\n  \
           config:\n    \
             ignition:\n      \
               version: 3.2.0\n    \
             storage:\n      \
               files:\n        \
                 - path: /etc/crio/crio.conf.d/50-sandbox-health.conf\n          \
                   mode: 420\n          \
                   overwrite: true\n          \
                   contents:\n            \
                     source: \"data:,{data}\"\n"
    )
}

fn talos_patch(image: &Image) -> String {
    format!(
        "machine:\n  files:\n    - path: /etc/cri/conf.d/20-customization.part\n      op: create\n      content: |\n{}",
        indented(&containerd_table(image), 8)
    )
}

fn kubeadm_config(image: &Image) -> String {
    format!(
        "spec:\n  template:\n    spec:\n      files:\n        \
           - path: /etc/containerd/conf.d/50-sandbox-health.toml\n          \
             permissions: \"0644\"\n          \
             content: |\n{}      \
           preKubeadmCommands:\n        \
           - systemctl restart containerd\n",
        indented(&format!("version = 3\n\n{}", containerd_table(image)), 12)
    )
}

fn kind_cluster(image: &Image) -> String {
    format!(
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\ncontainerdConfigPatches:\n  - |-\n{}",
        indented(&containerd_1_table(&image.to_string()), 4)
    )
}

fn indented(text: &str, spaces: usize) -> String {
    let indent = " ".repeat(spaces);
    text.lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("{indent}{line}\n") })
        .collect()
}

/// For a data URL. The characters of an image's name stay as they are, so that people can read it.
fn percent_encoded(text: &str) -> String {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"._-/:@=".contains(&it);
    text.bytes()
        .map(|it| if is_plain(it) { char::from(it).to_string() } else { format!("%{it:02X}") })
        .collect()
}

fn requirement(platform: Platform) -> Option<Requirement> {
    (platform == Platform::Containerd2).then_some(Requirement {
        reason: "containerd reads it only if `/etc/containerd/config.toml` has this line above its first table. `containerd config \
                 default` writes the line since 2.2:",
        line: CONTAINERD_IMPORTS,
    })
}

fn commands(platform: Platform) -> &'static [&'static str] {
    match platform {
        Platform::Containerd2 => {
            &["containerd config dump | grep ' sandbox = '", "systemctl restart containerd"]
        }
        Platform::Containerd1 => {
            &["containerd config dump | grep sandbox_image", "systemctl restart containerd"]
        }
        Platform::Crio => &["systemctl reload crio"],
        Platform::K3s => &["systemctl restart k3s"],
        Platform::Rke2 => &["systemctl restart rke2-server"],
        Platform::Talos => &["talosctl patch machineconfig --nodes NODE --patch @FILE"],
        Platform::Openshift => &["oc apply -f FILE"],
        _ => &[],
    }
}

fn notes(platform: Platform) -> &'static [&'static str] {
    match platform {
        Platform::Containerd2 => &[
            "The first command must print the image. `config.toml` may have version 2: containerd converts each file by itself.",
        ],
        Platform::Containerd1 => &[
            "The first command must print the image. Add the line to the table that the file has already.",
            "A drop-in does not work: before containerd 2.0 an imported file \
             replaces a plugin's whole table.",
        ],
        Platform::Crio => &[
            "With an empty `pause_command` CRI-O runs the image's own command. With its default, `/pause`, pause has no room for its \
             status.",
            "CRI-O creates a pause only for pods that share their PID namespace (`drop_infra_ctr`, on by default).",
        ],
        Platform::K3s => &[
            "On agents the unit is `k3s-agent`. The restart of a server also restarts its API server.",
            "A flag `--pause-image` of the unit overrides the file, and so do drop-ins whose names sort after it.",
        ],
        Platform::Rke2 => &[
            "On agents the unit is `rke2-agent`.",
            "A flag `--pause-image` of the unit overrides the file, and so do drop-ins whose names sort after it.",
        ],
        Platform::Eks => &[
            "For Amazon Linux 2023 with containerd 2, and for new nodes only: replace the old ones. In a managed node group it is a part \
             `application/node.eks.aws` of a MIME multi-part document; self-managed nodes also need `spec.cluster`.",
            "A file in `/etc/containerd/conf.d` has no effect: nodeadm's configuration of containerd imports none.",
        ],
        Platform::Openshift => &[
            "The Machine Config Operator drains and reboots the workers, one at a time by default. The control plane needs a second \
             MachineConfig, for the role `master`. The cluster's pull secret applies to the image.",
        ],
        Platform::Talos => &[
            "Talos restarts its runtime or reboots the node. If your configuration has this path already, add the table to its content.",
            "Since Talos 1.14 a `CRICustomizationConfig` document replaces the file, which is deprecated but works.",
        ],
        Platform::Bottlerocket => {
            &["On a running node: `apiclient set settings.kubernetes.pod-infra-container-image=IMAGE`."]
        }
        Platform::Kubespray => {
            &["The playbook `cluster.yml` writes the runtime's configuration and restarts the runtime."]
        }
        Platform::ClusterApi => &[
            "Merge it into the template and roll out new machines. A KubeadmControlPlane has the same fields below \
             `spec.kubeadmConfigSpec`.",
            "The machine image needs containerd 2, whose configuration imports `/etc/containerd/conf.d/*.toml`.",
        ],
        Platform::Kind => &[
            "It applies to all nodes of a new cluster. kind's nodes have a containerd configuration of version 2, with containerd 2, too: \
             `head -2 /etc/containerd/config.toml` shows it. For version 3, use the table of containerd 2.",
        ],
        Platform::Gke | Platform::Aks => &[],
    }
}

impl Platform {
    /// The name that people know it by.
    pub fn title(self) -> &'static str {
        match self {
            Self::Containerd2 => "containerd 2",
            Self::Containerd1 => "containerd 1.7",
            Self::Crio => "CRI-O",
            Self::K3s => "k3s",
            Self::Rke2 => "RKE2",
            Self::Eks => "EKS",
            Self::Openshift => "OpenShift",
            Self::Talos => "Talos Linux",
            Self::Bottlerocket => "Bottlerocket",
            Self::Kubespray => "Kubespray",
            Self::ClusterApi => "Cluster API",
            Self::Kind => "kind",
            Self::Gke => "GKE",
            Self::Aks => "AKS",
        }
    }

    /// Whether the project's end-to-end tests run nodes that are configured with the snippet.
    pub fn is_tested(self) -> bool {
        matches!(self, Self::Containerd2 | Self::Containerd1 | Self::Crio)
    }
}

/// As the command prints it: instructions as comments, and the setting. The whole is valid in the place of the setting.
impl fmt::Display for Snippet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.platform.title();
        writeln!(formatter, "# {title}: {}", self.place)?;
        if let Some(Requirement { reason, line }) = self.requirement {
            write!(formatter, "# {reason}\n#   {line}")?;
        }
        if !self.commands.is_empty() {
            writeln!(formatter, "# Then run:")?;
        }
        for command in self.commands {
            writeln!(formatter, "#   {command}")?;
        }
        for note in self.notes {
            writeln!(formatter, "# {note}")?;
        }
        if !self.platform.is_tested() {
            writeln!(formatter, "# Not tested by this project: it follows the documentation of {title}.")?;
        }
        write!(formatter, "{}", self.content)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewFile(path) => write!(formatter, "the file `{path}` on each node"),
            Self::ExistingFile(path) => write!(formatter, "in the file `{path}` on each node"),
            Self::Document(document) => write!(formatter, "in {document}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use serde_json::Value;
    use toml_edit::{DocumentMut, Item};

    use super::*;

    const NAME: &str = "registry.example:5000/team/pause:0.1.0";

    fn image() -> Image {
        NAME.parse().unwrap()
    }

    fn toml(text: &str) -> DocumentMut {
        text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn printed(platform: Platform) -> String {
        snippet(platform, &image()).unwrap().to_string()
    }

    fn supported() -> impl Iterator<Item = Snippet> {
        Platform::value_variants().iter().filter_map(|platform| snippet(*platform, &image()).ok())
    }

    fn containerd_image(document: &DocumentMut) -> &Item {
        &document["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"]
    }

    #[test]
    fn printed_text_has_the_image_at_the_key_of_each_platform() {
        let containerd2 = toml(&printed(Platform::Containerd2));
        assert_eq!(containerd2["version"].as_integer(), Some(3));
        assert_eq!(containerd_image(&containerd2).as_str(), Some(NAME));
        let containerd1 = toml(&printed(Platform::Containerd1));
        assert_eq!(containerd1["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"].as_str(), Some(NAME));
        let crio = toml(&printed(Platform::Crio));
        assert_eq!(crio["crio"]["image"]["pause_image"].as_str(), Some(NAME));
        assert_eq!(crio["crio"]["image"]["pause_command"].as_str(), Some(""));
        let bottlerocket = toml(&printed(Platform::Bottlerocket));
        assert_eq!(bottlerocket["settings"]["kubernetes"]["pod-infra-container-image"].as_str(), Some(NAME));
        for platform in [Platform::K3s, Platform::Rke2] {
            assert_eq!(yaml(&printed(platform))["pause-image"], NAME);
        }
        let kubespray = yaml(&printed(Platform::Kubespray));
        assert_eq!(kubespray["pod_infra_image_repo"], "registry.example:5000/team/pause");
        assert_eq!(kubespray["pod_infra_image_tag"], "0.1.0");
    }

    #[test]
    fn configuration_inside_a_document_has_the_image_at_its_key() {
        let node_config = yaml(&printed(Platform::Eks));
        assert_eq!(
            (&node_config["apiVersion"], &node_config["kind"]),
            (&"node.eks.aws/v1alpha1".into(), &"NodeConfig".into())
        );
        let eks = toml(node_config["spec"]["containerd"]["config"].as_str().unwrap());
        assert_eq!(containerd_image(&eks).as_str(), Some(NAME));
        let talos = yaml(&printed(Platform::Talos));
        let file = &talos["machine"]["files"][0];
        assert_eq!(
            (&file["path"], &file["op"]),
            (&"/etc/cri/conf.d/20-customization.part".into(), &"create".into())
        );
        assert_eq!(containerd_image(&toml(file["content"].as_str().unwrap())).as_str(), Some(NAME));
        let kubeadm = &yaml(&printed(Platform::ClusterApi))["spec"]["template"]["spec"];
        let drop_in = toml(kubeadm["files"][0]["content"].as_str().unwrap());
        assert_eq!(drop_in["version"].as_integer(), Some(3));
        assert_eq!(containerd_image(&drop_in).as_str(), Some(NAME));
        assert_eq!(kubeadm["files"][0]["permissions"], "0644");
        assert_eq!(kubeadm["preKubeadmCommands"][0], "systemctl restart containerd");
        let kind = yaml(&printed(Platform::Kind));
        let patch = toml(kind["containerdConfigPatches"][0].as_str().unwrap());
        assert_eq!(patch["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"].as_str(), Some(NAME));
    }

    #[test]
    fn machine_config_contains_the_drop_in_of_crio() {
        let object = yaml(&printed(Platform::Openshift));
        assert_eq!(object["metadata"]["labels"]["machineconfiguration.openshift.io/role"], "worker");
        let file = &object["spec"]["config"]["storage"]["files"][0];
        assert_eq!(file["path"], "/etc/crio/crio.conf.d/50-sandbox-health.conf");
        assert_eq!(file["mode"], 0o644);
        let source = file["contents"]["source"].as_str().unwrap();
        assert!(source.contains(NAME), "the image is readable: {source}");
        let data = decoded(source.strip_prefix("data:,").unwrap());
        assert_eq!(data, snippet(Platform::Crio, &image()).unwrap().content);
    }

    fn decoded(text: &str) -> String {
        let mut parts = text.split('%');
        let mut decoded = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (hex, rest) = part.split_at(2);
            decoded.push(char::from(u8::from_str_radix(hex, 16).unwrap()));
            decoded.push_str(rest);
        }
        decoded
    }

    #[test]
    fn printed_text_is_the_setting_and_comments() {
        for snippet in supported() {
            let printed = snippet.to_string();
            let (comments, content) = printed.split_at(printed.len() - snippet.content.len());
            assert_eq!(content, snippet.content);
            assert!(comments.lines().all(|line| line.starts_with("# ")), "{comments}");
            assert!(snippet.content.ends_with('\n') && !snippet.content.contains('#'), "{content}");
            assert_eq!(comments.contains("Not tested"), !snippet.platform.is_tested(), "{comments}");
        }
    }

    #[test]
    fn digest_is_kept_where_the_platform_allows_one() {
        let digest: Image = format!("registry.example/pause@sha256:{}", "0".repeat(64)).parse().unwrap();
        for platform in Platform::value_variants() {
            match snippet(*platform, &digest) {
                Ok(snippet) => assert!(snippet.content.contains(&digest.to_string()), "{platform:?}"),
                Err(error) => assert!(
                    matches!(platform, Platform::Kubespray | Platform::Gke | Platform::Aks),
                    "{platform:?}: {error}"
                ),
            }
        }
    }

    #[test]
    fn managed_clouds_get_the_reason_and_what_works_there() {
        for (platform, name) in [(Platform::Gke, "GKE"), (Platform::Aks, "AKS")] {
            let error = snippet(platform, &image()).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.ends_with(WITHOUT_OUR_PAUSE), "{error}");
        }
    }

    #[test]
    fn imports_include_the_drop_in_of_containerd() {
        let document = toml(CONTAINERD_IMPORTS);
        let imports: Vec<_> =
            document["imports"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        assert_eq!(imports, ["/etc/containerd/conf.d/*.toml"]);
        let place = snippet(Platform::Containerd2, &image()).unwrap().place;
        assert_eq!(place, Place::NewFile("/etc/containerd/conf.d/50-sandbox-health.toml"));
    }

    #[test]
    fn platforms_are_named_as_the_documentation_names_them() {
        let names: Vec<_> =
            Platform::value_variants().iter().filter_map(|it| it.to_possible_value()).collect();
        let names: Vec<_> = names.iter().map(clap::builder::PossibleValue::get_name).collect();
        let expected = [
            "containerd2",
            "containerd1",
            "crio",
            "k3s",
            "rke2",
            "eks",
            "openshift",
            "talos",
            "bottlerocket",
            "kubespray",
            "cluster-api",
            "kind",
            "gke",
            "aks",
        ];
        assert_eq!(names, expected);
    }
}
