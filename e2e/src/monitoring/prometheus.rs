//! Debian's Prometheus: promtool, which checks the chart, and the server, which runs inside of a node and scrapes as
//! docs/reference/metrics.md documents. The package is unpacked, not installed: an installed server would be started as a service.
//!
//! Debian builds it without the discovery of Kubernetes. So pods are discovered here, once, with the labels that Prometheus would give them
//! ([`discovered`]); the page's configuration relabels them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::build::cargo::project_file;
use crate::cluster::{KUBELET, Node};
use crate::host::command::{self, tail};
use crate::host::debian;
use crate::host::retry::{self, TIMEOUT};

const PAGE: &str = include_str!("../../../docs/reference/metrics.md");
/// In the node's network, which has no route to others.
const ADDRESS: &str = "127.0.0.1:9090";

/// Debian's promtool.
///
/// # Errors
///
/// When the package cannot be downloaded.
pub fn promtool() -> Result<PathBuf> {
    Ok(debian::unpacked("prometheus")?.join("usr/bin/promtool"))
}

/// A running server. It exits when this value is dropped, or with its node.
#[derive(Debug)]
pub struct Prometheus<'a> {
    node: &'a Node,
    promtool: PathBuf,
    /// Its PID in the node's PID namespace.
    pid: String,
    process: Child,
}

/// A series in the response of a query, with its points: seconds since the epoch, and a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// One point for an instant, many for a range.
    pub points: Vec<(f64, f64)>,
}

/// Start, end and step, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Since the epoch.
    pub from: u64,
    /// Since the epoch.
    pub to: u64,
    /// Between two points.
    pub step: u64,
}

impl<'a> Prometheus<'a> {
    /// Starts it with the chart's alerts, and waits until it answers. It scrapes the pods by their annotations, and those metrics of the
    /// kubelet that the alerts use.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(node: &'a Node, scrape_every: Duration) -> Result<Self> {
        let programs = debian::unpacked("prometheus")?.join("usr/bin");
        let directory = node.scratch()?.join("prometheus");
        // The samples of an earlier run are not needed.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let (configuration, pid_file) = (directory.join("prometheus.yaml"), directory.join("pid"));
        let pods = directory.join("pods.json");
        fs::write(&pods, serde_json::to_string(&discovered(&node.get(&["pods", "-A"])?))?)?;
        fs::write(&configuration, configured(node, &pods, scrape_every)?)?;
        let log_file = node.log_dir().join("prometheus.log");
        let log = File::create(&log_file)?;
        let process = node
            .command("sh")
            .args(["-c", "echo $$ > \"$0\"; exec \"$@\""])
            .arg(&pid_file)
            .arg(programs.join("prometheus"))
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting Prometheus")?;
        let pid = retry::until("Prometheus is started", TIMEOUT, || {
            let pid = fs::read_to_string(&pid_file)?.trim().to_owned();
            ensure!(!pid.is_empty(), "it has no PID yet");
            Ok(pid)
        })?;
        let prometheus = Self { node, promtool: programs.join("promtool"), pid, process };
        let answers = retry::until("Prometheus answers", TIMEOUT, || prometheus.query("vector(1)"));
        answers.with_context(|| tail(&log_file).unwrap_or_default())?;
        Ok(prometheus)
    }

    /// The result of a query now.
    ///
    /// # Errors
    ///
    /// When it does not answer, or rejects the query.
    pub fn query(&self, expression: &str) -> Result<Vec<Series>> {
        self.ask(&["instant"], expression)
    }

    /// The result of a query for a time, in seconds since the epoch.
    ///
    /// # Errors
    ///
    /// As [`Prometheus::query`].
    pub fn query_at(&self, expression: &str, time: u64) -> Result<Vec<Series>> {
        self.ask(&["instant", &format!("--time={time}")], expression)
    }

    /// The result of a query for a range of time.
    ///
    /// # Errors
    ///
    /// As [`Prometheus::query`].
    pub fn query_range(&self, expression: &str, range: Range) -> Result<Vec<Series>> {
        let Range { from, to, step } = range;
        let times = [format!("--start={from}"), format!("--end={to}"), format!("--step={step}s")];
        self.ask(&["range", &times[0], &times[1], &times[2]], expression)
    }

    fn ask(&self, how: &[&str], expression: &str) -> Result<Vec<Series>> {
        let mut promtool = self.node.command(&self.promtool);
        promtool.arg("query").args(how).args(["-o", "json", &format!("http://{ADDRESS}"), expression]);
        let answer: Vec<Value> = serde_json::from_str(&command::output(&mut promtool)?)?;
        answer
            .iter()
            .map(|series| Series::of(series).with_context(|| format!("an answer: {series}")))
            .collect()
    }
}

