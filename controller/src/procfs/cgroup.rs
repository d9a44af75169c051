//! Identity of a process by its cgroup: the pod and the sandbox (or container), by the ids that the kubelet and the container runtime
//! gave them. Names are not used, because they are reused.

/// The pod and the container of a process, from `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupIdentity {
    /// UID of the pod, or for a static pod the hash that its mirror pod has in the annotation `kubernetes.io/config.hash`. Empty for the
    /// agent's own pod, where a private cgroup namespace hides it.
    pub pod: String,
    /// Id of the container or sandbox: 64 hexadecimal digits.
    pub container: String,
}

/// Prefixes that runtimes give the cgroup of a container. The monitor of a CRI-O container (`crio-conmon-<id>`) is in none.
const RUNTIMES: [&str; 3] = ["cri-containerd", "crio", "docker"];

/// Parses the identity in the layouts of the cgroupfs and systemd drivers, cgroup v1 and v2, also seen from a private cgroup namespace.
/// The outermost pod and container count: a container may have cgroups below its own, even of pods if it is a Kubernetes node.
pub fn identify(cgroup: &str) -> Option<CgroupIdentity> {
    // `hierarchy:controllers:path` (cgroups(7)): v2 has one line, v1 many, all with the same pod.
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(identify_path)
}

fn identify_path(path: &str) -> Option<CgroupIdentity> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let sibling = path.strip_prefix("/../").and_then(container_id);
    if let Some(container) = sibling {
        return Some(CgroupIdentity { container, pod: String::new() });
    }
    let components = path.split('/');
    components.clone().zip(components.skip(1).chain([""])).find_map(|(component, next)| {
        // One component for both (`<slice>:cri-containerd:<id>`): the kubelet has the systemd driver, the runtime that of cgroupfs.
        let (pod, container) = component.split_once(':').unwrap_or((component, next));
        Some(CgroupIdentity { container: container_id(container)?, pod: pod_id(pod)? })
    })
}

/// `<id>`, `<runtime>-<id>`, `<runtime>-<id>.scope` or `<runtime>:<id>`.
fn container_id(component: &str) -> Option<String> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let prefixed = RUNTIMES.iter().find_map(|runtime| name.strip_prefix(runtime)?.strip_prefix(['-', ':']));
    let id = prefixed.unwrap_or(name);
    (id.len() == 64 && id.bytes().all(is_hexadecimal)).then(|| id.to_owned())
}

/// `pod<uid>`, or `[<prefix>-]kubepods[-<class>]-pod<uid>.slice` with `_` for each `-` of the UID. The prefix is the kubelet's
/// `cgroupRoot` (`kubelet` in kind).
fn pod_id(component: &str) -> Option<String> {
    let id = match component.strip_suffix(".slice") {
        Some(slice) => {
            let (above, id) = slice.rsplit_once("-pod")?;
            let is_of_kubelet = above.split('-').any(|part| part == "kubepods");
            is_of_kubelet.then(|| id.replace('_', "-"))?
        }
        None => component.strip_prefix("pod")?.to_owned(),
    };
    let known_length = id.len() == 32 || id.len() == 36;
    (known_length && id.bytes().all(|byte| is_hexadecimal(byte) || byte == b'-')).then_some(id)
}

