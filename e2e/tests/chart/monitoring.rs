//! What the chart has for the Prometheus Operator and for Grafana: rendered only if enabled, and the files as they are. alerts.test.yaml has
//! when the alerts fire, which promtool tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::doc_blocks;
use e2e::monitoring::dashboard::{self, Variables};
use e2e::monitoring::prometheus;
use serde_json::{Value, json};

use crate::helm::{FULLNAME, Helm, NAMESPACE, read, yaml};
use crate::rendered::{args, list, pod};

const ALL: [&str; 3] =
    ["podMonitor.enabled=true", "prometheusRule.enabled=true", "grafanaDashboard.enabled=true"];

pub(super) fn each_is_rendered_only_if_enabled(helm: &Helm) -> Result<()> {
    let without = helm.render(&[])?.0.len();
    for (value, kind) in ALL.into_iter().zip(["PodMonitor", "PrometheusRule", "ConfigMap"]) {
        let rendered = helm.render(&[value])?;
        ensure!(rendered.of_kind(kind).count() == 1, "{value} makes no {kind}");
        ensure!(rendered.0.len() == without + 1, "{value} makes more than a {kind}");
    }
    for object in &helm.render(&ALL)?.0 {
        let (labels, namespace) = (&object["metadata"]["labels"], &object["metadata"]["namespace"]);
        ensure!(labels["app.kubernetes.io/name"] == "sandbox-health", "labels of {}", object["kind"]);
        if ["PodMonitor", "PrometheusRule", "ConfigMap"].map(Value::from).contains(&object["kind"]) {
            ensure!(*namespace == NAMESPACE, "namespace of {}", object["kind"]);
        }
    }
    Ok(())
}

pub(super) fn pod_monitor_selects_both_and_keeps_the_pods_labels(helm: &Helm) -> Result<()> {
    let rendered =
        helm.render(&[ALL[0], "podMonitor.interval=15s", "podMonitor.additionalLabels.release=prometheus"])?;
    let monitor = rendered.get("PodMonitor", FULLNAME)?;
    ensure!(monitor["metadata"]["labels"]["release"] == "prometheus", "{}", monitor["metadata"]);
    let selector = monitor["spec"]["selector"]["matchLabels"].as_object().context("no selector")?;
    ensure!(selector.len() == 2, "{selector:?}");
    let [endpoint] = list(&monitor["spec"]["podMetricsEndpoints"]) else { anyhow::bail!("not one endpoint") };
    ensure!(endpoint["honorLabels"] == true && endpoint["interval"] == "15s", "{endpoint}");
    for workload in rendered.workloads()? {
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        ensure!(
            selector.iter().all(|(key, value)| &labels[key] == value),
            "{selector:?} does not select {labels}"
        );
        let ports = &workload["spec"]["template"]["spec"]["containers"][0]["ports"];
        ensure!(list(ports).iter().any(|port| port["name"] == endpoint["port"]), "{ports}");
    }
    let plain = helm.render(&ALL[..1])?;
    let interval = &plain.get("PodMonitor", FULLNAME)?["spec"]["podMetricsEndpoints"][0]["interval"];
    ensure!(interval.is_null(), "{interval}");
    Ok(())
}

pub(super) fn rules_are_the_file_with_labels_and_runbooks(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[
        ALL[1],
        "prometheusRule.alertLabels.team=platform",
        "prometheusRule.alertLabels.severity=none",
        "prometheusRule.runbookURL=https://wiki.example/runbooks/",
    ])?;
    let mut expected = yaml(&read("files/alerts.yaml")?)?;
    for rule in rules_of(&mut expected)? {
        let url =
            format!("https://wiki.example/runbooks/{}.html", rule["alert"].as_str().context("no name")?);
        rule["annotations"]["runbook_url"] = url.into();
        rule["labels"]["team"] = "platform".into();
    }
    let spec = &rendered.get("PrometheusRule", FULLNAME)?["spec"];
    ensure!(spec == &expected, "{spec:#}");
    let plain = helm.render(&ALL[1..2])?;
    let spec = &plain.get("PrometheusRule", FULLNAME)?["spec"];
    ensure!(spec == &yaml(&read("files/alerts.yaml")?)?, "{spec:#}");
    Ok(())
}