impl Series {
    /// `{"metric": {…}, "value": [time, "number"]}`, or `values` for a range.
    fn of(answer: &Value) -> Option<Self> {
        let point = |point: &Value| Some((point[0].as_f64()?, point[1].as_str()?.parse().ok()?));
        let labels = answer["metric"].as_object()?.iter();
        Some(Self {
            labels: labels
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
            points: match answer["values"].as_array() {
                Some(points) => points.iter().map(point).collect::<Option<_>>()?,
                None => vec![point(&answer["value"])?],
            },
        })
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.node.command("kill").arg(&self.pid).status();
        let _ = self.process.wait();
    }
}

/// The page's configuration, completed with the scrape interval, the rules, the kubelet, and the discovery that is used here.
fn configured(node: &Node, pods: &Path, scrape_every: Duration) -> Result<String> {
    let (every, scrape) = (scrape_every.as_secs(), scrape_of(pods)?);
    let (certificate, key) = node.admin_certificate();
    Ok(format!(
        "global:\n  scrape_interval: {every}s\n  scrape_timeout: {every}s\n  evaluation_interval: {every}s\n\
         rule_files: [{}]\n{scrape}  \
         - job_name: kubelet\n    scheme: https\n    metrics_path: /metrics/cadvisor\n    honor_labels: true\n    \
         static_configs: [{{targets: ['{KUBELET}']}}]\n    \
         tls_config: {{cert_file: {}, key_file: {}, insecure_skip_verify: true}}\n    \
         metric_relabel_configs: [{{source_labels: [__name__], action: keep, regex: container_threads.*}}]\n",
        project_file("charts/sandbox-health/files/alerts.yaml")?,
        certificate.display(),
        key.display(),
    ))
}

/// The page's scrape configuration, with the pods from a file.
fn scrape_of(pods: &Path) -> Result<String> {
    let (by_kubernetes, page) = ("    kubernetes_sd_configs:\n      - role: pod\n", scrape_configs()?);
    ensure!(page.contains(by_kubernetes), "docs/reference/metrics.md has another discovery:\n{page}");
    let by_file = format!("    file_sd_configs:\n      - files: ['{}']\n", pods.display());
    Ok(page.replace(by_kubernetes, &by_file))
}

/// A target for each port of each pod, with the labels that `kubernetes_sd_configs` gives it and the page uses.
fn discovered(pods: &Value) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let targets = |pod: &Value| {
        let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let mut labels = json!({
            "__meta_kubernetes_namespace": metadata["namespace"],
            "__meta_kubernetes_pod_name": metadata["name"],
            "__meta_kubernetes_pod_node_name": spec["nodeName"],
            "__meta_kubernetes_pod_phase": status["phase"],
            "__meta_kubernetes_pod_ip": status["podIP"],
        });
        for (name, value) in metadata["annotations"].as_object().into_iter().flatten() {
            let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
            labels[format!("__meta_kubernetes_pod_annotation_{name}")] = value.clone();
        }
        let ports =
            list(&spec["containers"]).into_iter().flat_map(move |container| list(&container["ports"]));
        let ip = status["podIP"].as_str().unwrap_or_default();
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        ports
            .map(|port| json!({"targets": [format!("{ip}:{}", port["containerPort"])], "labels": labels}))
            .collect::<Vec<_>>()
    };
    list(&pods["items"]).iter().flat_map(targets).collect()
}

