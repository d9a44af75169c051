//! The six steps, after one that installs the chart.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::{self, POD, events_of, health_of, pause_of, sandbox_health, shell};
use super::{PATIENCE, Step, Telling};
use crate::wait;

/// The story, in order: each stands on those before it.
pub const STEPS: [Step; 7] = [
    Step {
        name: "step_0_the_chart_is_installed",
        explanation: "An agent on each node reads what pause shows; a controller owns the rows. Helm installs both.",
        tell: install,
    },
    Step {
        name: "step_1_a_pod_shares_its_pid_namespace",
        explanation: "A pod with shareProcessNamespace: true runs nginx and a shell.",
        tell: share,
    },
    Step {
        name: "step_2_ps_shows_pause_as_pid_1_then_the_others",
        explanation: "From the shell, ps shows our pause as PID 1, with its status; then nginx's master and workers.",
        tell: look,
    },
    Step {
        name: "step_3_the_shell_signals_nginx_and_reads_its_files",
        explanation: "The shell sends HUP to nginx's master: new workers replace the old. It reads nginx's files, too.",
        tell: hang_up,
    },
    Step {
        name: "step_4_orphans_are_reaped_and_zombies_of_a_living_parent_are_counted",
        explanation: "Orphans fall to pause, which reaps them. A parent that never waits keeps its zombies: only its own end \
                      helps, and until then somebody should know.",
        tell: leave_zombies,
    },
    Step {
        name: "step_5_containers_share_namespaces_but_not_files",
        explanation: "Two containers of the pod have the same net, ipc and pid namespaces, which pause holds, and not the \
                      same mnt.",
        tell: compare_namespaces,
    },
    Step {
        name: "step_6_killing_pause_restarts_the_sandbox",
        explanation: "Somebody kills pause on the node: the sandbox goes, and every container of the pod is started anew. The \
                      kubelet says that it happened; ours says why.",
        tell: kill_pause,
    },
];

fn install(telling: &mut Telling<'_>) -> Result<()> {
    telling.show("helm upgrade --install sandbox-health charts/sandbox-health --wait …", |node| {
        let said = cluster::install_chart(node)?;
        // The notes are for whoever installs it elsewhere.
        Ok(said
            .lines()
            .take_while(|line| !line.starts_with("NOTES"))
            .map(|line| format!("{line}\n"))
            .collect())
    })?;
    telling.kubectl(&["-n", cluster::RELEASE_NAMESPACE, "get", "pods"]).map(drop)
}

fn share(telling: &mut Telling<'_>) -> Result<()> {
    telling.node.kubectl(["delete", "pod", POD, "--ignore-not-found", "--wait"])?;
    let manifest = "e2e/src/story/web.yaml";
    telling.show(&format!("kubectl apply -f {manifest}"), |node| {
        node.kubectl(["apply", "-f", &cluster::project_file(manifest)?])
    })?;
    telling.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{POD}"), "--timeout=120s"])?;
    health_of(telling.node, POD, "True", "AllWell")?;
    telling.kubectl(&["get", "sandboxhealth", POD]).map(drop)
}

fn look(telling: &mut Telling<'_>) -> Result<()> {
    // Nginx forks its workers after it is "started".
    wait::until("nginx has workers", PATIENCE, || nginx(telling, "worker process"))?;
    let said = telling.kubectl_exec(&["ps"])?;
    let mut commands = said.lines().skip(1);
    let first = commands.next().unwrap_or_default();
    ensure!(first.trim_start().starts_with("1 ") && first.contains("/pause zombies="), "PID 1 is {first}");
    Ok(())
}

fn hang_up(telling: &mut Telling<'_>) -> Result<()> {
    let master = nginx(telling, "master process")?;
    let master = master.first().context("no master")?;
    let before = nginx(telling, "worker process")?;
    telling.kubectl_exec(&["kill", "-HUP", master])?;
    wait::until("all workers are new", PATIENCE, || {
        let now = nginx(telling, "worker process")?;
        ensure!(
            now.len() == before.len() && now.iter().all(|worker| !before.contains(worker)),
            "{before:?}, now {now:?}"
        );
        Ok(())
    })?;
    telling.kubectl_exec(&["ps"])?;
    let file = format!("/proc/{master}/root/etc/nginx/nginx.conf");
    let said = telling.kubectl_exec(&["head", "-3", &file])?;
    ensure!(said.contains("user nginx;"), "{said}");
    Ok(())
}

