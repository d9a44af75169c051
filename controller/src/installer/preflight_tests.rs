use super::*;

const IMAGE: &str = "registry.example/pause:0.1.0";
const IMPORTS: &str = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";

fn wanted(runtime: Runtime) -> InstallerOptions {
    InstallerOptions::example(runtime, IMAGE)
}

fn editing() -> InstallerOptions {
    InstallerOptions { edit_config: true, ..wanted(Runtime::Containerd) }
}

fn node(runtime: &str, kubelet: &str) -> NodeFacts {
    NodeFacts {
        runtime_version: runtime.to_owned(),
        kubelet_version: kubelet.to_owned(),
        os_image: "Debian GNU/Linux 13 (trixie)".to_owned(),
        ..NodeFacts::default()
    }
}

fn containerd2() -> NodeFacts {
    node("containerd://2.3.7", "v1.37.0")
}

fn files(config: Option<&str>) -> Files {
    Files { is_writable: true, config: config.map(str::to_owned), ..Files::default() }
}

fn refused(wanted: &InstallerOptions, node: &NodeFacts, files: &Files) -> Refusal {
    match changes(wanted, node, files) {
        Err(refusal) => refusal,
        Ok(changes) => panic!("{changes:?}"),
    }
}

/// As the shell writes them.
fn with(files: &Files, changes: Vec<Change>) -> Files {
    let mut files = files.clone();
    for (target, text) in changes {
        match target {
            Target::Original => files.original = text,
            Target::Config => files.config = text,
            Target::DropIn => files.drop_in = text,
        }
    }
    files
}

#[test]
fn each_runtime_gets_its_drop_in() {
    for (runtime, node, config, expected) in [
        (
            Runtime::Containerd,
            containerd2(),
            Some(IMPORTS),
            "version = 3\n\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"registry.example/pause:0.1.0\"\n",
        ),
        (
            Runtime::Crio,
            node("cri-o://1.36.0", "v1.37.0"),
            None,
            "[crio.image]\npause_image = \"registry.example/pause:0.1.0\"\npause_command = \"\"\n",
        ),
        (
            Runtime::K3s,
            node("containerd://2.1.5-k3s1", "v1.34.2+k3s1"),
            Some("token: a\n"),
            "pause-image: \"registry.example/pause:0.1.0\"\n",
        ),
        (
            Runtime::Rke2,
            node("containerd://2.1.5-k3s1", "v1.34.2+rke2r1"),
            None,
            "pause-image: \"registry.example/pause:0.1.0\"\n",
        ),
    ] {
        let before = files(config);
        let changes = changes(&wanted(runtime), &node, &before).unwrap();
        assert_eq!(changes, [(Target::DropIn, Some(format!("{HEADER}\n{expected}")))], "{runtime:?}");
        let after = with(&before, changes);
        assert_eq!(super::changes(&wanted(runtime), &node, &after).unwrap(), [], "{runtime:?}");
        assert_eq!(with(&after, after.revert().unwrap()), before, "{runtime:?}");
    }
}

