//! The pause image in real pods: at the limits of a pod, with signals from inside, in the node's PID namespace, and beside a pause of
//! another version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::build::Image;
use e2e::build::oci::Platform;
use e2e::build::pause_image::Recipe;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, delete, has_sandbox_health, kill_pause, leave_zombies, pause_pid, pause_pid_in_cgroup, pod,
    sandbox_health, shell, uid_of, wait_for_health, wait_for_restarts,
};
use pause_status::{CountError, Status};
use serde_json::json;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 6] = [
    ("pod_at_its_pids_limit_is_still_read", pod_at_its_pids_limit_is_still_read),
    ("pod_at_its_memory_limit_keeps_its_pause", pod_at_its_memory_limit_keeps_its_pause),
    ("signals_from_the_pod_do_not_kill_pause", signals_from_the_pod_do_not_kill_pause),
    ("host_pid_pod_pause_counts_nothing", host_pid_pod_pause_counts_nothing),
    ("unshared_container_is_its_own_pid_1", unshared_container_is_its_own_pid_1),
    ("two_pause_versions_run_side_by_side", two_pause_versions_run_side_by_side),
];

/// Below the node's limit of processes for a pod (the kubelet's podPidsLimit), but not by much.
const MANY_ZOMBIES: u32 = 1000;

/// Calls `act` with the status of a pause, read as any process of the node can read it.
fn read<T>(pause: u32, act: impl Fn(Status<'_>) -> T) -> Result<T> {
    retry::until("the status is complete", TIMEOUT, || {
        let cmdline = fs::read(format!("/proc/{pause}/cmdline"))?;
        Ok(act(Status::from_cmdline(&cmdline)?))
    })
}

/// The pause of a pod, by its cgroup: not every pod has an object.
fn pause_of_any(node: &Node, pod: &str) -> Result<u32> {
    pause_pid_in_cgroup(&uid_of(node, pod)?)
}

fn pod_at_its_pids_limit_is_still_read(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("crowded", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let pause = pause_pid(node, &pod)?;
    leave_zombies(node, &pod, MANY_ZOMBIES)?;
    // The object reports at once that the threshold is passed, and higher numbers later.
    wait_for_health(node, &pod, "False", "ZombiesAccumulating")?;
    retry::until("pause has counted the zombies", TIMEOUT, || {
        let zombies = read(pause, |status| status.zombies)?;
        ensure!(zombies == MANY_ZOMBIES, "{zombies} zombies");
        Ok(())
    })?;
    // Running processes take the remaining PIDs; a shell that gets no more ends, and its children stay. `kubectl exec` can enter, but
    // start nothing.
    retry::until("kubectl exec fails", TIMEOUT, || {
        let filled = shell(node, &pod, "while sleep 100000 & do :; done >/dev/null 2>&1");
        let entered = shell(node, &pod, "true | true");
        ensure!(filled.is_err() && entered.is_err(), "there were PIDs for {entered:?}");
        Ok(())
    })?;
    let zombies = read(pause, |status| status.zombies)?;
    ensure!(zombies == MANY_ZOMBIES, "the status shows {zombies} zombies");
    wait_for_health(node, &pod, "False", "ZombiesAccumulating")?;
    // It still counts: its next scan includes the running processes.
    retry::until("pause has counted all", TIMEOUT, || {
        let processes = read(pause, |status| status.processes)?;
        ensure!(processes > MANY_ZOMBIES + 10, "{processes} processes");
        Ok(())
    })?;
    delete(node, &pod)
}

fn pod_at_its_memory_limit_keeps_its_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("full", &[]);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi", "cpu": "500m"}});
    let pod = create(node, &pod)?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let pause = pause_pid(node, &pod)?;
    let before = read(pause, |status| status.reaped)?;
    // A tmpfs keeps its memory when its writer has been killed. The container may be killed, too.
    let killed = shell(node, &pod, "dd if=/dev/zero of=/dev/shm/fill bs=1M count=60");
    // 137 is SIGKILL, reported by the shell or by the runtime.
    let killed = killed.err().map(|error| format!("{error:#}")).context("there was memory for all of it")?;
    ensure!(killed.contains("137"), "{killed}");
    retry::until("pause updates its status", TIMEOUT, || {
        let _ = shell(node, &pod, "( sleep 0.1 & )");
        let reaped = read(pause, |status| status.reaped)?;
        ensure!(reaped > before, "it has not been updated since");
        Ok(())
    })?;
    ensure!(pause_pid(node, &pod)? == pause, "another pause runs");
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["restarts"] == 0, "{status}");
    delete(node, &pod)
}

