//! The metrics of a running node in Prometheus, with the alerts and the dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::build::project_file;
use e2e::cluster::Node;
use e2e::doc_blocks;
use e2e::host::command::run;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    agent_metrics, create, delete, events_of, http_get, kill_pause, leave_zombies, pod, pods_of, shell,
    wait_for_health, wait_for_restarts,
};
use e2e::monitoring::dashboard::{self, Variables};
use e2e::monitoring::prometheus::{self, Prometheus};
use e2e::names::BUSYBOX;
use e2e::runner::arguments::is_long;
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 3] = [
    ("metrics_pass_promtool_lint", metrics_pass_promtool_lint),
    ("prometheus_scrapes_both_and_fills_each_panel", prometheus_scrapes_both_and_fills_each_panel),
    ("series_of_deleted_pods_disappear", series_of_deleted_pods_disappear),
];

/// Short, because each wait below takes some scrapes.
const SCRAPE_EVERY: Duration = Duration::from_secs(2);

fn metrics_pass_promtool_lint(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    for component in ["agent", "controller"] {
        for pod in pods_of(node, component)? {
            let address = pod["status"]["podIP"].as_str().context("a pod without an address")?;
            let answer = http_get(node, address, "/metrics")?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
            ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
            prometheus::check(&["check", "metrics"], body).with_context(|| component.to_owned())?;
        }
    }
    Ok(())
}

fn prometheus_scrapes_both_and_fills_each_panel(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let prometheus = Prometheus::start(node, SCRAPE_EVERY)?;
    let replicas = pods_of(node, "controller")?.len();
    let scraped = |query: &str, count: usize| {
        retry::until(&format!("{query} is {count}"), TIMEOUT, || {
            let found = prometheus.query(query)?;
            ensure!(found.len() == count, "{found:?}");
            Ok(found)
        })
    };
    scraped("up{job=\"annotated-pods\"} == 1", 1 + replicas)?;
    scraped("sandboxhealth_leader == 1", 1)?;
    scraped("sandboxhealth_build_info{component=\"agent\"}", 1)?;

    let [create_zombies, delete_zombies] = zombies_of_the_monitoring_page()?;
    run(node.command("sh").args(["-ec", &create_zombies]))?;
    let name = create(node, &pod("shown", &[]))?;
    wait_for_health(node, &name, "True", "SandboxHealthy")?;
    // The labels are those of the pod, and not of the agent that exposes it.
    scraped(&format!("pod_sandbox_zombie_processes{{namespace=\"default\",pod=\"{name}\",node!=\"\"}}"), 1)?;
    for restarts in 1..=3 {
        kill_pause(node, &name)?;
        wait_for_restarts(node, &name, restarts)?;
    }
    retry::until("its shell is back", TIMEOUT, || shell(node, &name, "true"))?;
    leave_zombies(node, &name, 12)?;
    shell(node, &name, "for i in $(seq 50); do sleep 0.1 & done")?;
    scraped(&format!("pod_sandbox_zombie_processes{{pod=\"{name}\"}} >= 12"), 1)?;
    each_panel_has_data(&prometheus, &name)?;
    scraped("sandboxhealth_reconcile_duration_seconds_count > 0", 1)?;
    scraped(
        "sandboxhealth_api_requests_total{verb=\"patch\",resource=\"sandboxhealths/status\",outcome=\"ok\"} > 0",
        2,
    )?;

    let alert =
        format!("ALERTS{{alertname=\"SandboxRestartingRepeatedly\",alertstate=\"firing\",pod=\"{name}\"}}");
    let firing = scraped(&alert, 1)?;
    let label = |name: &str| firing[0].labels.get(name).map(String::as_str);
    ensure!(label("namespace") == Some("default") && label("severity") == Some("warning"), "{firing:?}");
    // The cluster has no problem of its own.
    let others = prometheus.query(
        "ALERTS{alertname=~\"SandboxAgentMissing|SandboxHealthControllerDown|SandboxRestartsOnNode\"}",
    )?;
    ensure!(others.is_empty(), "{others:?}");
    let any_use = expression_of("SandboxPidsLimitNear")?.replace("> 0.8", "> 0");
    // Pause, the shell's process, a parent and its 12 zombies, of 1024.
    retry::until("the kubelet exposes the pod's PID limit", TIMEOUT, || {
        let found = prometheus.query(&any_use)?;
        let used = found.iter().find(|series| series.labels.get("pod") == Some(&name));
        ensure!(used.is_some_and(|used| (0.01..0.1).contains(&used.points[0].1)), "{found:?}");
        Ok(())
    })?;
    // As the page documents for its pod. The alert would fire after five minutes.
    scraped("ALERTS{alertname=\"SandboxZombiesGrowing\",namespace=\"default\",pod=\"zombies\"}", 1)?;
    let messages = events_of(node, "zombies", "ZombiesAccumulating")?;
    ensure!(messages.len() == 1, "{messages:?}");
    drop(prometheus);
    run(node.command("sh").args(["-ec", &delete_zombies]))?;
    delete(node, &name)
}

