//! The table of metrics in docs/metrics.md, made from what agent and controller show when each series of theirs is there. A
//! metric cannot be missing from it, nor be described otherwise than Prometheus sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Error, Write as _};

use crate::agent::metrics::{AgentMetrics, PodSeries};
use crate::controller::fleet::{Blindness, Sight};
use crate::controller::metrics::ControllerMetrics;
use crate::resource::{Processes, ReadFailure, Sandbox, SandboxHealthStatus};
use crate::serve::Metrics as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Metrics of the programs themselves begin so, and may change; all others say what was seen of sandboxes, and are kept.
const OWN: [&str; 2] = ["sandbox_health_", "workqueue_"];

/// A metric as its text shows it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    name: String,
    kind: String,
    help: String,
    /// Labels with the values that were seen.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The whole of what is generated.
pub fn markdown() -> Result<String, Error> {
    let agent = parse(&example_agent().render()?);
    let controller = parse(&example_controller().render()?);
    let mut text = String::new();
    table(&mut text, "Agent", &agent)?;
    table(&mut text, "Controller", &controller)?;
    values(&mut text, &[("agent", &agent), ("controller", &controller)])?;
    Ok(text)
}

/// An agent that sees a pod, and cannot read it.
fn example_agent() -> AgentMetrics {
    let at = Time(Timestamp::UNIX_EPOCH);
    let status = SandboxHealthStatus {
        sandbox: Some(Sandbox { id: None, started_at: at.clone(), boot_id: None, pause_version: None }),
        processes: Some(Processes {
            zombies: 0,
            zombies_peak: 0,
            total: 0,
            reaped_total: Some(0),
            observed_at: at,
            accumulating_since: None,
        }),
        read_failure: Some(ReadFailure { reason: String::new(), message: String::new() }),
        ..SandboxHealthStatus::default()
    };
    let metrics = AgentMetrics::default();
    metrics.set_node_zombies(Some(1));
    metrics.set_pods(vec![PodSeries {
        namespace: String::new(),
        pod: String::new(),
        status,
        restarts: [].into(),
    }]);
    metrics
}

/// A controller that knows a node which nobody sees.
fn example_controller() -> ControllerMetrics {
    let metrics = ControllerMetrics::default();
    metrics.set_sights(Blindness::ALL.map(|why| (why.reason(), Sight::Blind(why))));
    metrics
}

fn parse(text: &str) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            metrics.push(Metric { name: name.to_owned(), help: help.to_owned(), ..Metric::default() });
            continue;
        }
        let Some(metric) = metrics.last_mut() else { continue };
        if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            kind.clone_into(&mut metric.kind);
        } else if let Some((_, labels)) = line.split_once('{') {
            // None of the values that we show has a comma or a quote.
            let labels = labels.rsplit_once('}').map_or(labels, |(labels, _)| labels);
            for (label, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                let values = metric.labels.entry(label.to_owned()).or_default();
                values.insert(value.trim_matches('"').to_owned());
            }
        }
    }
    metrics
}

fn table(text: &mut String, part: &str, metrics: &[Metric]) -> std::fmt::Result {
    writeln!(text, "### {part}\n")?;
    writeln!(text, "| name | type | labels | meaning | stability |")?;
    writeln!(text, "| --- | --- | --- | --- | --- |")?;
    for Metric { name, kind, help, labels } in metrics {
        let labels: Vec<_> =
            labels.keys().filter(|label| *label != "le").map(|label| format!("`{label}`")).collect();
        let (labels, help) = (labels.join(", "), help.trim_end_matches('.'));
        let stability = if OWN.iter().any(|own| name.starts_with(own)) { "internal" } else { "stable" };
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} | {stability} |")?;
    }
    writeln!(text)
}

/// The values of the labels that have a fixed set of them.
fn values(text: &mut String, parts: &[(&str, &[Metric])]) -> std::fmt::Result {
    writeln!(text, "### Values of labels\n")?;
    writeln!(text, "| part | metric | label | values |")?;
    writeln!(text, "| --- | --- | --- | --- |")?;
    for (part, metrics) in parts {
        for Metric { name, labels, .. } in *metrics {
            let fixed = labels
                .iter()
                .filter(|(label, values)| *label == "name" || (*label != "le" && values.len() > 1));
            for (label, values) in fixed.filter(|(label, _)| *label != "node") {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                writeln!(text, "| {part} | `{name}` | `{label}` | {} |", values.join(", "))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_as_prometheus_reads_it() {
        let text = "# HELP a_total Some words.\n# TYPE a_total counter\na_total{x=\"1\",y=\"2\"} 0\na_total{x=\"3\",y=\"2\"} 0\n\
                    # HELP b Others.\n# TYPE b gauge\nb 7\n";
        let [a, b] = &parse(text)[..] else { panic!("{:?}", parse(text)) };
        assert_eq!(
            (a.name.as_str(), a.kind.as_str(), a.help.as_str()),
            ("a_total", "counter", "Some words.")
        );
        assert_eq!(a.labels["x"], BTreeSet::from(["1".to_owned(), "3".to_owned()]));
        assert_eq!((b.name.as_str(), b.labels.len()), ("b", 0));
    }

    #[test]
    fn every_metric_of_the_contract_is_in_the_table() {
        let table = markdown().unwrap();
        for row in [
            "| `sandbox_zombie_processes` | gauge | `namespace`, `pod` |",
            "| `sandbox_processes` | gauge | `namespace`, `pod` |",
            "| `sandbox_reaped_processes_total` | counter | `namespace`, `pod` |",
            "| `sandbox_restarts_total` | counter | `namespace`, `pod`, `reason` |",
            "| `sandbox_start_time_seconds` | gauge | `namespace`, `pod` |",
            "| `sandbox_status_read_errors_total` | counter | `reason` |",
            "| `sandbox_health_build_info` | gauge | `part`, `version` |",
            "| `sandbox_health_api_requests_total` | counter | `result`, `verb` |",
            "| `workqueue_depth` | gauge | `name` |",
            "| `workqueue_adds_total` | counter | `name` |",
            "| `workqueue_queue_duration_seconds` | histogram | `name` |",
            "| `workqueue_work_duration_seconds` | histogram | `name` |",
            "| `workqueue_retries_total` | counter | `name` |",
        ] {
            assert!(table.contains(row), "{row} is not in\n{table}");
        }
    }

    #[test]
    fn no_label_but_these_grows_with_the_cluster() {
        let metrics = [example_agent().render(), example_controller().render()].map(Result::unwrap);
        for metric in metrics.iter().flat_map(|text| parse(text)) {
            for label in metric.labels.keys() {
                let known = [
                    "namespace",
                    "pod",
                    "node",
                    "name",
                    "reason",
                    "verb",
                    "result",
                    "state",
                    "version",
                    "part",
                    "le",
                ];
                assert!(known.contains(&label.as_str()), "{label} of {}", metric.name);
            }
        }
    }
}
