//! The chart's Grafana dashboard as a file: its panels, and their queries as Grafana would send them. What they answer is
//! Prometheus' affair ([`crate::monitoring::prometheus`]), how it looks [`picture`]'s.

#[cfg(feature = "measure")]
mod activity;
#[cfg(feature = "measure")]
mod command;
#[cfg(feature = "measure")]
mod picture;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::build::cargo::project_file;

#[cfg(feature = "measure")]
pub use command::{CommandLine, run};

const FILE: &str = "charts/sandbox-health/files/dashboard.json";

/// A panel that shows something. Rows, which only hold a title, are among them without queries.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// `stat`, `timeseries`, `table` or `row`.
    pub kind: String,
    /// As they stand in the file, with Grafana's variables.
    queries: Vec<Query>,
    /// The whole of it, as Grafana reads it.
    #[cfg_attr(not(any(test, feature = "measure")), expect(dead_code, reason = "only the picture needs it"))]
    json: Value,
}

#[derive(Debug, Clone)]
struct Query {
    expression: String,
    #[cfg_attr(not(feature = "measure"), expect(dead_code, reason = "only the picture needs it"))]
    legend: String,
}

/// The values of Grafana's variables. Of clusters, namespaces and nodes all are selected.
#[derive(Debug, Clone)]
pub struct Variables {
    /// Name of the selected pod.
    pub pod: String,
    /// The whole time range, such as 1h.
    pub range: String,
    /// Time between two points, such as 2m.
    pub interval: String,
    /// Such as 1m: four scrapes, at least.
    pub rate_interval: String,
}

/// The dashboard's panels, from top to bottom.
///
/// # Errors
///
/// When the file is not one that Grafana could read.
pub fn panels() -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(project_file(FILE)?)?).context(FILE)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    panels
        .iter()
        .map(|panel| Panel::of(panel).with_context(|| format!("the panel {}", panel["title"])))
        .collect()
}

impl Panel {
    fn of(json: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let targets = json["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        let query = |target: &Value| {
            Some(Query {
                expression: text(&target["expr"])?,
                legend: text(&target["legendFormat"]).unwrap_or_default(),
            })
        };
        let panel = Self {
            title: text(&json["title"]).context("no title")?,
            kind: text(&json["type"]).context("no type")?,
            queries: targets.iter().map(query).collect::<Option<_>>().context("a target without a query")?,
            json: json.clone(),
        };
        ensure!(panel.kind == "row" || !panel.queries.is_empty(), "no query");
        Ok(panel)
    }

    /// Its queries, ready to be asked.
    #[must_use]
    pub fn queries(&self, variables: &Variables) -> Vec<String> {
        self.queries.iter().map(|query| variables.put_into(&query.expression)).collect()
    }
}

impl Variables {
    /// With points two minutes apart, as in the panels of restarts.
    #[must_use]
    pub fn of(pod: &str, range: &str) -> Self {
        let [pod, range, interval, rate_interval] = [pod, range, "2m", "1m"].map(str::to_owned);
        Self { pod, range, interval, rate_interval }
    }

    fn put_into(&self, text: &str) -> String {
        let values = [
            ("$__rate_interval", &*self.rate_interval),
            ("$__interval", &self.interval),
            ("$__range", &self.range),
            ("$cluster", ".*"),
            ("$namespace", ".*"),
            ("$node", ".*"),
            ("$pod", &self.pod),
            // The default of the dashboard.
            ("$zombies", "5"),
        ];
        values.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_of_a_query_is_known() {
        for panel in panels().unwrap() {
            for query in panel.queries(&Variables::of("web", "1h")) {
                assert!(!query.contains('$'), "{}: {query}", panel.title);
            }
        }
    }

    #[test]
    fn no_two_panels_lie_over_each_other() {
        let mut taken = std::collections::HashSet::new();
        for panel in panels().unwrap() {
            let at = |key: &str| panel.json["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{}", panel.title);
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{} at {x}, {y}", panel.title);
                }
            }
        }
    }
}
