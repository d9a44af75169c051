//! What pause promises, in real pods: at the limits that a pod can have, against signals from inside, with the node's PIDs,
//! and beside a pause of another version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::build::oci::Platform;
use e2e::build::pause_image::Recipe;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{health_of, pause_in_cgroup_of, pause_of, pod, sandbox_health, shell, uid_of};
use pause_status::Status;
use serde_json::json;

use super::Cluster;
use e2e::kube::{create, delete, kill_pause, never_waits, told_of};

/// Below the node's limit of processes for a pod (the kubelet's podPidsLimit), but not by much.
const MANY_ZOMBIES: u32 = 1000;

/// Calls `look` with the status of a pause as anybody on the node can read it.
fn read<T>(pause: u32, look: impl Fn(Status<'_>) -> T) -> Result<T> {
    retry::until("the status is whole", TIMEOUT, || {
        let cmdline = fs::read(format!("/proc/{pause}/cmdline"))?;
        Ok(look(Status::from_cmdline(&cmdline)?))
    })
}

/// The pause of a pod, by its cgroup: not every pod has a row.
fn pause_of_any(node: &Node, pod: &str) -> Result<u32> {
    pause_in_cgroup_of(&uid_of(node, pod)?)
}

pub(super) fn a_pod_at_its_pids_limit(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("crowded", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    let pause = pause_of(node, &pod)?;
    never_waits(node, &pod, MANY_ZOMBIES)?;
    // The row tells at once that there are too many, and of more as time allows.
    health_of(node, &pod, "False", "ZombiesAccumulating")?;
    retry::until("pause has counted the zombies", TIMEOUT, || {
        let zombies = read(pause, |status| status.zombies)?;
        ensure!(zombies == MANY_ZOMBIES, "{zombies} zombies");
        Ok(())
    })?;
    // The rest of the room goes to the living; whoever finds no more of it ends, and what it started stays.
    // Who enters from outside is let in, but can start nothing.
    retry::until("kubectl exec fails", TIMEOUT, || {
        let filled = shell(node, &pod, "while sleep 100000 & do :; done >/dev/null 2>&1");
        let entered = shell(node, &pod, "true | true");
        ensure!(filled.is_err() && entered.is_err(), "there was room for {entered:?}");
        Ok(())
    })?;
    let zombies = read(pause, |status| status.zombies)?;
    ensure!(zombies == MANY_ZOMBIES, "the status shows {zombies} zombies");
    health_of(node, &pod, "False", "ZombiesAccumulating")?;
    // It counts on: at its next look it has seen the living, too.
    retry::until("pause has counted all", TIMEOUT, || {
        let processes = read(pause, |status| status.processes)?;
        ensure!(processes > MANY_ZOMBIES + 10, "{processes} processes");
        Ok(())
    })?;
    delete(node, &pod)
}

pub(super) fn a_pod_at_its_memory_limit(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("full", &[]);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi", "cpu": "500m"}});
    let pod = create(node, &pod)?;
    health_of(node, &pod, "True", "AllWell")?;
    let pause = pause_of(node, &pod)?;
    let before = read(pause, |status| status.updated)?;
    // What is in a tmpfs stays in memory when its writer has been killed. The container may be killed, too.
    let killed = shell(node, &pod, "dd if=/dev/zero of=/dev/shm/fill bs=1M count=60");
    // 137 is SIGKILL, told by the shell or by the runtime.
    let killed = killed.err().map(|error| format!("{error:#}")).context("there was room for all of it")?;
    ensure!(killed.contains("137"), "{killed}");
    retry::until("pause tells of what was left alive", TIMEOUT, || {
        let _ = shell(node, &pod, "( sleep 0.1 & )");
        let updated = read(pause, |status| status.updated)?;
        ensure!(updated > before, "it has not written since");
        Ok(())
    })?;
    ensure!(pause_of(node, &pod)? == pause, "another pause runs");
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["restarts"] == 0, "{status}");
    delete(node, &pod)
}

pub(super) fn no_signal_from_the_pod_kills_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("rebellious", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    let pause = pause_of(node, &pod)?;
    // Of another uid than pause, so that it takes root's right to signal it.
    for signal in ["KILL", "STOP", "HUP", "SEGV", "40"] {
        shell(node, &pod, &format!("kill -{signal} 1"))?;
    }
    shell(node, &pod, "for i in 1 2 3; do ( sleep 0.1 & ); done")?;
    retry::until("pause goes on reaping", TIMEOUT, || {
        let reaped = read(pause, |status| status.reaped)?;
        ensure!(reaped == 3, "{reaped} reaped");
        Ok(())
    })?;
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["restarts"] == 0, "{status}");
    delete(node, &pod)
}

