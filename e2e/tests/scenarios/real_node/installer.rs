//! The pause installer on a node with systemd: a labelled node is switched and proven; one that fails, loses its label, or whose release is
//! uninstalled is restored to the byte; whatever kills the installer, it continues.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::build::oci::Platform;
use e2e::build::pause_image::Recipe;
use e2e::host::command::output;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    create, delete, delete_and_wait, events, in_release, install_chart, sandbox_health, upgrade_chart,
    wait_for_controller_metric, wait_for_health,
};
use e2e::names::{OTHER_PAUSE, RELEASE, RELEASE_NAMESPACE};
use e2e::vm::Runtime;

use super::RealNode;
use super::pods::{on_debian, restarts_of, steady_pods};

const LABEL: &str = "sandboxhealth.dev/pause";
const LEASE: &str = "sandbox-health-pause-installer-0";
const SWITCHED: &str = "pauseInstaller.enabled=true,pauseInstaller.restart=systemd,pauseInstaller.proofTimeout=2m,\
                        pause.image.registry=localhost/sandbox-health";
const INSTALLER: &str = "sandbox-health-pause-installer";
/// How many nodes the DaemonSet selects, once its controller has observed it.
const SCHEDULED: &str = "jsonpath=generation {.status.observedGeneration}: {.status.desiredNumberScheduled}";
const KILL: &str = "pkill -9 -f 'sandbox-health install-pause'";
const DROP_IN_OF_CONTAINERD_2: &str = "/etc/containerd/conf.d/50-sandbox-health.toml";

/// The values with which the installer switches a node of this runtime: containerd 1.7 reads no drop-in that another file does not name.
fn switched(runtime: Runtime) -> String {
    match runtime {
        Runtime::Containerd1 => format!("{SWITCHED},pauseInstaller.editConfig=true"),
        _ => SWITCHED.to_owned(),
    }
}

/// A command of the node that succeeds if the runtime's files have our image.
fn has_setting(runtime: Runtime) -> String {
    match runtime {
        Runtime::Containerd1 => "grep -q localhost/sandbox-health/ /etc/containerd/config.toml".to_owned(),
        _ => format!("test -e {DROP_IN_OF_CONTAINERD_2}"),
    }
}

pub(super) fn containerd_2(real: &RealNode) -> Result<()> {
    from_third_party_pause(real, Runtime::Containerd2, || {
        let before = files(real)?;
        let restarts = steady_pods(real)?;
        upgrade(real, SWITCHED)?;
        retry::until("the installer's DaemonSet selects no node", TIMEOUT, || {
            let state = in_release(real.node(), &["get", "daemonset", INSTALLER, "-o", SCHEDULED])?;
            ensure!(state == "generation 1: 0", "{state}");
            Ok(())
        })?;
        ensure!(files(real)? == before, "a node without the label has changed");
        label(real, "managed")?;
        wait_until_switched(real)?;
        ensure!(new_pod_has_our_pause(real)?, "a new pod has another pause");
        for (pod, restarts) in restarts {
            let now = restarts_of(real, pod)?;
            ensure!(now == restarts, "{pod} has {now} restarts and had {restarts}");
        }
        label_removed_restores(real, &before)
    })
}

pub(super) fn containerd_1_7(real: &RealNode) -> Result<()> {
    ensure!(real.runtime() == Runtime::Containerd1, "the node runs another runtime");
    from_third_party_pause(real, Runtime::Containerd1, || {
        let before = files(real)?;
        label(real, "managed")?;
        upgrade(real, SWITCHED)?;
        // Without the permission to edit config.toml it is refused, with the snippet for an administrator.
        wait_for_log(real, "sandbox_image = \"localhost/sandbox-health/pause:0.1.0\"")?;
        ensure!(files(real)? == before, "a refused node has changed");
        upgrade(real, &switched(Runtime::Containerd1))?;
        wait_until_switched(real)?;
        ensure!(new_pod_has_our_pause(real)?, "a new pod has another pause");
        label_removed_restores(real, &before)
    })
}