/// The commands that create the pod of docs/operations/monitoring.md, with an image that the node has, and those that delete it.
fn zombies_of_the_monitoring_page() -> Result<[String; 2]> {
    let page = "docs/operations/monitoring.md";
    let blocks = doc_blocks::commands(Path::new(page), &fs::read_to_string(project_file(page)?)?)?;
    let of_the_pod = blocks.into_iter().map(|block| block.text).filter(|text| text.contains("pod zombies"));
    let [begin, end] = of_the_pod.collect::<Vec<_>>().try_into().map_err(|found| anyhow!("{found:?}"))?;
    let image = "image: busybox\n";
    ensure!(begin.matches(image).count() == 1, "no image, or several: {begin}");
    Ok([begin.replace(image, &format!("image: {BUSYBOX}\n")), end])
}

fn expression_of(alert: &str) -> Result<String> {
    let text = fs::read_to_string(project_file("charts/sandbox-health/files/alerts.yaml")?)?;
    let alerts: Value = serde_saphyr::from_str(&text)?;
    let rules = alerts["groups"][0]["rules"].as_array().context("no rules")?;
    let rule = rules.iter().find(|rule| rule["alert"] == alert).context("no such alert")?;
    rule["expr"].as_str().map(str::to_owned).context("no expression")
}

fn each_panel_has_data(prometheus: &Prometheus<'_>, pod: &str) -> Result<()> {
    let variables = Variables::of(pod, "10m");
    for panel in dashboard::panels()? {
        for query in panel.queries(&variables) {
            retry::until(&format!("the panel {:?} has data", panel.title), TIMEOUT, || {
                let found = prometheus.query(&query)?;
                ensure!(
                    found.iter().any(|series| series.points.iter().any(|(_, value)| value.is_finite())),
                    "{query}"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Waves of pods and the size of a wave: a node runs at most 110 pods. A series that stays is found after any number of pods.
const GATE: (usize, usize) = (1, 60);
const LONG: (usize, usize) = (4, 50);

fn series_of_deleted_pods_disappear(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let before = series(node)?;
    let (waves, size) = if is_long() { LONG } else { GATE };
    for wave in 1..=waves {
        let pods: Vec<_> = (1..=size).map(|number| bare(&format!("wave-{wave}-{number}"))).collect();
        node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
        // So many sandboxes at once take a busy machine minutes.
        retry::until("all pods are exposed", TIMEOUT * 3, || {
            let is_started = |series: &&String| {
                series.starts_with("pod_sandbox_start_time_seconds{") && series.contains("pod=\"wave-")
            };
            let shown = series(node)?.iter().filter(is_started).count();
            ensure!(shown == size, "{shown} pods are exposed");
            Ok(())
        })?;
        node.kubectl(["delete", "pods", "-l", "wave", "--wait", "--grace-period=0", "--force"])?;
    }
    retry::until("no series is new", TIMEOUT, || {
        // An earlier pod may have been deleted as well.
        let more: Vec<_> = series(node)?.difference(&before).cloned().collect();
        ensure!(more.is_empty(), "{more:?}");
        Ok(())
    })
}

/// A sandbox without containers: the image of its one container does not exist and is not pulled.
fn bare(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"wave": ""}},
        "spec": {
            "shareProcessNamespace": true,
            "automountServiceAccountToken": false,
            "containers": [{"name": "none", "image": "localhost/none:1", "imagePullPolicy": "Never"}],
        },
    })
}

/// The agent's series, without their values.
fn series(node: &Node) -> Result<BTreeSet<String>> {
    let answer = agent_metrics(node)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    Ok(samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect())
}