/// No node of the tests has a Prometheus Operator.
pub(super) fn documented_upgrades_have_their_effect(helm: &Helm) -> Result<()> {
    let upgraded = |page: &str, with: &str| {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page))?;
        let blocks = doc_blocks::commands(Path::new(page), &text)?;
        let block = blocks.iter().find(|block| block.text.contains(with));
        helm.render_upgrade(&block.with_context(|| format!("{page} does not set {with}"))?.text)
    };
    let monitored = upgraded("docs/operations/monitoring.md", "podMonitor.enabled")?;
    for kind in ["PodMonitor", "PrometheusRule"] {
        let labels = &monitored.get(kind, FULLNAME)?["metadata"]["labels"];
        ensure!(labels["release"] == "PROMETHEUS", "{kind}: {labels}");
    }
    monitored.get("ConfigMap", &format!("{FULLNAME}-dashboard"))?;
    let preloaded = upgraded("docs/nodes/README.md", "pause.preload.enabled")?;
    let containers = list(&pod(preloaded.agent()?)["containers"]);
    ensure!(containers.iter().any(|container| container["name"] == "pause"), "{containers:#?}");
    let more =
        upgraded("docs/operations/runbooks/SandboxHealthObjectLimitReached.md", "controller.maxObjects")?;
    ensure!(args(more.controller()?)?.contains(&"--max-objects=20000"), "{:?}", args(more.controller()?)?);
    Ok(())
}

pub(super) fn dashboard_is_the_file(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[ALL[2], "grafanaDashboard.annotations.grafana_folder=Kubernetes"])?;
    let map = rendered.get("ConfigMap", &format!("{FULLNAME}-dashboard"))?;
    ensure!(map["metadata"]["labels"]["grafana_dashboard"] == "1", "{}", map["metadata"]);
    ensure!(
        map["metadata"]["annotations"] == json!({ "grafana_folder": "Kubernetes" }),
        "{}",
        map["metadata"]
    );
    let text = map["data"]["sandbox-health.json"].as_str().context("no dashboard")?;
    ensure!(text == read("files/dashboard.json")?.trim_end(), "it differs from files/dashboard.json");
    Ok(())
}

pub(super) fn documented_scrape_finds_pods_of_both_ip_families() -> Result<()> {
    let pod = |ip: &str, scrape: &str| {
        json!({
            "metadata": {
                "namespace": "ops",
                "name": "agent",
                "annotations": {"prometheus.io/scrape": scrape, "prometheus.io/port": "8080"},
            },
            "spec": {"nodeName": "n", "containers": [{"ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": ip},
        })
    };
    let pods = [pod("10.0.0.1", "true"), pod("fd00:10::a1", "true"), pod("10.0.0.2", "false")];
    let found = prometheus::addresses(&json!({"items": pods}), tempfile::tempdir()?.path())?;
    ensure!(found.iter().eq(["10.0.0.1:8080", "[fd00:10::a1]:8080"]), "{found:?}");
    Ok(())
}

/// By Grafana's own schema, whose types a Go module has. What is for an import alone is not part of it.
pub(super) fn dashboard_is_valid_by_grafanas_schema() -> Result<()> {
    let mut dashboard: Value = serde_json::from_str(&read("files/dashboard.json")?)?;
    let fields = dashboard.as_object_mut().context("no object")?;
    for field in ["__inputs", "__elements", "__requires"] {
        fields.remove(field).with_context(|| format!("an import needs {field}"))?;
    }
    let errors = schema_errors(&dashboard)?;
    ensure!(errors.is_empty(), "{errors}");
    for panel in list(&dashboard["panels"]) {
        let known = ["row", "stat", "table", "timeseries"].map(Value::from).contains(&panel["type"]);
        ensure!(known, "the schema of {} is not checked", panel["type"]);
    }
    dashboard["panels"][1]["options"]["unknown"] = true.into();
    let errors = schema_errors(&dashboard)?;
    ensure!(errors.contains("panels[1].options.Options: unexpected field 'unknown'"), "{errors}");
    Ok(())
}

fn schema_errors(dashboard: &Value) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), dashboard.to_string())?;
    let ran = Command::new("go")
        .args(["run", "-mod=readonly", "."])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream/grafana-dashboard"))
        .envs([("CGO_ENABLED", "0"), ("GOWORK", "off")])
        .env_remove("GOFLAGS")
        .stdin(Stdio::from(fs::File::open(file.path())?))
        .output()
        .context("cannot run go")?;
    let errors = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    ensure!(ran.status.success() == errors.is_empty(), "{}: {errors}", ran.status);
    Ok(errors)
}

