//! `sandbox-health helm-test`: waits until the agents' DaemonSet is rolled out and the SandboxHealth object of this pod has a report.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::crd::{REPORTING, SandboxHealth};
use crate::k8s::error::{ApiError, CRD_MISSING};

const INTERVAL: Duration = Duration::from_secs(1);

/// Options of the test.
#[derive(Debug, clap::Args)]
pub struct HelmTestOptions {
    /// Namespace of the DaemonSet and of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of the agents' DaemonSet.
    #[arg(long)]
    pub agent_daemonset: String,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// UID of this pod.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: String,
    /// How long to wait, such as 30s or 2m.
    #[arg(long, default_value = "2m", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

/// Waits until the test passes, and returns a summary. The error names what was missing at the end.
pub async fn run(options: &HelmTestOptions, client: &Client) -> anyhow::Result<String> {
    let deadline = Instant::now() + options.timeout;
    loop {
        match check(options, client).await {
            Ok(summary) => return Ok(summary),
            Err(error) if Instant::now() >= deadline => {
                bail!("not ready after {} s: {error:#}", options.timeout.as_secs())
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// Whether all agents are ready and of the present template, and this pod is reported.
async fn check(options: &HelmTestOptions, client: &Client) -> anyhow::Result<String> {
    let HelmTestOptions { namespace, agent_daemonset: name, pod_name, pod_uid, .. } = options;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let daemon_set = daemon_sets.get(name).await.map_err(ApiError::from);
    let DaemonSet { metadata, spec, status } =
        daemon_set.with_context(|| format!("failed to get the DaemonSet {name}"))?;
    let status = status.unwrap_or_default();
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let strategy = spec.and_then(|spec| spec.update_strategy?.type_);
    let updated = match strategy.as_deref() {
        // Pods are updated by hand.
        Some("OnDelete") => wanted,
        _ => status.updated_number_scheduled.unwrap_or_default(),
    };
    ensure!(
        status.observed_generation >= metadata.generation,
        "the status of the DaemonSet {name} is outdated"
    );
    ensure!(wanted > 0, "DaemonSet {name} matches no nodes");
    ensure!(
        ready >= wanted && updated >= wanted,
        "DaemonSet {name}: {ready} of {wanted} agents are ready, {updated} are up to date; see `kubectl -n {namespace} get pods -l app.kubernetes.io/component=agent`"
    );
    let objects: Api<SandboxHealth> = Api::namespaced(client.clone(), namespace);
    let object = match objects.get(pod_name).await.map_err(ApiError::from) {
        Ok(object) if object.spec.pod_uid == *pod_uid => object,
        // The object of an earlier pod of the same name.
        Ok(_) | Err(ApiError::NotFound(_)) => bail!(
            "pod {pod_name} has no SandboxHealth: no controller is the leader, controller.maxObjects is reached, or {CRD_MISSING}"
        ),
        Err(error) => bail!("failed to get the SandboxHealth of this pod: {error}"),
    };
    let reporting = object.status.as_ref().and_then(|status| status.condition(REPORTING));
    let reporting =
        reporting.context("the SandboxHealth of this pod has no conditions: no controller is the leader")?;
    ensure!(reporting.status == "True", "the SandboxHealth of this pod has no report: {}", reporting.message);
    Ok(format!("{wanted} agents are ready, and the SandboxHealth of this pod is reported"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, Received, answering};
    use http::StatusCode;
    use serde_json::{Value, json};

    fn daemon_set(wanted: i32, updated: i32, ready: i32) -> Value {
        json!({
            "metadata": {"name": "agents", "generation": 2},
            "status": {
                "observedGeneration": 2, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted,
                "updatedNumberScheduled": updated, "numberReady": ready, "numberMisscheduled": 0,
            },
        })
    }

    fn object(uid: &str, reporting: Option<&str>) -> Value {
        let mut object = json!(SandboxHealth::of_pod("ops", "test", uid, "n"));
        let condition = reporting.map(|status| json!({
            "type": "Reporting", "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2027-01-15T08:00:00Z",
        }));
        object["status"] = json!({"restarts": 0, "conditions": condition.into_iter().collect::<Vec<_>>()});
        object
    }

    async fn run_against(daemon_set: Value, object: Option<Value>) -> anyhow::Result<String> {
        let (client, _) = answering(move |request: &Received| match &object {
            _ if request.path.contains("daemonsets") => Answer::Object(daemon_set.clone()),
            Some(object) => Answer::Object(object.clone()),
            None => Answer::Refused(StatusCode::NOT_FOUND),
        });
        let options = HelmTestOptions {
            namespace: "ops".to_owned(),
            agent_daemonset: "agents".to_owned(),
            pod_name: "test".to_owned(),
            pod_uid: "u".to_owned(),
            timeout: Duration::from_secs(60),
        };
        run(&options, &client).await
    }

    #[tokio::test(start_paused = true)]
    async fn test_passes_with_ready_agents_and_a_report() {
        let passed = run_against(daemon_set(2, 2, 2), Some(object("u", Some("True")))).await;
        assert!(passed.unwrap().starts_with("2 agents"));
        let mut by_hand = daemon_set(2, 1, 2);
        by_hand["spec"] = json!({"selector": {}, "template": {}, "updateStrategy": {"type": "OnDelete"}});
        run_against(by_hand, Some(object("u", Some("True")))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn test_fails_without_rollout_or_report() {
        let good = || Some(object("u", Some("True")));
        let mut outdated = daemon_set(2, 2, 2);
        outdated["metadata"]["generation"] = json!(3);
        for (daemon_set, object, expected) in [
            (daemon_set(2, 2, 1), good(), "1 of 2 agents are ready"),
            (daemon_set(2, 1, 2), good(), "1 are up to date"),
            (daemon_set(0, 0, 0), good(), "no nodes"),
            (outdated, good(), "outdated"),
            (daemon_set(2, 2, 2), None, "no SandboxHealth"),
            (daemon_set(2, 2, 2), Some(self::object("earlier", Some("True"))), "no SandboxHealth"),
            (daemon_set(2, 2, 2), Some(self::object("u", None)), "no conditions"),
            (daemon_set(2, 2, 2), Some(self::object("u", Some("Unknown"))), "no report"),
        ] {
            let error = run_against(daemon_set, object).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