/// Its program answers `--version`, and ends as PID 1 of a sandbox.
pub(super) fn broken_image(real: &RealNode, runtime: Runtime) -> Result<()> {
    let broken = format!("{},pause.image.repository=sandbox-health", switched(runtime));
    from_third_party_pause(real, runtime, || {
        failure_restores(real, &broken, "no pod of the node was observed with pause")
    })
}

/// As with a configuration that containerd rejects: the unit fails while the setting is there.
pub(super) fn refused_configuration(real: &RealNode, runtime: Runtime) -> Result<()> {
    let check = "/etc/systemd/system/containerd.service.d/check.conf";
    let refuse = || {
        let unit = format!("[Service]\nExecStartPre=/bin/sh -c '! {}'\n", has_setting(runtime));
        real.vm.write_file(check, &unit)?;
        real.vm.ssh("systemctl daemon-reload").map(drop)
    };
    let accept = || real.vm.ssh(&format!("rm -f {check} && systemctl daemon-reload")).map(drop);
    from_third_party_pause(real, runtime, || {
        refuse()?;
        let outcome = failure_restores(real, &switched(runtime), "containerd.service");
        accept()?;
        outcome
    })
}

/// The image check is a container of the installer's pod, so a node of another architecture is never touched.
pub(super) fn image_of_another_architecture(real: &RealNode, runtime: Runtime) -> Result<()> {
    let image = "localhost/sandbox-health/pause:arm64";
    let recipe = Recipe { name: image.to_owned(), ..Recipe::of_this_project(&[Platform::Arm64]) };
    let archive = tempfile::NamedTempFile::new()?;
    fs::write(archive.path(), recipe.build()?.bytes)?;
    let text = output(Command::new("base64").arg(archive.path()))?;
    real.vm.write_file("/root/pause-arm64.base64", &text)?;
    let import = "ctr -n k8s.io images import --local --all-platforms --no-unpack";
    real.vm.ssh(&format!(
        "base64 -d /root/pause-arm64.base64 > /root/pause-arm64.tar && {import} /root/pause-arm64.tar"
    ))?;
    from_third_party_pause(real, runtime, || {
        let before = files(real)?;
        upgrade(real, &format!("{},pause.image.tag=arm64", switched(runtime)))?;
        label(real, "managed")?;
        retry::until("the image check fails", TIMEOUT, || {
            let select = ["get", "pods", "-l", "app.kubernetes.io/component=pause-installer", "-o"];
            let state = "jsonpath={.items[*].status.initContainerStatuses[0]}";
            let state = in_release(real.node(), &[&select[..], &[state]].concat())?;
            ensure!(state.contains("\"name\":\"image-check\"") && !state.contains("\"running\""), "{state}");
            ensure!(["Err", "BackOff", "exec format error"].iter().any(|it| state.contains(it)), "{state}");
            Ok(())
        })?;
        ensure!(files(real)? == before, "a node of another architecture has changed");
        Ok(())
    })
}

/// Kills the installer after each step of a roll-out, and while it is idle.
pub(super) fn killed_installer(real: &RealNode, runtime: Runtime) -> Result<()> {
    from_third_party_pause(real, runtime, || {
        let before = files(real)?;
        upgrade(real, &switched(runtime))?;
        label(real, "managed")?;
        for step in ["Switching", "Switched"] {
            retry::until(&format!("the step is {step}"), TIMEOUT, || {
                let now = lease_annotation(real, "step")?;
                ensure!(now == step, "{now}");
                Ok(())
            })?;
            real.vm.ssh(KILL)?;
        }
        wait_until_switched(real)?;
        ensure!(new_pod_has_our_pause(real)?, "a new pod has another pause");
        // While it is idle: the node stays as it is.
        let kills = installer_restarts(real)?;
        real.vm.ssh(KILL)?;
        retry::until("the kubelet has restarted the installer", TIMEOUT, || {
            let now = installer_restarts(real)?;
            ensure!(now == kills + 1, "it has restarted {now} times");
            Ok(())
        })?;
        wait_until_switched(real)?;
        real.vm.ssh(&has_setting(runtime)).context("the setting is no longer there")?;
        label_removed_restores(real, &before)
    })
}