/// An import asks for no data source, and Grafana's sidecar, which resolves no input, loads the same file: the data source is a variable.
pub(super) fn dashboard_needs_no_input_and_no_label_cluster() -> Result<()> {
    let text = read("files/dashboard.json")?;
    let dashboard: Value = serde_json::from_str(&text)?;
    ensure!(dashboard["__inputs"] == json!([]), "{}", dashboard["__inputs"]);
    let required: BTreeSet<_> = list(&dashboard["__requires"]).iter().map(|it| it["id"].as_str()).collect();
    let kinds = list(&dashboard["panels"]).iter().map(|panel| panel["type"].as_str());
    let used =
        kinds.filter(|kind| *kind != Some("row")).chain([Some("grafana"), Some("prometheus")]).collect();
    ensure!(required == used, "{required:?}, and it uses {used:?}");
    let sources: BTreeSet<_> =
        text.lines().filter(|line| line.contains("\"uid\": ")).map(str::trim).collect();
    let expected =
        ["\"uid\": \"${datasource}\"", "\"uid\": \"-- Grafana --\"", "\"uid\": \"sandbox-health\","];
    ensure!(sources == BTreeSet::from(expected), "{sources:?}");
    ensure!(text.matches("sandbox-health\"").count() == 2, "its uid is also in a link");
    // All of a label that no series has: any value, and none.
    let of_cluster = list(&dashboard["templating"]["list"]).iter().find(|it| it["name"] == "cluster");
    let of_cluster = of_cluster.context("no variable cluster")?;
    ensure!(of_cluster["allValue"] == ".*" && of_cluster["includeAll"] == true, "{of_cluster}");
    let of_zombies = list(&dashboard["templating"]["list"]).iter().find(|it| it["name"] == "zombies");
    let threshold = of_zombies.and_then(|it| it["query"].as_str()).context("no variable zombies")?;
    let default = yaml(&read("values.yaml")?)?["agent"]["zombieThreshold"].to_string();
    ensure!(default == threshold, "{threshold}, and the value is {default}");
    for expression in text.lines().filter(|line| line.contains("\"expr\": ")) {
        let selectors = expression.matches('{').count();
        ensure!(expression.matches("{cluster=~\\\"$cluster\\\"").count() == selectors, "{expression}");
    }
    Ok(())
}

/// A question to a panel of the dashboard, with what it answers while `series` are there.
struct Asked<'a> {
    title: &'a str,
    pod: &'a str,
    series: Vec<(String, String)>,
    at: String,
    samples: Vec<(&'a str, f64)>,
}

