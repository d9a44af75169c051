//! Identity of a process by its cgroup: the pod and the sandbox (or container), by the ids that the kubelet and the container runtime
//! gave them. Names are not used, because they are reused.

/// The pod and the container of a process, from `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupIdentity {
    /// UID of the pod, or for a static pod the hash that its mirror pod has in the annotation `kubernetes.io/config.hash`.
    pub pod: String,
    /// Id of the container or sandbox: 64 hexadecimal digits.
    pub container: String,
}

/// Parses the identity in the layouts of the cgroupfs and systemd drivers, cgroup v1 and v2, also seen from a private cgroup namespace.
/// The outermost pod and container count: a container may have cgroups below its own, even of pods if it is a Kubernetes node.
pub fn identify(cgroup: &str) -> Option<CgroupIdentity> {
    // `hierarchy:controllers:path` (cgroups(7)): v2 has one line, v1 many, all with the same pod.
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(identify_path)
}

fn identify_path(path: &str) -> Option<CgroupIdentity> {
    let components = path.split('/');
    let mut pairs = components.clone().zip(components.skip(1));
    pairs.find_map(|(pod, container)| {
        Some(CgroupIdentity { container: container_id(container)?, pod: pod_id(pod)? })
    })
}

/// `<id>`, `cri-containerd-<id>.scope` or `crio-<id>.scope`.
fn container_id(component: &str) -> Option<String> {
    let id = match component.strip_suffix(".scope") {
        Some(scope) => scope.strip_prefix("cri-containerd-").or_else(|| scope.strip_prefix("crio-"))?,
        None => component,
    };
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

    #[test]
    fn ids_are_parsed_in_every_layout() {
        let slice_uid = UID.replace('-', "_");
        let table = [
            (
                "cgroupfs, v1",
                format!(
                    "11:memory:/kubepods/besteffort/pod{UID}/{ID}\n3:cpu:/kubepods/besteffort/pod{UID}/{ID}"
                ),
                UID,
            ),
            ("cgroupfs, v1, own root", format!("4:pids:/own/kubepods/pod{UID}/{ID}"), UID),
            ("cgroupfs, v2", format!("0::/kubepods/burstable/pod{UID}/{ID}\n"), UID),
            (
                "systemd, v1, containerd",
                format!(
                    "1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice_uid}.slice/cri-containerd-{ID}.scope"
                ),
                UID,
            ),
            (
                "systemd, v2, containerd, guaranteed",
                format!("0::/kubepods.slice/kubepods-pod{slice_uid}.slice/cri-containerd-{ID}.scope"),
                UID,
            ),
            (
                "systemd, v2, CRI-O",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice_uid}.slice/crio-{ID}.scope"
                ),
                UID,
            ),
            ("cgroupfs, CRI-O, bare id", format!("0::/kubepods/pod{UID}/crio-{ID}.scope"), UID),
            ("private cgroup namespace, v2", format!("0::/../../pod{UID}/{ID}"), UID),
            (
                "private cgroup namespace, systemd",
                format!("0::/../../kubepods-besteffort-pod{slice_uid}.slice/cri-containerd-{ID}.scope"),
                UID,
            ),
            (
                "systemd, below a root of its own",
                format!(
                    "0::/docker/{HASH}{HASH}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice_uid}.slice/cri-containerd-{ID}.scope"
                ),
                UID,
            ),
            ("a cgroup of the container's own", format!("0::/kubepods/pod{UID}/{ID}/init"), UID),
            (
                "a pod in a container",
                format!("0::/kubepods/pod{UID}/{ID}/kubepods/pod{HASH}/{HASH}{HASH}"),
                UID,
            ),
            ("static pod", format!("0::/kubepods/burstable/pod{HASH}/{ID}"), HASH),
            (
                "static pod, systemd",
                format!("0::/kubepods.slice/kubepods-burstable-pod{HASH}.slice/crio-{ID}.scope"),
                HASH,
            ),
            ("v1 with a foreign line first", format!("2:rdma:/\n1:cpu:/kubepods/pod{UID}/{ID}"), UID),
        ];
        for (layout, cgroup, pod) in table {
            let expected = CgroupIdentity { pod: pod.to_owned(), container: ID.to_owned() };
            assert_eq!(identify(&cgroup), Some(expected), "{layout}");
        }
    }

    #[test]
    fn process_outside_of_pods_has_no_identity() {
        for cgroup in [
            String::new(),
            "0::/".to_owned(),
            "0::/system.slice/sshd.service".to_owned(),
            format!("0::/kubepods/pod{UID}"),
            format!("0::/docker/{ID}"),
            format!("0::/kubepods/pod{UID}/crio-conmon-{ID}.scope"),
            format!("0::/kubepods/pod{UID}/{}", &ID[..63]),
            format!("0::/kubepods/pod../{ID}"),
            format!("0::/user.slice/mine-pod{}.slice/cri-containerd-{ID}.scope", UID.replace('-', "_")),
            format!("0::/kubepods/pod{UID}/between/{ID}"),
            "no cgroup line".to_owned(),
        ] {
            assert_eq!(identify(&cgroup), None, "{cgroup}");
        }
    }
}
