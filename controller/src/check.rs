//! `sandbox-health check`, which `helm test` runs as a pod of its own: whether every agent of a DaemonSet does its work, and
//! whether the pod that asks has a row that says so. It reads and changes nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use crate::api::{ApiError, CRD_MISSING, bounded};
use crate::resource::{REPORTING, SandboxHealth};
use crate::scope::is_ready;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is checked.
#[derive(Debug)]
pub struct CheckOptions {
    /// Namespace of all that follows.
    pub namespace: String,
    /// Name of the agents' DaemonSet.
    pub daemon_set: String,
    /// Labels of the agents' pods: key=value,…
    pub agent_selector: String,
    /// Name of the pod that asks, and of its row.
    pub row: String,
    /// UID of that pod.
    pub row_of: String,
    /// How long to wait for it all.
    pub timeout: Duration,
}

/// Why the check failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something was still lacking in the end: a line for each.
    #[error("not everything is there after {} s:\n  {}", .0.as_secs(), .1.join("\n  "))]
    Lacking(Duration, Vec<String>),
}

/// What the cluster says at one moment.
struct Seen {
    daemon_set: DaemonSet,
    agents: Vec<Pod>,
    row: Option<SandboxHealth>,
}

/// Waits until all is well, and tells how it is in a line.
///
/// # Errors
///
/// When it is not in time.
pub async fn run(options: &CheckOptions, client: Client) -> Result<String, CheckError> {
    let deadline = Instant::now() + options.timeout;
    loop {
        let lacking = match look(options, client.clone()).await {
            Ok(seen) => match lacking(&seen) {
                none if none.is_empty() => return Ok(summary(&seen)),
                some => some,
            },
            Err(error) => vec![error],
        };
        if Instant::now() >= deadline {
            return Err(CheckError::Lacking(options.timeout, lacking));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn look(options: &CheckOptions, client: Client) -> Result<Seen, String> {
    let CheckOptions { namespace, daemon_set, agent_selector, row, row_of, .. } = options;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let rows: Api<SandboxHealth> = Api::namespaced(client, namespace);
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: ApiError| format!("{what} cannot be read: {error}")
    };
    let of_agents = ListParams::default().labels(agent_selector);
    Ok(Seen {
        daemon_set: bounded(daemon_sets.get(daemon_set)).await.map_err(failed("the DaemonSet"))?,
        agents: bounded(pods.list(&of_agents)).await.map_err(failed("the list of the agents' pods"))?.items,
        row: match bounded(rows.get(row)).await {
            // That of an earlier pod of the name is about to go.
            Ok(row) => Some(row).filter(|row| row.spec.pod_uid == *row_of),
            // The same is said where the resource is not known, of which nothing else would be right either.
            Err(ApiError::NotFound(_)) => None,
            Err(error) => return Err(failed("the row of this pod")(error)),
        },
    })
}

/// What keeps the check from passing, a line each.
fn lacking(seen: &Seen) -> Vec<String> {
    let mut lacking = agents_lacking(seen);
    lacking.extend(row_lacking(seen.row.as_ref()));
    lacking
}

fn agents_lacking(seen: &Seen) -> Vec<String> {
    let name = seen.daemon_set.name_any();
    let Some(status) = &seen.daemon_set.status else {
        return vec![format!("the DaemonSet {name} has no status yet")];
    };
    if status.observed_generation < seen.daemon_set.metadata.generation {
        return vec![format!("the status of the DaemonSet {name} is of an older version of it")];
    }
    let wanted = usize::try_from(status.desired_number_scheduled).unwrap_or_default();
    if wanted == 0 {
        return vec![format!(
            "no node is one for the DaemonSet {name}; its nodeSelector and affinity say which are"
        )];
    }
    let mut lacking: Vec<_> = seen.agents.iter().filter(|agent| !is_ready(agent)).map(not_ready).collect();
    // With OnDelete, somebody decides pod by pod.
    let updated = usize::try_from(status.updated_number_scheduled.unwrap_or_default()).unwrap_or_default();
    let outdated = seen.agents.len().min(wanted).saturating_sub(updated);
    if outdated > 0 && !is_updated_by_hand(&seen.daemon_set) {
        lacking.push(format!(
            "{outdated} of {wanted} agents are not of this release yet; `kubectl rollout status daemonset/{name}` waits for them"
        ));
    }
    if seen.agents.len() < wanted {
        let missing = wanted - seen.agents.len();
        lacking.push(format!(
            "{missing} of {wanted} nodes have no agent's pod; `kubectl describe daemonset {name}` tells why none could be made"
        ));
    }
    lacking
}

fn is_updated_by_hand(daemon_set: &DaemonSet) -> bool {
    let strategy = daemon_set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete"))
}

fn row_lacking(row: Option<&SandboxHealth>) -> Option<String> {
    let Some(row) = row else {
        return Some(format!(
            "this pod has no SandboxHealth: no controller acts, controller.maxObjects is reached, or {CRD_MISSING}"
        ));
    };
    let reporting = row.status.as_ref().and_then(|status| status.condition(REPORTING));
    match reporting {
        Some(reporting) if reporting.status == "True" => None,
        Some(reporting) => Some(format!(
            "the SandboxHealth of this pod, on the node {}, has no report: {}",
            row.spec.node_name, reporting.message
        )),
        None => Some("the SandboxHealth of this pod has no conditions: no controller acts".to_owned()),
    }
}

fn not_ready(agent: &Pod) -> String {
    let node = agent.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let why = agent.status.as_ref().and_then(waits_for).unwrap_or_default();
    match node {
        Some(node) => format!("the agent {} on the node {node} is not ready{why}", agent.name_any()),
        None => format!("the agent {} has no node yet{why}", agent.name_any()),
    }
}

/// Why a container does not run, or why the pod has no node, where the kubelet or the scheduler says so.
fn waits_for(status: &PodStatus) -> Option<String> {
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).next();
    let said = match waiting {
        Some(waiting) => (waiting.reason.as_ref()?, waiting.message.as_ref()),
        None => {
            let scheduled = status.conditions.iter().flatten().find(|has| has.type_ == "PodScheduled")?;
            (scheduled.reason.as_ref()?, scheduled.message.as_ref())
        }
    };
    Some(match said {
        (reason, Some(message)) => format!(": {reason}, {message}"),
        (reason, None) => format!(": {reason}"),
    })
}

fn summary(seen: &Seen) -> String {
    let agents = seen.agents.len();
    let row = seen.row.as_ref();
    let node = row.map(|row| row.spec.node_name.clone()).unwrap_or_default();
    let name = row.map(|row| format!("{}/{}", row.namespace().unwrap_or_default(), row.name_any()));
    format!(
        "all {agents} agents are ready; the SandboxHealth {} was reported by the one on {node}",
        name.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, server};
    use http::{Method, StatusCode};
    use serde_json::{Value, json};

    const DAEMON_SET: &str = "/apis/apps/v1/namespaces/shop/daemonsets/agents";
    const AGENTS: &str = "/api/v1/namespaces/shop/pods?&labelSelector=part%3Dagent";
    const ROW: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/check";

    fn daemon_set(wanted: i32) -> Value {
        json!({
            "metadata": {"name": "agents", "generation": 2},
            "status": {
                "observedGeneration": 2, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted,
                "updatedNumberScheduled": wanted,
                "numberReady": 0, "numberMisscheduled": 0,
            },
        })
    }

    fn agent(node: &str, ready: bool) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({
            "metadata": {"name": format!("agent-{node}")},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        })
    }

    fn row(reporting: &str, message: &str) -> Value {
        json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1",
            "kind": "SandboxHealth",
            "metadata": {"name": "check", "namespace": "shop"},
            "spec": {"podName": "check", "podUID": "u", "nodeName": "a"},
            "status": {"restarts": 0, "conditions": [{
                "type": "Reporting", "status": reporting, "reason": "R", "message": message,
                "lastTransitionTime": "2026-11-01T00:00:00Z",
            }]},
        })
    }

    fn seen(daemon_set: Value, agents: &[Value], row: Option<Value>) -> Seen {
        Seen {
            daemon_set: serde_json::from_value(daemon_set).unwrap(),
            agents: agents.iter().map(|agent| serde_json::from_value(agent.clone()).unwrap()).collect(),
            row: row.map(|row| serde_json::from_value(row).unwrap()),
        }
    }

    #[test]
    fn all_agents_ready_and_a_reported_row_pass() {
        let seen = seen(daemon_set(2), &[agent("a", true), agent("b", true)], Some(row("True", "")));
        assert_eq!(lacking(&seen), [""; 0]);
        assert_eq!(
            summary(&seen),
            "all 2 agents are ready; the SandboxHealth shop/check was reported by the one on a"
        );
    }

    #[test]
    fn each_agent_that_does_not_work_is_named() {
        let mut crashing = agent("b", false);
        crashing["status"]["containerStatuses"] = json!([{
            "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        }]);
        let mut pending = agent("c", false);
        pending["spec"].as_object_mut().unwrap().remove("nodeName");
        pending["status"]["conditions"] = json!([
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
        ]);
        let seen = seen(daemon_set(4), &[agent("a", true), crashing, pending], Some(row("True", "")));
        assert_eq!(
            lacking(&seen),
            [
                "the agent agent-b on the node b is not ready: ImagePullBackOff, no such image",
                "the agent agent-c has no node yet: Unschedulable, 0/3 nodes",
                "1 of 4 nodes have no agent's pod; `kubectl describe daemonset agents` tells why none could be made",
            ]
        );
    }

    #[test]
    fn a_daemon_set_for_no_node_or_with_an_old_status_does_not_pass() {
        let mut old = daemon_set(1);
        old["metadata"]["generation"] = json!(3);
        for (daemon_set, expected) in [(daemon_set(0), "no node is one for"), (old, "an older version")] {
            let lacking = lacking(&seen(daemon_set, &[], Some(row("True", ""))));
            assert!(lacking.len() == 1 && lacking[0].contains(expected), "{lacking:?}");
        }
    }

    #[test]
    fn agents_of_the_release_before_do_not_pass_unless_somebody_updates_them_by_hand() {
        let mut half = daemon_set(2);
        half["status"]["updatedNumberScheduled"] = json!(1);
        let both = [agent("a", true), agent("b", true)];
        let outdated = lacking(&seen(half.clone(), &both, Some(row("True", ""))));
        assert!(
            outdated.len() == 1 && outdated[0].starts_with("1 of 2 agents are not of this release"),
            "{outdated:?}"
        );
        half["spec"] = json!({"selector": {}, "template": {}, "updateStrategy": {"type": "OnDelete"}});
        assert_eq!(lacking(&seen(half, &both, Some(row("True", "")))), [""; 0]);
    }

    #[test]
    fn a_row_that_is_missing_or_without_a_report_does_not_pass() {
        let mut bare = row("True", "");
        bare["status"]["conditions"] = json!([]);
        for (row, expected) in [
            (None, "has no SandboxHealth"),
            (Some(bare), "no conditions"),
            (Some(row("Unknown", "no agent runs on the pod's node")), "no agent runs on the pod's node"),
        ] {
            let lacking = lacking(&seen(daemon_set(1), &[agent("a", true)], row));
            assert!(lacking.len() == 1 && lacking[0].contains(expected), "{lacking:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_again_until_the_time_is_up() {
        let get = |path, answer| (Method::GET, path, answer);
        let agents = |agents: Value| json!({"metadata": {}, "items": agents});
        let mut earlier = row("True", "");
        earlier["spec"]["podUID"] = json!("another");
        let (client, served) = server([
            get(DAEMON_SET, Answer::Refused(StatusCode::FORBIDDEN)),
            get(DAEMON_SET, Answer::Object(daemon_set(1))),
            get(AGENTS, Answer::Object(agents(json!([agent("a", true)])))),
            get(ROW, Answer::Refused(StatusCode::NOT_FOUND)),
            get(DAEMON_SET, Answer::Object(daemon_set(1))),
            get(AGENTS, Answer::Object(agents(json!([agent("a", true)])))),
            get(ROW, Answer::Object(earlier)),
            get(DAEMON_SET, Answer::Object(daemon_set(1))),
            get(AGENTS, Answer::Object(agents(json!([agent("a", true)])))),
            get(ROW, Answer::Object(row("True", ""))),
            get(DAEMON_SET, Answer::Refused(StatusCode::FORBIDDEN)),
            get(DAEMON_SET, Answer::Refused(StatusCode::FORBIDDEN)),
        ]);
        let mut options = CheckOptions {
            namespace: "shop".to_owned(),
            daemon_set: "agents".to_owned(),
            agent_selector: "part=agent".to_owned(),
            row: "check".to_owned(),
            row_of: "u".to_owned(),
            timeout: Duration::from_secs(60),
        };
        assert!(run(&options, client.clone()).await.unwrap().starts_with("all 1 agents"));
        options.timeout = Duration::from_secs(1);
        let error = run(&options, client).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "not everything is there after 1 s:\n  the DaemonSet cannot be read: no (403 Forbidden)"
        );
        served.await.unwrap();
    }
}