impl Asked<'_> {
    fn test(&self) -> Result<Value> {
        let mut panels = dashboard::panels()?.into_iter().filter(|panel| panel.title == self.title);
        let panel = panels.next().with_context(|| format!("no panel {}", self.title))?;
        let [query] = &panel.queries(&Variables::of(self.pod, "1h"))[..] else {
            anyhow::bail!("{} has not one query", self.title)
        };
        let samples: Vec<_> =
            self.samples.iter().map(|(labels, value)| json!({"labels": labels, "value": value})).collect();
        let series: Vec<_> =
            self.series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
        Ok(json!({
            "name": format!("{} of {:?} at {}", self.title, self.pod, self.at),
            "interval": "30s",
            "input_series": series,
            "promql_expr_test": [{"expr": query, "eval_time": self.at, "exp_samples": samples}],
        }))
    }
}

/// By promtool.
fn all_answer(asked: &[Asked<'_>]) -> Result<()> {
    let tests = asked.iter().map(Asked::test).collect::<Result<Vec<_>>>()?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), json!({"rule_files": [], "tests": tests}).to_string())?;
    prometheus::check(&["test", "rules", &file.path().display().to_string()], "")
}

fn always(series: impl Into<String>, value: u32) -> (String, String) {
    (series.into(), format!("{value}x80"))
}

/// Whatever the moment of the restart is within an interval of two minutes, also of a pod that is new.
pub(super) fn dashboard_draws_each_restart_once() -> Result<()> {
    let restarts = |pod: &str| {
        format!(
            "pod_sandbox_restarts_total{{namespace=\"shop\",pod=\"{pod}\",node=\"a\",reason=\"PauseExited\"}}"
        )
    };
    let mut asked = vec![];
    for (before, drawn_at) in [(5, 4), (6, 4), (7, 4), (8, 4), (9, 6), (12, 6), (13, 8)] {
        for minutes in (2..20).step_by(2) {
            asked.push(Asked {
                title: "Restarts by reason",
                pod: "",
                series: vec![
                    (restarts("old"), format!("0x{} 1x60", before - 1)),
                    (restarts("new"), format!("_x16 0x{} 1x60", before - 1)),
                ],
                at: format!("{minutes}m"),
                samples: vec![(
                    "{reason=\"PauseExited\"}",
                    f64::from(u8::from(minutes == drawn_at) + u8::from(minutes == drawn_at + 8)),
                )],
            });
        }
    }
    all_answer(&asked)
}

pub(super) fn dashboard_keeps_pods_of_one_name_apart() -> Result<()> {
    let of = |metric: &str, value: u32| {
        ["cluster=\"one\",namespace=\"shop\"", "cluster=\"two\",namespace=\"shop\"", "namespace=\"test\""]
            .map(|place| always(format!("{metric}{{{place},pod=\"web\",node=\"a\"}}"), value))
    };
    let keys = [
        "{cluster=\"one\",namespace=\"shop\",pod=\"web\"}",
        "{cluster=\"two\",namespace=\"shop\",pod=\"web\"}",
        "{namespace=\"test\",pod=\"web\"}",
    ];
    let limits = || {
        let of = of("container_threads_max", 1000);
        of.map(|(series, values)| (series.replace("node=\"a\"", "container=\"\""), values))
    };
    let ask = |title, series, samples| Asked { title, pod: "web", series, at: "10m".to_owned(), samples };
    all_answer(&[
        ask("Pods", of("pod_sandbox_start_time_seconds", 7).into(), vec![("{}", 3.0)]),
        ask("Pods with zombies", of("pod_sandbox_zombie_processes", 10).into(), vec![("{}", 3.0)]),
        ask("Readable", of("pod_sandbox_readable", 1).into(), keys.map(|key| (key, 1.0)).into()),
        ask(
            "PID limit used",
            of("pod_sandbox_threads", 250).into_iter().chain(limits()).collect(),
            keys.map(|key| (key, 0.25)).into(),
        ),
    ])
}