fn leave_zombies(telling: &mut Telling<'_>) -> Result<()> {
    telling.say("\nTwenty orphans, whose parent ended before them:")?;
    telling.kubectl_exec(&["sh", "-c", "for i in $(seq 20); do sleep 0.2 & done"])?;
    wait::until("pause has reaped 20", PATIENCE, || {
        let status = shell(telling.node, POD, "tr '\\0' '\\n' < /proc/1/cmdline")?;
        let reaped = status
            .lines()
            .find_map(|line| line.strip_prefix("reaped="))
            .context("no status")?
            .parse::<u32>()?;
        ensure!(reaped >= 20, "it has reaped {reaped}");
        Ok(())
    })?;
    telling.kubectl_exec(&["sh", "-c", "tr '\\0' '\\n' < /proc/1/cmdline | head -3"])?;

    telling.say("\nSeven zombies, whose parent lives and never waits:")?;
    let parent = telling.kubectl_exec(&["sh", "-c", NEVER_WAITS])?;
    health_of(telling.node, POD, "False", "ZombiesAccumulating")?;
    telling.kubectl(&["get", "sandboxhealth", POD])?;
    event(telling, "ZombiesAccumulating")?;

    telling.say("\nThe parent ends; pause inherits its zombies and reaps them:")?;
    telling.kubectl_exec(&["kill", parent.trim()])?;
    health_of(telling.node, POD, "True", "AllWell")?;
    telling.kubectl(&["get", "sandboxhealth", POD])?;
    event(telling, "ZombiesCleared")
}

/// Starts seven children that end soon and becomes a program that never waits for them; prints its PID.
const NEVER_WAITS: &str =
    "sh -c 'for i in 1 2 3 4 5 6 7; do sleep 1 & done; exec sleep 100000' >/dev/null 2>&1 & echo $!";

fn compare_namespaces(telling: &mut Telling<'_>) -> Result<()> {
    let master = nginx(telling, "master process")?;
    let master = master.first().context("no master")?;
    let script = format!(
        "for n in net ipc pid mnt; do for p in self {master}; do readlink /proc/$p/ns/$n; done; done"
    );
    let said = telling.kubectl_exec(&["sh", "-c", &script])?;
    let links: Vec<_> = said.lines().collect();
    ensure!(links.len() == 8, "{said}");
    for pair in links.chunks(2) {
        let same = pair[0] == pair[1];
        ensure!(same != pair[0].starts_with("mnt:"), "{pair:?}");
    }
    Ok(())
}

fn kill_pause(telling: &mut Telling<'_>) -> Result<()> {
    let before = restart_counts(telling)?;
    let restarts =
        sandbox_health(telling.node, POD)?["status"]["restarts"].as_i64().context("no restarts")?;
    let pause = pause_of(telling.node, POD)?;
    telling.show(&format!("kill -9 {pause}        # on the node"), |_| {
        kill(Pid::from_raw(pause.cast_signed()), Signal::SIGKILL)?;
        Ok(String::new())
    })?;
    wait::until("the row counts the restart", PATIENCE, || {
        let now = sandbox_health(telling.node, POD)?["status"]["restarts"].clone();
        ensure!(now == restarts + 1, "it says {now}");
        Ok(())
    })?;
    // Once as a rule. A kubelet that looks between the end of the containers and that of the sandbox tries them in the old one
    // first, and counts that, too.
    wait::until("each container was started anew", PATIENCE, || {
        let now = restart_counts(telling)?;
        let anew = before.iter().zip(&now).all(|(before, now)| now > before);
        ensure!(anew && now.len() == before.len(), "restart counts {before:?}, now {now:?}");
        Ok(())
    })?;
    wait::until("the kubelet tells of it", PATIENCE, || {
        ensure!(!events_of(telling.node, POD, "SandboxChanged")?.is_empty(), "no Event SandboxChanged");
        Ok(())
    })?;
    event(telling, "SandboxRestarted")
}

/// Waits for an Event of ours on the pod, and shows all of that reason.
fn event(telling: &mut Telling<'_>, reason: &str) -> Result<()> {
    wait::until(&format!("there is an Event {reason}"), PATIENCE, || {
        ensure!(!events_of(telling.node, POD, reason)?.is_empty(), "there is none");
        Ok(())
    })?;
    telling
        .kubectl(&[
            "get",
            "events",
            "--field-selector",
            &format!("reason={reason},involvedObject.name={POD}"),
        ])
        .map(drop)
}

fn restart_counts(telling: &Telling<'_>) -> Result<Vec<i64>> {
    let pod = telling.node.get(&["pod", POD])?;
    let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    Ok(containers.iter().filter_map(|container| container["restartCount"].as_i64()).collect())
}

/// PIDs of nginx's processes of this kind, as the shell sees them.
fn nginx(telling: &Telling<'_>, kind: &str) -> Result<Vec<String>> {
    let said = shell(telling.node, POD, "ps")?;
    let of_kind = said
        .lines()
        .filter(|line| line.contains("nginx: ") && line.contains(kind) && !line.contains("shutting down"));
    let pids: Vec<_> = of_kind.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    ensure!(!pids.is_empty(), "ps shows no nginx {kind}:\n{said}");
    Ok(pids)
}
