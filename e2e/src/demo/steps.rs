//! The six steps of the demo, after one that installs the chart.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{POD, Reporter, Step};
use crate::build::project_file;
use crate::host::retry::{self, TIMEOUT};
use crate::kube::{self, events_of, pause_pid, sandbox_health, shell, wait_for_health};
use crate::names::RELEASE_NAMESPACE;

/// The steps in order: each depends on those before it.
pub const STEPS: [Step; 7] = [
    Step {
        name: "step_0_chart_is_installed",
        explanation: "Helm installs an agent on each node, which reads pause's status, and a controller, which owns the SandboxHealth objects.",
        run: install,
    },
    Step {
        name: "step_1_pod_shares_its_pid_namespace",
        explanation: "A pod with shareProcessNamespace: true runs nginx and a shell.",
        run: create_pod,
    },
    Step {
        name: "step_2_ps_shows_pause_as_pid_1",
        explanation: "From the shell, ps shows our pause as PID 1, with its status; then nginx's master and workers.",
        run: show_processes,
    },
    Step {
        name: "step_3_shell_signals_nginx_and_reads_its_files",
        explanation: "The shell sends HUP to nginx's master, which replaces its workers, and reads nginx's files.",
        run: reload_nginx,
    },
    Step {
        name: "step_4_orphans_are_reaped_and_zombies_are_reported",
        explanation: "Pause inherits orphans and reaps them. A parent that does not reap its children keeps their zombies until \
                      it ends; until then they are reported.",
        run: leave_zombies,
    },
    Step {
        name: "step_5_containers_share_namespaces_but_not_files",
        explanation: "Two containers of the pod share the net, ipc and pid namespaces, which pause holds, but not the mnt \
                      namespace.",
        run: compare_namespaces,
    },
    Step {
        name: "step_6_kill_of_pause_restarts_the_sandbox",
        explanation: "Pause is killed on the node: the kubelet recreates the sandbox and restarts every container of the pod. The \
                      kubelet's Event reports that it happened, ours reports the cause.",
        run: kill_pause,
    },
];

fn install(reporter: &mut Reporter<'_>) -> Result<()> {
    reporter.show("helm upgrade --install sandbox-health charts/sandbox-health --wait …", |node| {
        let output = kube::install_chart(node)?;
        // The notes are for installations on users' clusters.
        Ok(output
            .lines()
            .take_while(|line| !line.starts_with("NOTES"))
            .map(|line| format!("{line}\n"))
            .collect())
    })?;
    reporter.kubectl(&["-n", RELEASE_NAMESPACE, "get", "pods"]).map(drop)
}

fn create_pod(reporter: &mut Reporter<'_>) -> Result<()> {
    reporter.node.kubectl(["delete", "pod", POD, "--ignore-not-found", "--wait"])?;
    let manifest = "e2e/src/demo/web.yaml";
    reporter.show(&format!("kubectl apply -f {manifest}"), |node| {
        node.kubectl(["apply", "-f", &project_file(manifest)?])
    })?;
    reporter.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{POD}"), "--timeout=120s"])?;
    wait_for_health(reporter.node, POD, "True", "SandboxHealthy")?;
    reporter.kubectl(&["get", "sandboxhealth", POD]).map(drop)
}

fn show_processes(reporter: &mut Reporter<'_>) -> Result<()> {
    // Nginx forks its workers after it is "started".
    retry::until("nginx has workers", TIMEOUT, || nginx(reporter, "worker process"))?;
    let output = reporter.kubectl_exec(&["ps"])?;
    let mut commands = output.lines().skip(1);
    let first = commands.next().unwrap_or_default();
    ensure!(first.trim_start().starts_with("1 ") && first.contains("/pause zombies="), "PID 1 is {first}");
    Ok(())
}

fn reload_nginx(reporter: &mut Reporter<'_>) -> Result<()> {
    let master = nginx(reporter, "master process")?;
    let master = master.first().context("no master")?;
    let before = nginx(reporter, "worker process")?;
    reporter.kubectl_exec(&["kill", "-HUP", master])?;
    retry::until("all workers are new", TIMEOUT, || {
        let now = nginx(reporter, "worker process")?;
        ensure!(
            now.len() == before.len() && now.iter().all(|worker| !before.contains(worker)),
            "{before:?}, now {now:?}"
        );
        Ok(())
    })?;
    reporter.kubectl_exec(&["ps"])?;
    let file = format!("/proc/{master}/root/etc/nginx/nginx.conf");
    let output = reporter.kubectl_exec(&["head", "-3", &file])?;
    ensure!(output.contains("user nginx;"), "{output}");
    Ok(())
}