pub(super) fn dashboard_shows_unobserved_pods_as_unknown() -> Result<()> {
    let readable =
        |pod: &str, value| always(format!("pod_sandbox_readable{{namespace=\"shop\",pod=\"{pod}\"}}"), value);
    let (unread, none, well) = (readable("unread", 0), readable("none", 0), readable("well", 1));
    let agent = always("sandboxhealth_build_info{component=\"agent\"}", 1);
    let all = [unread, none, agent.clone(), well.clone()];
    let ask = |title, pod, series: &[_], samples| Asked {
        title,
        pod,
        series: series.to_vec(),
        at: "5m".to_owned(),
        samples,
    };
    let of = |labels, value| vec![(labels, value)];
    all_answer(&[
        ask("Readable", "well", &all, of("{namespace=\"shop\",pod=\"well\"}", 1.0)),
        ask("Readable", "unread", &all, of("{namespace=\"shop\",pod=\"unread\"}", 0.0)),
        ask("Readable", "gone", &all, vec![]),
        ask("Unreadable pods", "", &all, of("{}", 2.0)),
        ask("Unreadable pods", "", &[agent.clone(), well], of("{}", 0.0)),
        ask("Unreadable pods", "", &[], vec![]),
        ask("Pods with zombies", "", &[agent], of("{}", 0.0)),
        ask("Pods with zombies", "", &[], vec![]),
    ])?;
    // A pod that has only a failure can be selected, too.
    let text = read("files/dashboard.json")?;
    let file: Value = serde_json::from_str(&text)?;
    for variable in list(&file["templating"]["list"]).iter().filter(|it| it["type"] == "query") {
        let asked = variable["query"]["query"].as_str().context("a variable that asks nothing")?;
        ensure!(asked.contains("\"pod_sandbox_start_time_seconds|pod_sandbox_readable\""), "{asked}");
        ensure!(variable["definition"] == *asked, "{variable}");
    }
    Ok(())
}

pub(super) fn dashboard_counts_nodes_by_newest_pause_version() -> Result<()> {
    let series: Vec<_> = [
        ("a", "old", "", 100),
        ("a", "new", "0.1.0", 200),
        ("b", "web", "", 150),
        ("c", "web", "0.1.0", 150),
    ]
    .into_iter()
    .flat_map(|(node, pod, version, started_at)| {
        let labels = format!("namespace=\"shop\",pod=\"{pod}\",node=\"{node}\"");
        let info = format!("pod_sandbox_info{{{labels},uid=\"u\",pause_version=\"{version}\"}}");
        let start = format!("pod_sandbox_start_time_seconds{{{labels}}}");
        [(info, 1), (start, started_at)]
    })
    .map(|(series, value)| always(series, value))
    .collect();
    let samples = vec![("{pause_version=\"0.1.0\"}", 2.0), ("{pause_version=\"third-party\"}", 1.0)];
    all_answer(&[Asked { title: "Nodes by pause version", pod: "", series, at: "5m".to_owned(), samples }])
}

pub(super) fn alerts_have_their_labels_and_a_runbook() -> Result<()> {
    let mut alerts = yaml(&read("files/alerts.yaml")?)?;
    let mut pages = BTreeSet::new();
    for rule in rules_of(&mut alerts)? {
        let name = rule["alert"].as_str().context("no name")?;
        pages.insert(format!("{name}.md"));
        ensure!(
            ["warning", "critical"].map(Value::from).contains(&rule["labels"]["severity"]),
            "severity of {name}"
        );
        let (expression, description) =
            (rule["expr"].as_str().unwrap_or_default(), rule["annotations"]["description"].to_string());
        // What counts pods has the labels of its first line alone.
        let counts = expression.starts_with("count by ");
        let expression = if counts { expression.lines().next().unwrap_or_default() } else { expression };
        for label in ["namespace", "pod", "node"] {
            // The description must name the labels of the aggregation; a pod is enough to find its node.
            let grouped =
                expression.contains(&format!("({label}")) || expression.contains(&format!(", {label}"));
            let is_named = description.contains(&format!("$labels.{label} }}}}"));
            ensure!(
                is_named || !grouped || label == "node" && description.contains("$labels.pod"),
                "{label} of {name}"
            );
        }
        ensure!(description.contains("kubectl "), "{name} does not say what to run");
        let page = runbook(name)?;
        let (head, rest) = page.split_once("```sh\n").with_context(|| format!("{name}.md has no command"))?;
        ensure!(head.lines().count() <= 4, "{name}.md does not begin with the command");
        ensure!(rest.starts_with("kubectl "), "{name}.md begins with another command");
        ensure!(head.starts_with(&format!("# {name}\n")), "the title of {name}.md");
        let headings: Vec<_> = page.lines().filter(|line| line.starts_with("## ")).collect();
        ensure!(headings == ["## Impact", "## Diagnosis", "## Fix"], "{name}.md has {headings:?}");
    }
    let folder = fs::read_dir(runbooks())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let found: BTreeSet<String> = folder.collect::<Result<_>>()?;
    ensure!(found == pages, "{found:?}, and the alerts are {pages:?}");
    let overview = fs::read_to_string(runbooks().join("../alerts.md"))?;
    ensure!(
        pages.iter().all(|page| overview.contains(&format!("(runbooks/{page})"))),
        "docs/operations/alerts.md lacks one"
    );
    Ok(())
}

