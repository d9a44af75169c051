//! SandboxHealth objects and Events of pods.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    agent_metrics, create, create_healthy, delete, events_of, leave_zombies, pause_pid, pod, read_errors,
    shell, wait_for_health, wait_until_object_deleted, zombies_of,
};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::json;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 5] = [
    ("agent_process_has_no_privilege", agent_process_has_no_privilege),
    ("pod_of_uid_1000_is_read", pod_of_uid_1000_is_read),
    ("zombies_are_reported_within_30_s", zombies_are_reported_within_30_s),
    ("garbled_status_is_unknown_and_counted", garbled_status_is_unknown_and_counted),
    ("orphaned_object_is_deleted", orphaned_object_is_deleted),
];

fn agent_process_has_no_privilege(cluster: &Cluster) -> Result<()> {
    let mut agents = 0;
    // With hostPID it is in the node's PID namespace; other clusters on this machine have agents of their own.
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", cluster.node.init_pid()))?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        if words.first() != Some(&&b"/sandbox-health"[..]) || words.get(1) != Some(&&b"agent"[..]) {
            continue;
        }
        if fs::read_link(path.join("ns/pid"))? != namespace {
            continue;
        }
        agents += 1;
        let status = fs::read_to_string(path.join("status"))?;
        for line in [
            "Uid:\t64535\t64535\t64535\t64535",
            "Gid:\t64535\t64535\t64535\t64535",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
            // SECCOMP_MODE_FILTER
            "Seccomp:\t2",
        ] {
            ensure!(status.lines().any(|has| has == line), "{line} is not in\n{status}");
        }
        let mounts = fs::read_to_string(path.join("mountinfo"))?;
        let root = mounts.lines().find(|mount| mount.split(' ').nth(4) == Some("/")).context("no root")?;
        ensure!(
            root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro")),
            "{root}"
        );
    }
    let of_cluster = cluster.node.kubectl(["-n", RELEASE_NAMESPACE, "get", "daemonsets", "-o", "name"])?;
    ensure!(agents == 1, "{agents} agents run, of {of_cluster}");
    Ok(())
}

fn pod_of_uid_1000_is_read(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("user", &[]);
    pod["spec"]["securityContext"] = json!({
        "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
    });
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false});
    let pod = create(node, &pod)?;
    let ps = shell(node, &pod, "ps")?;
    let first = ps.lines().nth(1).context("ps shows nothing")?;
    let words: Vec<_> = first.split_whitespace().take(4).collect();
    // `app` is uid 1000 in the image: the kubelet gives the pod's user to the sandbox, too.
    ensure!(words == ["1", "app", "/pause", "zombies=0"], "{ps}");
    let object = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    ensure!(object["status"]["source"] == "PauseStatusFile", "{object}");
    shell(node, &pod, "for i in $(seq 3); do sleep 0.1 & done")?;
    retry::until("ps shows that three were reaped", TIMEOUT, || {
        let ps = shell(node, &pod, "ps")?;
        ensure!(ps.contains("/pause zombies=0 reaped=3 "), "{ps}");
        Ok(())
    })?;
    delete(node, &pod)
}

fn zombies_are_reported_within_30_s(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("unreaping", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let parent = leave_zombies(node, &pod, 12)?;
    let promised = Duration::from_secs(30);
    retry::until("object and Event report 12 zombies", promised, || {
        ensure!(zombies_of(node, &pod)? == 12, "the object has {}", zombies_of(node, &pod)?);
        let messages = events_of(node, &pod, "ZombiesAccumulating")?;
        ensure!(messages.len() == 1 && messages[0].starts_with("12 zombie processes"), "{messages:?}");
        Ok(())
    })?;
    let line = node.kubectl(["get", "sandboxhealth", &pod, "--no-headers"])?;
    let columns: Vec<_> = line.split_whitespace().take(5).collect();
    ensure!(columns == [pod.as_str(), "False", "ZombiesAccumulating", "0", "12"], "{line}");
    shell(node, &pod, &format!("kill {parent}"))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    ensure!(zombies_of(node, &pod)? == 0);
    ensure!(events_of(node, &pod, "ZombiesReaped")?.len() == 1);
    ensure!(events_of(node, &pod, "ZombiesAccumulating")?.len() == 1);
    delete(node, &pod)
}

fn garbled_status_is_unknown_and_counted(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("garbled", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    // Pause's next scan finds the second process and rewrites the whole status. Wait for that, so that it does not undo what follows.
    retry::until("pause has counted both processes", TIMEOUT, || {
        let ps = shell(node, &pod, "ps")?;
        ensure!(ps.contains(" processes=2 "), "{ps}");
        Ok(())
    })?;
    let before = read_errors(node, "StatusChecksumWrong")?;
    garble(pause_pid(node, &pod)?)?;
    let object = wait_for_health(node, &pod, "Unknown", "StatusChecksumWrong")?;
    ensure!(object["status"]["processes"].is_null(), "an unknown number is shown: {object}");
    ensure!(read_errors(node, "StatusChecksumWrong")? > before, "it is not counted");
    let readable = |value: u8| -> Result<bool> {
        let series = format!("pod_sandbox_readable{{namespace=\"default\",pod=\"{pod}\",");
        let metrics = agent_metrics(node)?;
        let line = metrics.lines().find(|line| line.starts_with(&series)).with_context(|| metrics.clone())?;
        Ok(line.ends_with(&format!(" {value}")))
    };
    ensure!(readable(0)?, "it is exposed as readable");
    // Pause rewrites the whole status at the next change.
    shell(node, &pod, "sleep 0.1 &")?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    ensure!(readable(1)?, "it is exposed as unreadable");
    delete(node, &pod)
}

/// With `--cascade=orphan` Kubernetes' garbage collector removes the reference to the owner and leaves the object.
fn orphaned_object_is_deleted(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [pod] = create_healthy(node, ["orphaning"])?;
    node.kubectl(["delete", "pod", &pod, "--cascade=orphan"])?;
    retry::until("the object has no owner", TIMEOUT, || {
        // It may be deleted already.
        let owners = [
            "get",
            "sandboxhealth",
            &pod,
            "--ignore-not-found",
            "-o",
            "jsonpath={.metadata.ownerReferences}",
        ];
        let owners = node.kubectl(owners)?;
        ensure!(owners.is_empty(), "{owners}");
        Ok(())
    })?;
    wait_until_object_deleted(node, &pod)
}

/// Changes a digit of the status in the memory of the process.
fn garble(pause: u32) -> Result<()> {
    let stat = fs::read_to_string(format!("/proc/{pause}/stat"))?;
    // Field 48 of proc_pid_stat(5), arg_start; the name before the closing bracket is field 2.
    let fields = stat.rsplit_once(") ").context("no name in stat")?.1;
    let arguments: u64 = fields.split(' ').nth(45).context("stat is short")?.parse()?;
    let command = fs::read(format!("/proc/{pause}/cmdline"))?;
    let reaped = command.windows(7).position(|word| word == b"reaped=").context("no status")?;
    let memory = File::options().write(true).open(format!("/proc/{pause}/mem"))?;
    memory.write_all_at(b"9", arguments + u64::try_from(reaped)? + 7)?;
    Ok(())
}