#[test]
fn drop_in_path_is_that_of_the_snippet() {
    use crate::pause_config::Place;
    for (runtime, platform) in [
        (Runtime::Containerd, Platform::Containerd2),
        (Runtime::Crio, Platform::Crio),
        (Runtime::K3s, Platform::K3s),
        (Runtime::Rke2, Platform::Rke2),
    ] {
        let path = format!("{}/{}", runtime.directory(), runtime.drop_in());
        let place = snippet(platform, &IMAGE.parse().unwrap()).unwrap().place;
        assert_eq!(place.to_string(), format!("the file `{path}` on each node"));
        match place {
            Place::NewFile(place) => assert_eq!(place, path),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn other_runtime_is_refused() {
    for (runtime, node, expected) in [
        (Runtime::Containerd, node("cri-o://1.36.0", "v1.37.0"), "is configured by crio"),
        (Runtime::Crio, containerd2(), "is configured by containerd"),
        (Runtime::Containerd, node("containerd://2.1.5-k3s1", "v1.34.2+k3s1"), "is configured by k3s"),
        (Runtime::K3s, node("containerd://2.1.5-k3s1", "v1.34.2+rke2r1"), "is configured by rke2"),
        (Runtime::Rke2, containerd2(), "is configured by containerd"),
        (Runtime::Containerd, node("docker://29.0.0", "v1.37.0"), "has an unsupported runtime"),
    ] {
        let refusal = refused(&wanted(runtime), &node, &files(Some(IMPORTS)));
        assert!(refusal.reason.contains(&format!("and the node {expected}")), "{refusal}");
        assert_eq!(refusal.platform, None);
    }
}

#[test]
fn platform_that_manages_the_file_is_refused() {
    let labelled = |label: &str| NodeFacts {
        labels: BTreeMap::from([(label.to_owned(), "x".to_owned())]),
        ..containerd2()
    };
    let os = |os: &str| NodeFacts { os_image: os.to_owned(), ..containerd2() };
    for (node, name, platform) in [
        (labelled("kubernetes.azure.com/cluster"), "AKS", Some(Platform::Aks)),
        (labelled("cloud.google.com/gke-nodepool"), "GKE", Some(Platform::Gke)),
        (os("Container-Optimized OS from Google"), "GKE", Some(Platform::Gke)),
        (labelled("node.openshift.io/os_id"), "OpenShift", Some(Platform::Openshift)),
        (os("Red Hat Enterprise Linux CoreOS 9.6.20251125-0"), "OpenShift", Some(Platform::Openshift)),
        (os("Talos (v1.14.0)"), "Talos Linux", Some(Platform::Talos)),
        (os("Bottlerocket OS 1.50.0 (aws-k8s-1.34)"), "Bottlerocket", Some(Platform::Bottlerocket)),
        (node("containerd://2.1.5", "v1.34.2+k0s"), "k0s", None),
        (labelled("microk8s.io/cluster"), "MicroK8s", None),
    ] {
        let refusal = refused(&editing(), &node, &files(Some(IMPORTS)));
        assert!(refusal.reason.starts_with(&format!("{name} manages")), "{}", refusal.reason);
        assert_eq!(refusal.platform, platform);
    }
    let fedora = os("Fedora CoreOS 43.20251110.3.1");
    assert!(changes(&wanted(Runtime::Containerd), &fedora, &files(Some(IMPORTS))).is_ok());
}

#[test]
fn read_only_directory_is_refused() {
    let files = Files { is_writable: false, ..files(Some(IMPORTS)) };
    let refusal = refused(&wanted(Runtime::Containerd), &containerd2(), &files);
    assert!(refusal.reason.starts_with("/etc/containerd is not writable"), "{}", refusal.reason);
    assert_eq!(refusal.platform, Some(Platform::Containerd2));
}

#[test]
fn foreign_drop_in_is_refused() {
    let files = Files { drop_in: Some("# by hand\n".to_owned()), ..files(Some(IMPORTS)) };
    let reason = refused(&wanted(Runtime::Containerd), &containerd2(), &files).reason;
    assert!(reason.starts_with("/etc/containerd/conf.d/50-sandbox-health.toml exists"), "{reason}");
}

#[test]
fn containerd_without_imports_needs_permission_to_edit() {
    let containerd1 = node("containerd://1.7.28", "v1.37.0");
    for (node, config, expected, platform) in [
        (containerd2(), Some("version = 3\n"), "does not import", Platform::Containerd2),
        (containerd2(), None, "does not import", Platform::Containerd2),
        (containerd1, Some("version = 2\n"), "containerd 1 has no usable drop-ins", Platform::Containerd1),
    ] {
        let before = files(config);
        let refusal = refused(&wanted(Runtime::Containerd), &node, &before);
        assert!(refusal.reason.contains(expected), "{}", refusal.reason);
        assert!(
            refusal.to_string().contains("so the node is unchanged. Set pauseInstaller.editConfig=true"),
            "{refusal}"
        );
        assert_eq!(refusal.platform, Some(platform));
        let changes = changes(&editing(), &node, &before).unwrap();
        assert_eq!(changes.first(), Some(&(Target::Original, Some(config.unwrap_or_default().to_owned()))));
        let after = with(&before, changes);
        assert_eq!(super::changes(&editing(), &node, &after).unwrap(), []);
        assert_eq!(after.drop_in.is_some(), platform == Platform::Containerd2);
        assert_eq!(with(&after, after.revert().unwrap()), before);
    }
}

#[test]
fn copy_of_the_original_is_kept_until_the_revert() {
    let node = node("containerd://1.7.28", "v1.37.0");
    let before = files(Some("version = 2\n"));
    let first = with(&before, changes(&editing(), &node, &before).unwrap());
    let next = InstallerOptions { image: "registry.example/pause:0.2.0".parse().unwrap(), ..editing() };
    let second = with(&first, changes(&next, &node, &first).unwrap());
    assert_eq!(second.original, before.config);
    assert_eq!(with(&second, second.revert().unwrap()), before);
    // Another tool replaced the whole file: the copy is that of the new one.
    let replaced = Files { config: Some("version = 2\n[debug]\n".to_owned()), ..first };
    let third = with(&replaced, changes(&editing(), &node, &replaced).unwrap());
    assert_eq!(third.original, replaced.config);
}

#[test]
fn eks_is_refused_where_its_file_would_be_edited() {
    let [old, eks] =
        ["containerd://1.7.29", "containerd://2.1.5"].map(|runtime| node(runtime, "v1.34.2-eks-aaaaaaa"));
    for (node, config) in [(&old, "version = 2\n"), (&eks, "version = 3\n")] {
        let refusal = refused(&editing(), node, &files(Some(config)));
        assert!(refusal.reason.starts_with("nodeadm manages"), "{}", refusal.reason);
        assert_eq!(refusal.platform, Some(Platform::Eks));
    }
    assert!(changes(&editing(), &eks, &files(Some(IMPORTS))).is_ok());
}

#[test]
fn config_that_cannot_be_edited_is_refused() {
    let link = Files { is_config_link: true, ..files(Some("version = 3\n")) };
    for (files, expected) in [
        (link, "is a symbolic link"),
        (files(Some("version = \n")), "cannot be edited: it is not valid TOML"),
        (files(Some("root = \"/r\"\n")), "cannot be edited: it has version 1"),
    ] {
        let reason = refused(&editing(), &containerd2(), &files).reason;
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn other_pause_image_of_k3s_is_refused() {
    let node = node("containerd://2.1.5-k3s1", "v1.34.2+k3s1");
    let other = |text: &str| Files { others: vec![("90-a.yaml".to_owned(), text.to_owned())], ..files(None) };
    for (files, expected) in [
        (
            files(Some("pause-image: a/b:1\n")),
            Some("/etc/rancher/k3s/config.yaml sets pause-image to \"a/b:1\""),
        ),
        (other("pause-image: a/b:1\n"), Some("/etc/rancher/k3s/config.yaml.d/90-a.yaml sets pause-image")),
        (files(Some("a: [\n")), Some("/etc/rancher/k3s/config.yaml is not valid YAML")),
        (files(Some("pause-image: registry.example/pause:0.1.0\n")), None),
        (other("node-label: [a=b]\n"), None),
        (other(""), None),
        (other("# nothing\n"), None),
    ] {
        match expected {
            Some(expected) => {
                let reason = refused(&wanted(Runtime::K3s), &node, &files).reason;
                assert!(reason.starts_with(expected), "{reason}");
            }
            None => assert!(changes(&wanted(Runtime::K3s), &node, &files).is_ok(), "{files:?}"),
        }
    }
}

#[test]
fn runtime_without_a_version_is_not_known() {
    for (version, is_known) in [
        ("containerd://2.3.7", true),
        ("containerd://1.7.24~ds1", true),
        ("cri-o://1.36.0", true),
        ("containerd://Unknown", false),
        ("", false),
    ] {
        assert_eq!(node(version, "v1.37.0").is_runtime_known(), is_known, "{version}");
    }
}