/// Whatever the release and its objects are called.
pub(super) fn commands_of_alerts_select_their_pods(helm: &Helm) -> Result<()> {
    let rendered = helm.render_as("42", &["nameOverride=other", "fullnameOverride=another"])?;
    let mut selectors = 0;
    for rule in rules_of(&mut yaml(&read("files/alerts.yaml")?)?)? {
        let description = rule["annotations"]["description"].as_str().unwrap_or_default();
        let Some((_, rest)) = description.split_once("kubectl get pods -A -l ") else { continue };
        selectors += 1;
        let selector = rest.split(' ').next().unwrap_or_default();
        let pairs: Vec<_> = selector.split(',').filter_map(|pair| pair.split_once('=')).collect();
        ensure!(pairs.len() == 2, "{selector}");
        let labels =
            rendered.workloads()?.map(|workload| &workload["spec"]["template"]["metadata"]["labels"]);
        let selected = labels.iter().filter(|labels| pairs.iter().all(|(key, value)| labels[*key] == *value));
        ensure!(selected.count() == 1, "{selector} selects not one of {labels:#?}");
    }
    ensure!(selectors == 2, "{selectors} selectors");
    Ok(())
}

/// kube-prometheus-stack drops the limit of a pod by this word in one of its rules.
pub(super) fn alerts_page_keeps_the_dropped_metric() -> Result<()> {
    let page = fs::read_to_string(runbooks().join("../alerts.md"))?;
    ensure!(page.contains("`|threads_max`"), "docs/operations/alerts.md does not name it");
    let mut alerts = yaml(&read("files/alerts.yaml")?)?;
    let dropped = "container_threads_max";
    let needs = rules_of(&mut alerts)?.iter().any(|rule| rule["expr"].to_string().contains(dropped));
    ensure!(needs, "no alert needs {dropped}");
    Ok(())
}

pub(super) fn alerts_fire_as_promtool_expects() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let alerts = folder.join("../charts/sandbox-health/files/alerts.yaml");
    prometheus::check(&["check", "rules", &alerts.display().to_string()], "")?;
    let tests = folder.join("tests/chart/alerts.test.yaml");
    let text = fs::read_to_string(&tests)?;
    for rule in rules_of(&mut yaml(&read("files/alerts.yaml")?)?)? {
        let name = rule["alert"].as_str().context("no name")?;
        let of_alert = || text.split("alertname: ").skip(1).filter(|rest| rest.starts_with(name));
        let silent = of_alert().filter(|rest| rest.contains("exp_alerts: []")).count();
        ensure!(silent > 0 && of_alert().count() > silent, "{name} is not seen both firing and not firing");
        let severity = rule["labels"]["severity"].as_str().context("no severity")?;
        let fires = of_alert().any(|rest| rest.contains(&format!("severity: {severity},")));
        let alone = of_alert().any(|rest| rest.contains(&format!("severity: {severity} }}")));
        ensure!(fires || alone, "{name} is not seen firing as {severity}");
    }
    prometheus::check(&["test", "rules", &tests.display().to_string()], "")
}

