//! What Prometheus gets of a running node, and what alerts and dashboard make of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::build::project_file;
use e2e::cluster::Node;
use e2e::doc_blocks;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, shell};
use e2e::monitoring::dashboard::{self, Variables};
use e2e::monitoring::prometheus::{self, Prometheus};
use e2e::names::BUSYBOX;
use serde_json::{Value, json};

use super::Cluster;
use e2e::host::command::run;
use e2e::kube::{agent_metrics, create, delete, http_get, kill_pause, never_waits, pods_of, told_of};

/// Often, so that little has to be waited for.
const SCRAPE_EVERY: Duration = Duration::from_secs(2);

pub(super) fn prometheus_has_nothing_against_the_metrics(cluster: &Cluster) -> Result<()> {
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

pub(super) fn prometheus_scrapes_both_and_each_panel_has_something(cluster: &Cluster) -> Result<()> {
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
    scraped("sandbox_health_leader == 1", 1)?;
    scraped("sandbox_health_build_info{part=\"agent\"}", 1)?;

    let [begin, end] = zombies_of_the_install_page()?;
    run(node.command("sh").args(["-ec", &begin]))?;
    let name = create(node, &pod("shown", &[]))?;
    health_of(node, &name, "True", "AllWell")?;
    // The labels are the pod's, and not those of the agent that shows it.
    scraped(&format!("sandbox_zombie_processes{{namespace=\"default\",pod=\"{name}\",node!=\"\"}}"), 1)?;
    for restarts in 1..=3 {
        kill_pause(node, &name)?;
        told_of(node, &name, restarts)?;
    }
    retry::until("its shell is there again", TIMEOUT, || shell(node, &name, "true"))?;
    never_waits(node, &name, 12)?;
    shell(node, &name, "for i in $(seq 50); do sleep 0.1 & done")?;
    scraped(&format!("sandbox_zombie_processes{{pod=\"{name}\"}} >= 12"), 1)?;
    each_panel_has_something(&prometheus, &name)?;
    // The leader's queue of pods and the agent's of reports had something in them, and have nothing now.
    scraped("count by (name) (workqueue_queue_duration_seconds_count > 0 and workqueue_adds_total > 0)", 2)?;
    scraped("workqueue_depth == 0", 1 + replicas)?;

    let alert =
        format!("ALERTS{{alertname=\"SandboxRestartingRepeatedly\",alertstate=\"firing\",pod=\"{name}\"}}");
    let firing = scraped(&alert, 1)?;
    let label = |name: &str| firing[0].labels.get(name).map(String::as_str);
    ensure!(label("namespace") == Some("default") && label("severity") == Some("warning"), "{firing:?}");
    // Nothing is wrong with the cluster.
    let others = prometheus.query("ALERTS{alertname=~\"SandboxAgentMissing|SandboxHealthNotWorking\"}")?;
    ensure!(others.is_empty(), "{others:?}");
    let any_use = expression_of("SandboxPidsLimitNear")?.replace("> 0.8", "> 0");
    let used = retry::until("the kubelet tells of the pod's PIDs", TIMEOUT, || {
        let found = prometheus.query(&any_use)?;
        found.into_iter().find(|series| series.labels.get("pod") == Some(&name)).context("not of this pod")
    })?;
    // Pause, the shell's process, a parent and its 12 zombies, of 1024.
    ensure!((0.01..0.1).contains(&used.points[0].1), "{used:?}");
    // What the page says comes of its pod; five minutes later it would fire.
    scraped("ALERTS{alertname=\"SandboxZombiesGrowing\",namespace=\"default\",pod=\"zombies\"}", 1)?;
    let told = events_of(node, "zombies", "ZombiesAccumulating")?;
    ensure!(told.len() == 1, "{told:?}");
    drop(prometheus);
    run(node.command("sh").args(["-ec", &end]))?;
    delete(node, &name)
}

/// The commands that make the pod of docs/install.md, with an image that the node has, and those that remove it.
fn zombies_of_the_install_page() -> Result<[String; 2]> {
    let page = "docs/install.md";
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

fn each_panel_has_something(prometheus: &Prometheus<'_>, pod: &str) -> Result<()> {
    let text = str::to_owned;
    let variables = Variables {
        namespace: text(".*"),
        pod: pod.to_owned(),
        range: text("10m"),
        rate_interval: text("1m"),
    };
    for panel in dashboard::panels()? {
        for query in panel.queries(&variables) {
            retry::until(&format!("the panel {:?} has something", panel.title), TIMEOUT, || {
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

/// In waves, for a node takes 110 pods.
const WAVES: usize = 4;
const WAVE: usize = 50;

pub(super) fn prometheus_sees_nothing_of_200_pods_that_went(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let before = series(node)?;
    for wave in 1..=WAVES {
        let pods: Vec<_> = (1..=WAVE).map(|number| bare(&format!("wave-{wave}-{number}"))).collect();
        node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
        // So many sandboxes at once take a busy machine minutes.
        retry::until("all pods are shown", TIMEOUT * 3, || {
            let is_started = |series: &&String| {
                series.starts_with("sandbox_start_time_seconds{") && series.contains("pod=\"wave-")
            };
            let shown = series(node)?.iter().filter(is_started).count();
            ensure!(shown == WAVE, "{shown} pods are shown");
            Ok(())
        })?;
        node.kubectl(["delete", "pods", "-l", "wave", "--wait", "--grace-period=0", "--force"])?;
    }
    retry::until("the series are those of before", TIMEOUT, || {
        // A pod of before may have gone, too.
        let more: Vec<_> = series(node)?.difference(&before).cloned().collect();
        ensure!(more.is_empty(), "{more:?}");
        Ok(())
    })
}

/// A sandbox and nothing in it: its one container has an image that there is not, and that nobody pulls.
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