pub(super) fn uninstall(real: &RealNode, runtime: Runtime) -> Result<()> {
    let outcome = from_third_party_pause(real, runtime, || {
        let before = files(real)?;
        upgrade(real, &switched(runtime))?;
        label(real, "managed")?;
        wait_until_switched(real)?;
        real.node().helm([
            "uninstall",
            RELEASE,
            "--namespace",
            RELEASE_NAMESPACE,
            "--wait",
            "--timeout",
            "10m",
        ])?;
        // No wait: the hook has waited.
        ensure!(files(real)? == before, "the uninstall has not restored the node");
        ensure!(!new_pod_is_ours(real)?, "a new pod has our pause");
        Ok(())
    });
    install_chart(real.node())?;
    outcome
}

/// A switch that fails: the node is restored, the Node has an Event, the metric is 1, and the roll-out stops.
fn failure_restores(real: &RealNode, values: &str, reason: &str) -> Result<()> {
    let before = files(real)?;
    let selector = format!("involvedObject.name={},reason=PauseSwitchFailed", real.vm.name());
    // Those of other scenarios stay for an hour, and a list is not in the order of time.
    real.node().kubectl(["delete", "events", "-n", "default", "--field-selector", &selector])?;
    upgrade(real, values)?;
    label(real, "managed")?;
    retry::until("the node is reverted", 3 * TIMEOUT, || {
        let step = lease_annotation(real, "step")?;
        ensure!(["Reverting", "Failed"].contains(&step.as_str()), "{step}");
        Ok(())
    })?;
    // In the middle of it, as a rule.
    real.vm.ssh(KILL)?;
    retry::until("the switch has failed", TIMEOUT, || {
        let step = lease_annotation(real, "step")?;
        ensure!(step == "Failed", "{step}");
        Ok(())
    })?;
    ensure!(files(real)? == before, "the failed switch has not been reverted");
    real.vm.wait_until_ready()?;
    let message = retry::until("the Node has an Event", TIMEOUT, || {
        let events = events(real.node(), &selector)?;
        events.first().and_then(|event| event["message"].as_str()).map(str::to_owned).context("none")
    })?;
    ensure!(message.contains(reason), "{message}");
    wait_for_controller_metric(
        real.node(),
        &format!("sandboxhealth_pause_switch_failed{{node=\"{}\"}} 1", real.vm.name()),
    )?;
    ensure!(!new_pod_has_our_pause(real)?, "a new pod has our pause");
    Ok(())
}

/// Calls `act` on a node whose runtime has a third-party pause image in its main configuration; then it has ours again, by hand.
fn from_third_party_pause(real: &RealNode, runtime: Runtime, act: impl FnOnce() -> Result<()>) -> Result<()> {
    real.use_runtime(runtime)?;
    real.vm.use_sandbox_image(real.runtime(), OTHER_PAUSE)?;
    if real.runtime() == Runtime::Containerd2 {
        // A drop-in by hand has the name of the installer's, which refuses to replace it.
        let merge = "sed -e '/^version/d' /etc/containerd/conf.d/50-sandbox-health.toml >> /etc/containerd/config.toml";
        real.vm.ssh(&format!("cp /etc/containerd/config.toml /root/config.toml && {merge} && rm /etc/containerd/conf.d/50-sandbox-health.toml"))?;
        real.vm.restart_runtime(real.runtime())?;
    }
    let outcome = act();
    let labels = real.node().kubectl(["label", "node", real.vm.name(), &format!("{LABEL}-")]);
    let restored = install_chart(real.node());
    // What failed leaves the Lease, which stops the next roll-out.
    let _ = in_release(real.node(), &["delete", "lease", LEASE, "--ignore-not-found"]);
    if real.runtime() == Runtime::Containerd2 {
        real.vm.ssh("cp /root/config.toml /etc/containerd/config.toml")?;
    }
    real.vm.use_sandbox_image(real.runtime(), e2e::names::PAUSE)?;
    outcome?;
    labels?;
    restored.map(drop)
}