pub(super) fn with_the_node_s_pids_pause_counts_nothing(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("host-pid", &[]);
    let spec = pod["spec"].as_object_mut().context("no spec")?;
    spec.remove("shareProcessNamespace");
    spec.insert("hostPID".into(), json!(true));
    let pod = create(node, &pod)?;
    let pause = pause_of_any(node, &pod)?;
    let (init, counted, every) = read(pause, |status| (status.init, status.counted(), status.every))?;
    ensure!(!init && !counted && every == 0, "init {init}, counted {counted}, every {every} ms");
    // Seen from the container, its PID 1 is the node's.
    let first = shell(node, &pod, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(!first.contains("zombies="), "PID 1 is {first}");
    ensure!(sandbox_health(node, &pod).is_err(), "it has a row");
    delete(node, &pod)
}

pub(super) fn without_shared_pids_a_container_is_its_own_pid_1(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("private", &[]);
    pod["spec"].as_object_mut().context("no spec")?.remove("shareProcessNamespace");
    let pod = create(node, &pod)?;
    let first = shell(node, &pod, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(first.starts_with("sleep "), "PID 1 is {first}");
    let pause = pause_of_any(node, &pod)?;
    // Alone in its own namespace.
    let (init, processes) = read(pause, |status| (status.init, status.processes))?;
    ensure!(init && processes == 1, "init {init}, {processes} processes");
    delete(node, &pod)
}

const NEXT_VERSION: &str = "0.1.1-next.1+test";

/// A node whose sandbox image was changed: new sandboxes get the new pause, and old ones keep theirs.
pub(super) fn pauses_of_two_versions(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let older = create(node, &pod("older", &[]))?;
    let folder = tempfile::tempdir()?;
    let (archive, name) = next_version(folder.path())?;
    node.use_sandbox_archive(&archive, &name)?;
    let outcome = side_by_side(node, &older);
    node.use_sandbox_image(Image::Pause)?;
    outcome?;
    delete(node, &older)
}

/// The image of a pause that is as ours is, but for its version.
fn next_version(folder: &Path) -> Result<(PathBuf, String)> {
    let project = folder.join("project");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cloned = Command::new("git").args(["clone", "--quiet"]).arg(here).arg(&project).output()?;
    ensure!(cloned.status.success(), "git clone: {}", String::from_utf8_lossy(&cloned.stderr));
    let manifest = fs::read_to_string(project.join("Cargo.toml"))?;
    let version = concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"");
    ensure!(manifest.matches(version).count() == 1, "the workspace's version is not in its manifest");
    fs::write(
        project.join("Cargo.toml"),
        manifest.replace(version, &format!("version = \"{NEXT_VERSION}\"")),
    )?;
    let name = "localhost/sandbox-health/pause:next".to_owned();
    let recipe = Recipe {
        name: name.clone(),
        environment: vec![("CARGO_TARGET_DIR", project.join("target").into())],
        project,
        ..Recipe::of_this_project(&[Platform::host().context("no pause for this architecture")?])
    };
    let archive = folder.join("pause.tar");
    fs::write(&archive, &recipe.build()?.bytes)?;
    Ok((archive, name))
}

fn side_by_side(node: &Node, older: &str) -> Result<()> {
    let newer = create(node, &pod("newer", &[]))?;
    let shows = |pod: &str, version: &str, reaped: u64| {
        retry::until(&format!("{pod} is read as of version {version}"), TIMEOUT, || {
            let object = sandbox_health(node, pod)?;
            let shown = &object["status"]["sandbox"]["pauseVersion"];
            ensure!(shown == version, "its pause is {shown}");
            let counted = read(pause_of(node, pod)?, |status| (status.version == version, status.reaped))?;
            ensure!(counted == (true, reaped), "{counted:?}");
            Ok(())
        })
    };
    let orphan = "( sleep 0.1 & )";
    for (pod, version) in [(older, env!("CARGO_PKG_VERSION")), (&newer, NEXT_VERSION)] {
        shell(node, pod, orphan)?;
        shows(pod, version, 1)?;
    }
    // The next sandbox of an old pod is a new one.
    kill_pause(node, older)?;
    told_of(node, older, 1)?;
    shows(older, NEXT_VERSION, 0)?;
    delete(node, &newer)
}