fn is_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
    const HASH: &str = "3f1d0c9a8b7e6d5c4b3a291807f6e5d4";
    const ID: &str = "9c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a59c1185a5";
    const OTHER_ID: &str = "1111111122222222333333334444444455555555666666667777777788888888";

    /// Layouts, the pod that each identifies, and `/proc/<pid>/cgroup`: `{U}` is the UID, `{S}` the UID as systemd has it, `{H}` the hash of
    /// a static pod, `{I}` the container's id and `{D}` another one.
    #[rustfmt::skip]
    const LAYOUTS: [(&str, Option<&str>, &str); 49] = [
        ("containerd cgroupfs v1", Some(UID), "4:memory:/kubepods/burstable/pod{U}/{I}"),
        ("containerd cgroupfs v2 guaranteed", Some(UID), "0::/kubepods/pod{U}/{I}"),
        ("containerd systemd v2", Some(UID), "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{I}.scope"),
        ("containerd systemd v1", Some(UID), "1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{S}.slice/cri-containerd-{I}.scope"),
        ("kubelet systemd + containerd cgroupfs, v2", Some(UID), "0::/system.slice/containerd.service/kubepods-burstable-pod{S}.slice:cri-containerd:{I}"),
        ("kubelet systemd + containerd cgroupfs, v1", Some(UID), "4:memory:/system.slice/containerd.service/kubepods-burstable-pod{S}.slice:cri-containerd:{I}"),
        ("the same at the root", Some(UID), "0::/kubepods-besteffort-pod{S}.slice:cri-containerd:{I}"),
        ("the same in kind", Some(UID), "0::/docker/{D}/system.slice/containerd.service/kubelet-kubepods-besteffort-pod{S}.slice:cri-containerd:{I}"),
        ("the same from a private cgroup namespace", Some(UID), "0::/../kubepods-besteffort-pod{S}.slice:cri-containerd:{I}"),
        ("the same, static pod", Some(HASH), "0::/system.slice/containerd.service/kubepods-burstable-pod{H}.slice:cri-containerd:{I}"),
        ("kubelet systemd + CRI-O runtime cgroupfs", Some(UID), "0::/system.slice/crio.service/kubepods-burstable-pod{S}.slice:crio:{I}"),
        ("CRI-O systemd", Some(UID), "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/crio-{I}.scope"),
        ("CRI-O systemd + crun v2", Some(UID), "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/crio-{I}.scope/container"),
        ("CRI-O conmon systemd", None, "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/crio-conmon-{I}.scope"),
        ("CRI-O cgroupfs v2", Some(UID), "0::/kubepods/burstable/pod{U}/crio-{I}"),
        ("CRI-O cgroupfs v1", Some(UID), "4:memory:/kubepods/burstable/pod{U}/crio-{I}"),
        ("CRI-O cgroupfs static pod", Some(HASH), "0::/kubepods/burstable/pod{H}/crio-{I}"),
        ("CRI-O conmon cgroupfs", None, "0::/kubepods/burstable/pod{U}/crio-conmon-{I}"),
        ("CRI-O conmon in the pod's cgroup", None, "0::/kubepods/burstable/pod{U}"),
        ("CRI-O conmon in system.slice", None, "0::/system.slice/crio-conmon-{I}.scope"),
        ("minikube CRI-O cgroupfs in docker", Some(UID), "0::/docker/{D}/kubepods/besteffort/pod{U}/crio-{I}"),
        ("k3s server cgroupfs", Some(UID), "0::/kubepods/besteffort/pod{U}/{I}"),
        ("k3s systemd", Some(UID), "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{S}.slice/cri-containerd-{I}.scope"),
        ("k3s rootless", Some(UID), "0::/user.slice/user-1000.slice/user@1000.service/app.slice/k3s-rootless.service/kubepods/besteffort/pod{U}/{I}"),
        ("k3d", Some(UID), "0::/docker/{D}/kubepods/burstable/pod{U}/{I}"),
        ("kind systemd, docker cgroupfs", Some(UID), "0::/docker/{D}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{S}.slice/cri-containerd-{I}.scope"),
        ("kind systemd, docker systemd", Some(UID), "0::/system.slice/docker-{D}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{S}.slice/cri-containerd-{I}.scope"),
        ("kind cgroupfs (old)", Some(UID), "4:memory:/docker/{D}/kubelet/kubepods/besteffort/pod{U}/{I}"),
        ("kind cgroupfs in docker in docker", Some(UID), "4:memory:/docker/{D}/docker/{D}/kubelet/kubepods/besteffort/pod{U}/{I}"),
        ("kind in podman", Some(UID), "0::/machine.slice/libpod-{D}.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{S}.slice/cri-containerd-{I}.scope"),
        ("kind in a pod of another cluster: the outer counts", Some(UID), "0::/kubepods/pod{U}/{I}/docker/{D}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podffffffff_5b0e_4c64_a0d1_8a3f6f0c9b11.slice/cri-containerd-{D}.scope"),
        ("RKE2 / EKS / Bottlerocket systemd", Some(UID), "0::/kubepods.slice/kubepods-pod{S}.slice/cri-containerd-{I}.scope"),
        ("Talos cgroupfs v2", Some(UID), "0::/kubepods/burstable/pod{U}/{I}"),
        ("GKE COS v1", Some(UID), "8:memory:/kubepods/burstable/pod{U}/{I}"),
        ("GKE with other controllers elsewhere", Some(UID), "9:misc:/\n8:memory:/kubepods/burstable/pod{U}/{I}"),
        ("microk8s", Some(UID), "0::/kubepods/besteffort/pod{U}/{I}"),
        ("LXD node", Some(UID), "0::/lxc.payload.node1/kubepods/besteffort/pod{U}/{I}"),
        ("usernetes gen2", Some(UID), "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{D}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{S}.slice/cri-containerd-{I}.scope"),
        ("cri-dockerd cgroupfs", Some(UID), "0::/kubepods/besteffort/pod{U}/{I}"),
        ("cri-dockerd systemd", Some(UID), "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{S}.slice/docker-{I}.scope"),
        ("private cgroup namespace, sibling pod cgroupfs", Some(UID), "0::/../../pod{U}/{I}"),
        ("private cgroup namespace, other QoS systemd", Some(UID), "0::/../../../kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{I}.scope"),
        ("private cgroup namespace, the agent's own pod", Some(""), "0::/../{I}"),
        ("private cgroup namespace, the agent's own pod, systemd", Some(""), "0::/../cri-containerd-{I}.scope"),
        ("deleted cgroup (zombie)", Some(UID), "0::/kubepods/burstable/pod{U}/{I} (deleted)"),
        ("deleted cgroup (zombie), systemd", Some(UID), "0::/kubepods.slice/kubepods-pod{S}.slice/cri-containerd-{I}.scope (deleted)"),
        ("cgroupsPerQOS false, containerd", None, "0::/k8s.io/{I}"),
        ("cgroupsPerQOS false, CRI-O", None, "0::/crio/crio-{I}"),
        ("podman", None, "0::/machine.slice/libpod-{I}.scope"),
    ];

    fn filled(line: &str) -> String {
        let line = line.replace("{U}", UID).replace("{S}", &UID.replace('-', "_"));
        line.replace("{H}", HASH).replace("{I}", ID).replace("{D}", OTHER_ID)
    }

    #[test]
    fn every_known_layout_is_identified() {
        for (layout, pod, line) in LAYOUTS {
            let expected = pod.map(|pod| CgroupIdentity { pod: pod.to_owned(), container: ID.to_owned() });
            assert_eq!(identify(&filled(line)), expected, "{layout}");
        }
    }

    #[test]
    fn outermost_pod_and_container_are_identified() {
        for line in [
            "0::/own/kubepods/pod{U}/{I}",
            "0::/kubepods/pod{U}/{I}/init",
            "0::/kubepods/pod{U}/{I}/kubepods/pod{H}/{D}",
            "2:rdma:/\n1:cpu:/kubepods/pod{U}/{I}\n",
        ] {
            let expected = CgroupIdentity { pod: UID.to_owned(), container: ID.to_owned() };
            assert_eq!(identify(&filled(line)), Some(expected), "{line}");
        }
    }

    #[test]
    fn process_outside_of_pods_has_no_identity() {
        for line in [
            "",
            "0::/",
            "0::/..",
            "0::/system.slice/sshd.service",
            "0::/docker/{I}",
            "0::/../../docker/{I}",
            "0::/kubepods/pod{U}/crio-conmon-{I}",
            "0::/system.slice/kubepods-pod{S}.slice:crio-conmon:{I}",
            "0::/kubepods/pod{U}/9c1185a5",
            "0::/kubepods/pod../{I}",
            "0::/user.slice/mine-pod{S}.slice/cri-containerd-{I}.scope",
            "0::/kubepods/pod{U}/between/{I}",
            "no cgroup line",
        ] {
            assert_eq!(identify(&filled(line)), None, "{line}");
        }
    }
}
