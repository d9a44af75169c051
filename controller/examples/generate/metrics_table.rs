//! The tables of metrics in docs/reference/metrics.md, made from the metrics that agent and controller render with a series of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Error, Write as _};

use sandbox_health::agent::metrics::{AgentMetrics, PodSeries};
use sandbox_health::controller::metrics::ControllerMetrics;
use sandbox_health::core::conditions::{AgentState, UnavailableReason};
use sandbox_health::core::sandbox::{FoundSandbox, Now, SandboxState, ZombieThreshold};
use sandbox_health::core::zombies::NodeZombies;
use sandbox_health::crd::Source;
use sandbox_health::procfs::pause::{PauseReport, Reading};
use sandbox_health::telemetry::Metrics as _;

/// Metrics of the program itself may change; all others are stable.
const INTERNAL: &str = "sandboxhealth_";

/// A metric as it is rendered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    name: String,
    kind: String,
    help: String,
    /// Labels with their values.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// All tables.
pub(crate) fn markdown() -> Result<String, Error> {
    let agent = parse(&agent_metrics().render()?);
    let controller = parse(&controller_metrics().render()?);
    let mut text = String::new();
    table(&mut text, "Agent", &agent)?;
    table(&mut text, "Controller", &controller)?;
    values(&mut text, &[("agent", &agent), ("controller", &controller)])?;
    Ok(text)
}

/// With a series of each metric.
fn agent_metrics() -> AgentMetrics {
    let (mut sandbox, now) = (SandboxState::default(), Now::read());
    let found =
        FoundSandbox { id: "", started_at: now.time, boot_id: None, is_replacement: false, services: &[] };
    sandbox.sandbox_found(found, now);
    let pause = PauseReport { peak_zombies: 0, reaped: 0, version: String::new() };
    let reading =
        Reading { zombies: 0, processes: 0, threads: 0, source: Source::PauseStatusFile, pause: Some(pause) };
    sandbox.read(Ok(reading), now, ZombieThreshold(1));
    let metrics = AgentMetrics::default();
    metrics.set_pods(vec![PodSeries { sandbox, ..PodSeries::default() }]);
    metrics.set_node_zombies(Some(NodeZombies { host: 0, watched_pods: 0, other_pods: 0 }));
    metrics.requests().example();
    metrics
}

/// With a series of each metric.
fn controller_metrics() -> ControllerMetrics {
    let metrics = ControllerMetrics::default();
    let reasons = [UnavailableReason::AgentNotReady, UnavailableReason::NodeNotReady];
    metrics.set_agents(reasons.map(|reason| (reason.into_str(), AgentState::Unavailable(reason))), 0);
    metrics.set_failed_switches(["n".to_owned()]);
    metrics.requests().example();
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
            // No value of the example has a comma or a quote.
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
        let stability = if name.starts_with(INTERNAL) { "internal" } else { "stable" };
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} | {stability} |")?;
    }
    writeln!(text)
}

/// The values of labels that have a fixed set.
fn values(text: &mut String, parts: &[(&str, &[Metric])]) -> std::fmt::Result {
    writeln!(text, "### Values of labels\n")?;
    writeln!(text, "| part | metric | label | values |")?;
    writeln!(text, "| --- | --- | --- | --- |")?;
    for (part, metrics) in parts {
        for Metric { name, labels, .. } in *metrics {
            let fixed = labels.iter().filter(|(label, values)| *label != "le" && values.len() > 1);
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
    fn metric_is_parsed_from_its_text() {
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
    fn table_has_the_metrics_of_the_contract() {
        let table = markdown().unwrap();
        for row in [
            "| `pod_sandbox_zombie_processes` | gauge | `namespace`, `node`, `pod` |",
            "| `pod_sandbox_processes` | gauge | `namespace`, `node`, `pod` |",
            "| `pod_sandbox_reaped_processes_total` | counter | `namespace`, `node`, `pod` |",
            "| `pod_sandbox_restarts_total` | counter | `namespace`, `node`, `pod`, `reason` |",
            "| `pod_sandbox_start_time_seconds` | gauge | `namespace`, `node`, `pod` |",
            "| `pod_sandbox_readable` | gauge | `namespace`, `node`, `pod` |",
            "| `sandboxhealth_read_errors_total` | counter | `reason` |",
            "| `sandboxhealth_build_info` | gauge | `component`, `version` |",
            "| `sandboxhealth_api_requests_total` | counter | `outcome`, `resource`, `verb` |",
            "| `sandboxhealth_reconcile_duration_seconds` | histogram |",
            "| `sandboxhealth_reconcile_errors_total` | counter |",
        ] {
            assert!(table.contains(row), "{row} is not in\n{table}");
        }
    }

    #[test]
    fn labels_are_of_a_known_set() {
        let metrics = [agent_metrics().render(), controller_metrics().render()].map(Result::unwrap);
        for metric in metrics.iter().flat_map(|text| parse(text)) {
            for label in metric.labels.keys() {
                let known = [
                    "namespace",
                    "pod",
                    "node",
                    "uid",
                    "reason",
                    "verb",
                    "resource",
                    "outcome",
                    "state",
                    "version",
                    "pause_version",
                    "source",
                    "where",
                    "component",
                    "le",
                ];
                assert!(known.contains(&label.as_str()), "{label} of {}", metric.name);
            }
        }
    }
}