/// Without a wait: the pods of a switch that fails never become ready.
pub(super) fn upgrade(real: &RealNode, values: &str) -> Result<()> {
    upgrade_chart(real.node(), values, &[])
}

fn label(real: &RealNode, value: &str) -> Result<()> {
    real.node()
        .kubectl(["label", "--overwrite", "node", real.vm.name(), &format!("{LABEL}={value}")])
        .map(drop)
}

/// Every file of the runtime's configuration with its checksum.
fn files(real: &RealNode) -> Result<String> {
    real.vm.ssh("find /etc/containerd | sort; find /etc/containerd -type f -exec sha256sum {} + | sort -k2")
}

fn wait_until_switched(real: &RealNode) -> Result<()> {
    retry::until("the node is switched", 2 * TIMEOUT, || {
        in_release(real.node(), &["rollout", "status", &format!("daemonset/{INSTALLER}"), "--timeout=5s"])?;
        // It succeeds as well while the DaemonSet selects no node.
        let state = in_release(real.node(), &["get", "daemonset", INSTALLER, "-o", SCHEDULED])?;
        ensure!(state.ends_with(": 1"), "{state}");
        Ok(())
    })
    .with_context(|| log(real).unwrap_or_default())
}

fn installer_restarts(real: &RealNode) -> Result<u32> {
    let count = "jsonpath={.items[*].status.initContainerStatuses[?(@.name==\"installer\")].restartCount}";
    let pods = ["get", "pods", "-l", "app.kubernetes.io/component=pause-installer", "-o", count];
    Ok(in_release(real.node(), &pods)?.parse()?)
}

fn label_removed_restores(real: &RealNode, before: &str) -> Result<()> {
    real.node().kubectl(["label", "node", real.vm.name(), &format!("{LABEL}-")])?;
    retry::until("the node is restored", TIMEOUT, || {
        let now = files(real)?;
        ensure!(now == before, "{now}\nwas\n{before}");
        Ok(())
    })?;
    real.vm.wait_until_ready()?;
    let installers = [
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/component=pause-installer",
        "--timeout=120s",
    ];
    in_release(real.node(), &installers)?;
    ensure!(!new_pod_has_our_pause(real)?, "a new pod has our pause");
    Ok(())
}

fn new_pod_has_our_pause(real: &RealNode) -> Result<bool> {
    let pod = create(real.node(), &on_debian(real, "which-pause"))?;
    wait_for_health(real.node(), &pod, "True", "SandboxHealthy")?;
    let version = sandbox_health(real.node(), &pod)?["status"]["sandbox"]["pauseVersion"].take();
    delete_and_wait(real.node(), &pod)?;
    Ok(version == env!("CARGO_PKG_VERSION"))
}

/// By the process: without the release nothing reports it.
fn new_pod_is_ours(real: &RealNode) -> Result<bool> {
    let pod = create(real.node(), &on_debian(real, "which-process"))?;
    let status = e2e::kube::shell(real.node(), &pod, "tr '\\0' '\\n' < /proc/1/cmdline")?;
    delete(real.node(), &pod)?;
    Ok(status.contains("checksum="))
}

fn lease_annotation(real: &RealNode, name: &str) -> Result<String> {
    let path = format!("jsonpath={{.metadata.annotations.sandboxhealth\\.dev/{name}}}");
    in_release(real.node(), &["get", "lease", LEASE, "-o", &path])
}

fn log(real: &RealNode) -> Result<String> {
    in_release(
        real.node(),
        &["logs", "-l", "app.kubernetes.io/component=pause-installer", "-c", "installer", "--tail=50"],
    )
}

fn wait_for_log(real: &RealNode, text: &str) -> Result<()> {
    retry::until(&format!("the installer logs {text}"), TIMEOUT, || {
        let log = log(real)?;
        ensure!(log.contains(text), "{log}");
        Ok(())
    })
}