/// The page's scrape configuration by annotations.
fn scrape_configs() -> Result<&'static str> {
    let (_, rest) = PAGE
        .split_once("```yaml\nscrape_configs:\n")
        .context("docs/reference/metrics.md has no scrape_configs")?;
    let (block, _) = rest.split_once("```\n").context("its scrape_configs do not end")?;
    let begin = PAGE.len() - rest.len() - "scrape_configs:\n".len();
    PAGE.get(begin..begin + "scrape_configs:\n".len() + block.len()).context("no text")
}

/// The addresses at which a Prometheus with the page's configuration scrapes these pods, by promtool. It needs an empty directory.
///
/// # Errors
///
/// When promtool fails, or the page has no configuration.
pub fn addresses(pods: &Value, directory: &Path) -> Result<BTreeSet<String>> {
    let (found, configuration) = (directory.join("pods.json"), directory.join("prometheus.yaml"));
    fs::write(&found, serde_json::to_string(&discovered(pods))?)?;
    fs::write(&configuration, scrape_of(&found)?)?;
    let mut promtool = Command::new(promtool()?);
    // promtool always waits for this time.
    promtool.args(["check", "service-discovery", "--timeout=5s"]).arg(&configuration).arg("annotated-pods");
    let targets: Vec<Value> = serde_json::from_str(&command::output(&mut promtool)?)?;
    // The targets come in any order, and again when the file is read again. A dropped one has no labels.
    let address = |target: &Value| target["labels"]["__address__"].as_str().map(str::to_owned);
    Ok(targets.iter().filter_map(address).collect())
}

/// Runs promtool with this stdin.
///
/// # Errors
///
/// When promtool fails; the error has its output.
pub fn check(arguments: &[&str], stdin: &str) -> Result<()> {
    use std::io::Write as _;
    let mut promtool = Command::new(promtool()?);
    promtool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = promtool.spawn().context("cannot run promtool")?;
    running.stdin.take().context("promtool has no stdin")?.write_all(stdin.as_bytes())?;
    let ran = running.wait_with_output()?;
    let output = [&ran.stdout[..], &ran.stderr].concat();
    ensure!(ran.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&output));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_of_page_is_found() {
        let found = scrape_configs().unwrap();
        assert!(found.starts_with("scrape_configs:\n  - job_name: annotated-pods\n"), "{found}");
        assert!(found.contains("      - role: pod\n") && !found.contains("```"), "{found}");
    }

    #[test]
    fn each_port_of_pod_is_target_with_annotations() {
        let pod = json!({
            "metadata": {"namespace": "ops", "name": "agent", "annotations": {"prometheus.io/port": "8080"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"containerPort": 8080}]}, {}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        let found = discovered(&json!({"items": [pod]}));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["targets"], json!(["10.0.0.1:8080"]));
        let labels = &found[0]["labels"];
        assert_eq!(labels["__meta_kubernetes_pod_annotation_prometheus_io_port"], "8080");
        assert_eq!(labels["__meta_kubernetes_pod_node_name"], "n");
    }

    #[test]
    fn instants_and_ranges_are_parsed() {
        let instant = Series::of(&json!({"metric": {"pod": "web"}, "value": [1.5, "7"]})).unwrap();
        assert_eq!((instant.labels["pod"].as_str(), &instant.points[..]), ("web", &[(1.5, 7.0)][..]));
        let range = Series::of(&json!({"metric": {}, "values": [[1, "7"], [2, "NaN"]]})).unwrap();
        assert_eq!(range.points.len(), 2);
        assert_eq!(Series::of(&json!({"metric": {}, "value": [1.5]})), None);
    }
}