/// The same tests, of what the chart renders for a Prometheus without honorLabels, with the labels that such a one gives to the series.
pub(super) fn alerts_with_exported_labels_fire_too() -> Result<()> {
    let helm = Helm::find()?.context("no Helm")?;
    let rendered = helm.render(&[ALL[1], "metrics.exportedLabels=true"])?;
    let folder = tempfile::tempdir()?;
    fs::write(
        folder.path().join("rules.yaml"),
        rendered.get("PrometheusRule", FULLNAME)?["spec"].to_string(),
    )?;
    let mut tests = yaml(&fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart/alerts.test.yaml"),
    )?)?;
    tests["rule_files"] = json!(["rules.yaml"]);
    let mut changed = 0;
    for test in tests["tests"].as_array_mut().context("no tests")? {
        for series in test["input_series"].as_array_mut().context("no series")? {
            let before = series["series"].as_str().context("no series")?;
            let of_pod = before.starts_with("pod_sandbox_");
            let of_node = ["sandboxhealth_node_agent_unavailable", "sandboxhealth_pause_switch_failed"]
                .iter()
                .any(|name| before.starts_with(name));
            let mut after = before.to_owned();
            for label in ["namespace", "pod"].into_iter().filter(|_| of_pod) {
                let own = format!("{label}=\"agents\", exported_{label}=\"");
                after = after.replace(&format!("{label}=\""), &own);
            }
            if of_node {
                after = after.replace("node=\"", "node=\"of-the-controller\", exported_node=\"");
            }
            changed += usize::from(after != before);
            series["series"] = after.into();
        }
        for alert in test["alert_rule_test"].as_array_mut().context("no alerts")? {
            let renamed: &[&str] = match alert["alertname"].as_str().context("no name")? {
                "SandboxZombiesGrowing" | "SandboxRestartingRepeatedly" | "SandboxPidsLimitNear" => {
                    &["namespace", "pod"]
                }
                "SandboxAgentMissing" | "SandboxPauseSwitchFailed" => &["node"],
                _ => &[],
            };
            for expected in alert["exp_alerts"].as_array_mut().context("no list of alerts")? {
                let labels = expected["exp_labels"].as_object_mut().context("no labels")?;
                for label in renamed {
                    if let Some(value) = labels.remove(*label) {
                        labels.insert(format!("exported_{label}"), value);
                    }
                }
            }
        }
    }
    ensure!(changed > 15, "{changed} series have exported labels");
    let file = folder.path().join("tests.yaml");
    fs::write(&file, tests.to_string())?;
    prometheus::check(&["test", "rules", &file.display().to_string()], "")
}

/// Each query of a pod's series selects and groups by the exported labels; those of the kubelet and of nodes stay.
pub(super) fn exported_dashboard_has_exported_labels(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[ALL[2], "metrics.exportedLabels=true"])?;
    let map = rendered.get("ConfigMap", &format!("{FULLNAME}-dashboard"))?;
    let text = map["data"]["sandbox-health.json"].as_str().context("no dashboard")?;
    serde_json::from_str::<Value>(text)?;
    let (mut queries, mut kept) = (0, 0);
    for (line, before) in text.lines().zip(read("files/dashboard.json")?.lines()) {
        let is_query = ["\"expr\":", "\"query\":", "\"definition\":"].iter().any(|key| line.contains(key));
        if !is_query || !["namespace", "pod="].iter().any(|label| line.contains(label)) {
            continue;
        }
        if line.contains("container_threads_max") {
            kept += 1;
            let of =
                |text: &str| Some(text.split("container_threads_max{").nth(1)?.split('}').next()?.to_owned());
            ensure!(of(line) == of(before), "{line}");
            ensure!(line.matches("on (cluster, exported_namespace, exported_pod)").count() == 1, "{line}");
            continue;
        }
        queries += 1;
        let without = line.replace("exported_namespace", "").replace("exported_pod", "");
        let words: Vec<_> =
            without.split(|end: char| !(end.is_alphanumeric() || "_$".contains(end))).collect();
        ensure!(!words.iter().any(|word| ["namespace", "pod"].contains(word)), "{line}");
    }
    ensure!(queries > 15 && kept == 1, "{queries} queries, {kept} of the kubelet");
    for label in ["namespace", "pod"] {
        ensure!(text.contains(&format!("\"exported_{label}\": \"")), "the table has no column of {label}");
    }
    Ok(())
}