fn leave_zombies(reporter: &mut Reporter<'_>) -> Result<()> {
    reporter.print("\nTwenty orphans, whose parent exits before them:")?;
    reporter.kubectl_exec(&["sh", "-c", "for i in $(seq 20); do sleep 0.2 & done"])?;
    retry::until("pause has reaped 20", TIMEOUT, || {
        let status = shell(reporter.node, POD, "tr '\\0' '\\n' < /proc/1/cmdline")?;
        let reaped = status
            .lines()
            .find_map(|line| line.strip_prefix("reaped="))
            .context("no status")?
            .parse::<u32>()?;
        ensure!(reaped >= 20, "it has reaped {reaped}");
        Ok(())
    })?;
    reporter.kubectl_exec(&["sh", "-c", "tr '\\0' '\\n' < /proc/1/cmdline | head -3"])?;

    reporter.print("\nSeven zombies, whose parent does not reap them:")?;
    let parent = reporter.kubectl_exec(&["sh", "-c", NEVER_WAITS])?;
    wait_for_health(reporter.node, POD, "False", "ZombiesAccumulating")?;
    reporter.kubectl_in_picture(&["get", "sandboxhealth", POD])?;
    event(reporter, "ZombiesAccumulating")?;

    reporter.print("\nThe parent exits; pause inherits its zombies and reaps them:")?;
    reporter.kubectl_exec(&["kill", parent.trim()])?;
    wait_for_health(reporter.node, POD, "True", "SandboxHealthy")?;
    reporter.kubectl(&["get", "sandboxhealth", POD])?;
    event(reporter, "ZombiesReaped")
}

/// Starts seven children that exit soon and executes a program that never waits for them; prints its PID.
const NEVER_WAITS: &str =
    "sh -c 'for i in 1 2 3 4 5 6 7; do sleep 1 & done; exec sleep 100000' >/dev/null 2>&1 & echo $!";

fn compare_namespaces(reporter: &mut Reporter<'_>) -> Result<()> {
    let master = nginx(reporter, "master process")?;
    let master = master.first().context("no master")?;
    let script = format!(
        "for n in net ipc pid mnt; do for p in self {master}; do readlink /proc/$p/ns/$n; done; done"
    );
    let output = reporter.kubectl_exec(&["sh", "-c", &script])?;
    let links: Vec<_> = output.lines().collect();
    ensure!(links.len() == 8, "{output}");
    for pair in links.chunks(2) {
        let same = pair[0] == pair[1];
        ensure!(same != pair[0].starts_with("mnt:"), "{pair:?}");
    }
    Ok(())
}

fn kill_pause(reporter: &mut Reporter<'_>) -> Result<()> {
    let before = restart_counts(reporter)?;
    let restarts =
        sandbox_health(reporter.node, POD)?["status"]["restarts"].as_i64().context("no restarts")?;
    let pause = pause_pid(reporter.node, POD)?;
    let command = format!("kill -9 {pause}        # on the node");
    reporter.show_in_picture(&command, |_| {
        kill(Pid::from_raw(pause.cast_signed()), Signal::SIGKILL)?;
        Ok(String::new())
    })?;
    retry::until("the object counts the restart", TIMEOUT, || {
        let now = sandbox_health(reporter.node, POD)?["status"]["restarts"].clone();
        ensure!(now == restarts + 1, "it has {now}");
        Ok(())
    })?;
    // Once as a rule. If the kubelet syncs the pod after its containers have exited and before its sandbox has, it restarts them in the old
    // sandbox first, and counts that, too.
    retry::until("each container has restarted", TIMEOUT, || {
        let now = restart_counts(reporter)?;
        let has_restarted = before.iter().zip(&now).all(|(before, now)| now > before);
        ensure!(has_restarted && now.len() == before.len(), "restart counts {before:?}, now {now:?}");
        Ok(())
    })?;
    retry::until("the kubelet reports it", TIMEOUT, || {
        ensure!(!events_of(reporter.node, POD, "SandboxChanged")?.is_empty(), "no Event SandboxChanged");
        Ok(())
    })?;
    wait_for_health(reporter.node, POD, "False", "SandboxRestarted")?;
    reporter.kubectl_in_picture(&["get", "sandboxhealth", POD])?;
    event(reporter, "SandboxRestarted")?;
    reporter.kubectl_in_picture(&["events", "--for", &format!("pod/{POD}"), "--types=Warning"])
}

/// Waits for an Event of the operator on the pod, and prints all with this reason.
fn event(reporter: &mut Reporter<'_>, reason: &str) -> Result<()> {
    retry::until(&format!("there is an Event {reason}"), TIMEOUT, || {
        ensure!(!events_of(reporter.node, POD, reason)?.is_empty(), "there is no such Event");
        Ok(())
    })?;
    reporter.kubectl(&["get", "events", "--field-selector", &format!("reason={reason}")]).map(drop)
}

fn restart_counts(reporter: &Reporter<'_>) -> Result<Vec<i64>> {
    let pod = reporter.node.get(&["pod", POD])?;
    let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    Ok(containers.iter().filter_map(|container| container["restartCount"].as_i64()).collect())
}

/// PIDs of nginx's processes of this kind, as the shell sees them.
fn nginx(reporter: &Reporter<'_>, kind: &str) -> Result<Vec<String>> {
    let output = shell(reporter.node, POD, "ps")?;
    let of_kind = output
        .lines()
        .filter(|line| line.contains("nginx: ") && line.contains(kind) && !line.contains("shutting down"));
    let pids: Vec<_> = of_kind.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    ensure!(!pids.is_empty(), "ps shows no nginx {kind}:\n{output}");
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use crate::names::{BUSYBOX, NGINX};

    #[test]
    fn demo_pod_uses_images_of_node() {
        let manifest = include_str!("web.yaml");
        for image in [BUSYBOX, NGINX] {
            assert!(manifest.contains(&format!("image: {image}\n")), "{image}");
        }
    }
}
