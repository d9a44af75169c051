//! The text of `/metrics` and the log. Metrics are served in Prometheus' text format, version 0.0.4, which every scraper and
//! `promtool check metrics` read; the library encodes OpenMetrics only.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

/// Something that can be rendered for Prometheus.
pub trait Metrics: Send + Sync + 'static {
    fn render(&self) -> Result<String, std::fmt::Error>;
}

/// Media type of the text.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Encodes a registry. In the head of a metric, OpenMetrics names a counter or an info without the suffix of its samples.
pub fn text(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut open_metrics = String::new();
    encode_registry(&mut open_metrics, registry)?;
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            help = line.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            let help = help.take().unwrap_or_default();
            text.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    #[test]
    fn metric_head_has_the_name_of_its_samples() {
        let mut registry = Registry::default();
        let counter = Family::<Vec<(String, String)>, Counter>::default();
        // A label value that looks like a head.
        counter.get_or_create(&vec![("pod".to_owned(), "\n# TYPE x gauge".to_owned())]).inc();
        registry.register("reaped", "Orphans", counter);
        registry.register_with_unit("start", "When", Unit::Seconds, Gauge::<i64>::default());
        registry.register("build", "What", Info::new([("version", "1")]));
        let took = Histogram::new([1.0]);
        took.observe(0.5);
        registry.register("took", "How long", took);
        let expected = "# HELP reaped_total Orphans.\n# TYPE reaped_total counter\n\
                        reaped_total{pod=\"\\n# TYPE x gauge\"} 1\n\
                        # HELP start_seconds When.\n# TYPE start_seconds gauge\nstart_seconds 0\n\
                        # HELP build_info What.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
                        # HELP took How long.\n# TYPE took histogram\ntook_sum 0.5\ntook_count 1\n\
                        took_bucket{le=\"1.0\"} 1\ntook_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(text(&registry).unwrap(), expected);
    }
}