/// Each is the number of its alert in the file by default, and the file has no other number on a line of its own.
pub(super) fn thresholds_reach_every_alert(helm: &Helm) -> Result<()> {
    let defaults = yaml(&read("values.yaml")?)?;
    let thresholds = defaults["prometheusRule"]["thresholds"].as_object().context("no thresholds")?;
    let mut found = BTreeSet::new();
    for rule in rules_of(&mut yaml(&read("files/alerts.yaml")?)?)? {
        let expression = rule["expr"].as_str().context("no expression")?;
        let own = expression.lines().filter_map(|line| line.strip_prefix("> ").or(line.strip_prefix(">= ")));
        for number in own {
            let name = rule["alert"].as_str().context("no name")?;
            let of_alert = thresholds.get(name).with_context(|| format!("no threshold of {name}"))?;
            let severity = rule["labels"]["severity"].as_str().context("no severity")?;
            let (default, path) = match of_alert.get(severity) {
                Some(default) => (default, format!("{name}.{severity}")),
                None => (of_alert, name.to_owned()),
            };
            ensure!(found.insert(path.clone()), "{path} has two");
            ensure!(default.as_f64() == number.parse().ok(), "{path}: {number}, and the value is {default}");
            let set = format!("prometheusRule.thresholds.{path}=1");
            let rendered = helm.render(&[ALL[1], &set])?;
            let mut spec = rendered.get("PrometheusRule", FULLNAME)?["spec"].clone();
            let mut changed = rules_of(&mut spec)?.iter().filter(|other| {
                let lines = other["expr"].as_str().unwrap_or_default().lines();
                lines.filter(|line| ["> 1", ">= 1"].contains(line)).count() == 1
            });
            let is_rule =
                |other: &Value| other["alert"] == rule["alert"] && other["labels"] == rule["labels"];
            ensure!(changed.next().is_some_and(is_rule) && changed.next().is_none(), "{set}");
        }
    }
    let paths = thresholds.iter().flat_map(|(name, value)| match value.as_object() {
        Some(severities) => severities.keys().map(|severity| format!("{name}.{severity}")).collect(),
        None => vec![name.clone()],
    });
    let thresholds: BTreeSet<_> = paths.collect();
    ensure!(found == thresholds, "{found:?}, and the values are {thresholds:?}");
    let names =
        &yaml(&read("values.schema.json")?)?["properties"]["prometheusRule"]["properties"]["disabled"];
    let mut alerts = yaml(&read("files/alerts.yaml")?)?;
    let mut alerts: Vec<_> = rules_of(&mut alerts)?.iter().map(|rule| rule["alert"].clone()).collect();
    alerts.dedup();
    ensure!(
        names["items"]["enum"] == json!(alerts),
        "the schema of prometheusRule.disabled has other alerts"
    );
    Ok(())
}

fn rules_of(alerts: &mut Value) -> Result<&mut Vec<Value>> {
    let groups = alerts["groups"].as_array_mut().context("no groups")?;
    ensure!(groups.len() == 1, "{} groups", groups.len());
    groups[0]["rules"].as_array_mut().context("no rules")
}

fn runbooks() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/runbooks")
}

fn runbook(alert: &str) -> Result<String> {
    let path = runbooks().join(format!("{alert}.md"));
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}
