//! Requests to the API server by a cluster's worth of agents and by the controller, from its own metrics: while all agents start at once,
//! and afterwards. The agents run on this machine, each for another fake node; kwok's pods have no processes, so each agent reports its
//! pods as unknown once and is idle after that.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::controller::{cluster_of_pods, start};
use super::table::{Target, number, table, targets};
use super::{Outcome, many_pods, own_process, scrape};
use crate::build::{Setup, operator};
use crate::cluster::Node;
use crate::host::retry;

const NODE: &str = "cost-api";
/// In the node's network. The agents listen on the following ports.
const CONTROLLER_PORT: u16 = 19_000;
const TIMEOUT: Duration = Duration::from_secs(900);
/// Duration of the start: pods without a sandbox are reported after 30 s, at 5 requests a second for each agent.
const START: Duration = Duration::from_secs(90);

/// Only agents and controller list or watch these resources by node: kwok and the kubelet do not.
const RESOURCES: [&str; 6] = ["pods", "sandboxhealths", "nodes", "events", "leases", "daemonsets"];
const VERBS: [&str; 7] = ["LIST", "WATCH", "GET", "POST", "PUT", "PATCH", "APPLY"];

/// Objects that the API server decoded from etcd to answer lists. A list from the watch cache decodes none; but every 5 min the server
/// compares its cache with etcd (the feature `DetectCacheInconsistency`).
const DECODED: &str = "apiserver_storage_list_evaluated_objects_total";

pub(super) fn measure(pods: usize, agents: usize, minutes: u64) -> Result<Outcome> {
    let setup = Setup::prepare(&[])?;
    let program = operator::build(&crate::build::cargo::project())?;
    let node = Node::start(NODE, &setup)?;
    let outcome = on(&node, pods, agents, minutes, &program);
    node.stop()?;
    outcome
}

fn on(node: &Node, pods: usize, agents: usize, minutes: u64, built: &Path) -> Result<Outcome> {
    let program = cluster_of_pods(node, pods, built)?;
    let address = |offset: usize| format!("127.0.0.1:{}", usize::from(CONTROLLER_PORT) + offset);
    let controller = ["controller", "--lease-namespace", "default", "--identity", "cost", "--listen"];
    start(node, &program, "controller", &[&controller[..], &[&address(0)]].concat())?;
    own_process::until_ready(node, &address(0))?;
    retry::until("all objects are created", TIMEOUT, || {
        let count = scrape::sum_of(&metrics(node)?, "apiserver_request_total", &created());
        ensure!(count >= many_pods::sharing(pods) as f64, "{count} are");
        Ok(())
    })?;
    thread::sleep(Duration::from_secs(30));
    let before = metrics(node)?;
    eprintln!("cost: starting {agents} agents");
    for agent in 0..agents {
        let (name, listen) = (many_pods::name_of_node(agent), address(agent + 1));
        start(
            node,
            &program,
            &format!("agent-{agent}"),
            &["agent", "--node-name", &name, "--listen", &listen],
        )?;
    }
    for agent in 0..agents {
        own_process::until_ready(node, &address(agent + 1))?;
    }
    thread::sleep(START);
    let started = metrics(node)?;
    eprintln!("cost: observing for {minutes} min");
    thread::sleep(Duration::from_secs(60 * minutes));
    let after = metrics(node)?;
    Ok(report(pods, agents, minutes, [&before, &started, &after]))
}

fn created() -> [&'static str; 3] {
    ["verb=\"POST\"", "resource=\"sandboxhealths\"", "code=\"201\""]
}

fn metrics(node: &Node) -> Result<String> {
    let metrics = node.kubectl(["get", "--raw", "/metrics"])?;
    ensure!(metrics.contains(&format!("\n{DECODED}{{")), "the API server has no metric {DECODED}");
    Ok(metrics)
}

fn report(pods: usize, agents: usize, minutes: u64, [before, started, after]: [&str; 3]) -> Outcome {
    let grown = |metric: &str, labels: &[(&str, &str)], from: &str, to: &str| {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        scrape::sum_of(to, metric, &labels) - scrape::sum_of(from, metric, &labels)
    };
    let mut requests_by_verb = vec![];
    for resource in RESOURCES {
        for verb in VERBS {
            let labels = [("verb", verb), ("resource", resource)];
            let requests = |from, to| grown("apiserver_request_total", &labels, from, to);
            let bytes = |from, to| grown("apiserver_response_sizes_sum", &labels, from, to) / 1024.0;
            let cells = [
                requests(before, started),
                bytes(before, started),
                requests(started, after),
                bytes(started, after),
            ];
            if cells.iter().any(|value| *value > 0.0) {
                let [at_start, kib_at_start, later, kib_later] = cells.map(|value| number(value, 0));
                requests_by_verb.push([
                    format!("{verb} {resource}"),
                    at_start,
                    kib_at_start,
                    later,
                    kib_later,
                ]);
            }
        }
    }
    let mut wanted = vec![];
    for (resource, objects) in [("pods", pods), ("sandboxhealths", many_pods::sharing(pods))] {
        let target = |what: String, most, measured| Target { what, most, measured, decimals: 0 };
        wanted.push(target(
            format!("{resource}: full scans of etcd while the agents start, the server's own check included"),
            1.0,
            grown(DECODED, &[("resource", resource)], before, started) / objects as f64,
        ));
        wanted.push(target(
            format!("{resource}: lists in the {minutes} min after that"),
            0.0,
            grown("apiserver_request_total", &[("verb", "LIST"), ("resource", resource)], started, after),
        ));
    }
    let text = format!(
        "## API server\n\n{} nodes with {} pods, {} of them sharing their PID namespace; {agents} agents start at once and run for {minutes} min\n\n{}\n{}",
        number(pods.div_ceil(100) as f64, 0),
        number(pods as f64, 0),
        number(many_pods::sharing(pods) as f64, 0),
        table(
            ["", "requests at the start", "KiB", &format!("requests in {minutes} min"), "KiB in that time"],
            &requests_by_verb
        ),
        targets(&wanted),
    );
    Outcome { text, met: wanted.iter().all(Target::met) }
}