fn signals_from_the_pod_do_not_kill_pause(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("rebellious", &[]))?;
    wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let pause = pause_pid(node, &pod)?;
    // The shell has another UID than pause, so that it needs root's permission to signal it.
    for signal in ["KILL", "STOP", "HUP", "SEGV", "40"] {
        shell(node, &pod, &format!("kill -{signal} 1"))?;
    }
    shell(node, &pod, "for i in 1 2 3; do ( sleep 0.1 & ); done")?;
    retry::until("pause continues to reap", TIMEOUT, || {
        let reaped = read(pause, |status| status.reaped)?;
        ensure!(reaped == 3, "{reaped} reaped");
        Ok(())
    })?;
    let status = &sandbox_health(node, &pod)?["status"];
    ensure!(status["restarts"] == 0, "{status}");
    delete(node, &pod)
}

fn host_pid_pod_pause_counts_nothing(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("host-pid", &[]);
    let spec = pod["spec"].as_object_mut().context("no spec")?;
    spec.remove("shareProcessNamespace");
    spec.insert("hostPID".into(), json!(true));
    let pod = create(node, &pod)?;
    let pause = pause_of_any(node, &pod)?;
    let error = read(pause, |status| status.error)?;
    ensure!(error == Some(CountError::NotInit), "{error:?}");
    // In the container, PID 1 is the node's.
    let first = shell(node, &pod, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(!first.contains("zombies="), "PID 1 is {first}");
    ensure!(!has_sandbox_health(node, &pod)?, "it has an object");
    delete(node, &pod)
}

fn unshared_container_is_its_own_pid_1(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pod = pod("private", &[]);
    pod["spec"].as_object_mut().context("no spec")?.remove("shareProcessNamespace");
    let pod = create(node, &pod)?;
    let first = shell(node, &pod, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(first.starts_with("sleep "), "PID 1 is {first}");
    let pause = pause_of_any(node, &pod)?;
    // Alone in its own namespace.
    let (error, processes) = read(pause, |status| (status.error, status.processes))?;
    ensure!(error.is_none() && processes == 1, "{error:?}, {processes} processes");
    delete(node, &pod)
}

const NEXT_VERSION: &str = "0.1.1-next.1+test";

/// After a change of the node's sandbox image new sandboxes run the new pause, and old ones keep theirs.
fn two_pause_versions_run_side_by_side(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let older = create(node, &pod("older", &[]))?;
    let directory = tempfile::tempdir()?;
    let (archive, name) = next_version(directory.path())?;
    node.use_sandbox_archive(&archive, &name)?;
    let outcome = side_by_side(node, &older);
    node.use_sandbox_image(Image::Pause)?;
    outcome?;
    delete(node, &older)
}

/// Our pause image with another version. Its dependencies are compiled once per target directory.
fn next_version(directory: &Path) -> Result<(PathBuf, String)> {
    let project = directory.join("project");
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
        environment: vec![(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("next-pause").into(),
        )],
        project,
        ..Recipe::of_this_project(&[Platform::host().context("no pause for this architecture")?])
    };
    let archive = directory.join("pause.tar");
    fs::write(&archive, &recipe.build()?.bytes)?;
    Ok((archive, name))
}

fn side_by_side(node: &Node, older: &str) -> Result<()> {
    let newer = create(node, &pod("newer", &[]))?;
    let shows = |pod: &str, version: &str, reaped: u64| {
        retry::until(&format!("{pod} is reported with version {version}"), TIMEOUT, || {
            let object = sandbox_health(node, pod)?;
            let shown = &object["status"]["sandbox"]["pauseVersion"];
            ensure!(shown == version, "its pause is {shown}");
            let counted = read(pause_pid(node, pod)?, |status| (status.version == version, status.reaped))?;
            ensure!(counted == (true, reaped), "{counted:?}");
            Ok(())
        })
    };
    let orphan = "( sleep 0.1 & )";
    for (pod, version) in [(older, env!("CARGO_PKG_VERSION")), (&newer, NEXT_VERSION)] {
        shell(node, pod, orphan)?;
        shows(pod, version, 1)?;
    }
    // The next sandbox of the old pod runs the new pause.
    kill_pause(node, older)?;
    wait_for_restarts(node, older, 1)?;
    shows(older, NEXT_VERSION, 0)?;
    delete(node, &newer)
}
