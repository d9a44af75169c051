//! `sandbox-health uninstall-pause`, run before the chart is uninstalled: deletes the installer's DaemonSet and waits until each of its
//! pods has restored its node. It touches no node itself.

use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::DeleteParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use crate::k8s::error::ApiError;

const INTERVAL: Duration = Duration::from_secs(2);

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct UninstallOptions {
    /// Namespace of the DaemonSet.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of the installer's DaemonSet.
    #[arg(long)]
    pub daemonset: String,
    /// How long to wait, such as 30s or 10m.
    #[arg(long, default_value = "10m", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

/// Returns when the DaemonSet and its pods are deleted. The error names what is left.
pub async fn run(options: &UninstallOptions, client: &Client) -> anyhow::Result<String> {
    let UninstallOptions { namespace, daemonset, timeout } = options;
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + *timeout;
    loop {
        let remaining = match delete(&api, daemonset).await {
            Ok(None) => return Ok(format!("DaemonSet {daemonset} is deleted, and its nodes are restored")),
            Ok(Some(pods)) => format!("{pods} pods of DaemonSet {daemonset} are still restoring their nodes"),
            Err(error) => format!("failed to delete the DaemonSet {daemonset}: {error}"),
        };
        if Instant::now() >= deadline {
            bail!(
                "{remaining} after {} s. Their nodes may keep the pause image; see `kubectl -n {namespace} get pods -o wide`, and run \
                 the command again",
                timeout.as_secs()
            );
        }
        sleep(INTERVAL).await;
    }
}

/// Requests the deletion once, and returns the number of pods that are left; `None` if the DaemonSet is gone.
async fn delete(api: &Api<DaemonSet>, name: &str) -> Result<Option<i32>, ApiError> {
    let Some(daemon_set) = api.get_opt(name).await? else {
        return Ok(None);
    };
    if daemon_set.metadata.deletion_timestamp.is_none() {
        // Foreground: the DaemonSet exists as long as one of its pods.
        match api.delete(name, &DeleteParams::foreground()).await.map_err(ApiError::from) {
            Ok(_) | Err(ApiError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(daemon_set.status.map_or(0, |status| status.current_number_scheduled)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, answering};
    use http::{Method, StatusCode};
    use serde_json::{Value, json};
    use std::sync::Mutex;

    fn daemon_set(is_terminating: bool) -> Value {
        let mut daemon_set = json!({
            "metadata": {"name": "i"},
            "status": {"currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberReady": 2, "numberMisscheduled": 0},
        });
        if is_terminating {
            daemon_set["metadata"]["deletionTimestamp"] = json!("2026-11-29T11:00:00Z");
        }
        daemon_set
    }

    async fn run_against(answers: Vec<Option<Value>>) -> (anyhow::Result<String>, Vec<(Method, Value)>) {
        let answers = Mutex::new(answers.into_iter());
        let (client, received) = answering(move |request| match request.method {
            Method::GET => match answers.lock().unwrap().next().unwrap_or(Some(daemon_set(true))) {
                Some(object) => Answer::Object(object),
                None => Answer::Refused(StatusCode::NOT_FOUND),
            },
            _ => Answer::Object(daemon_set(true)),
        });
        let options = UninstallOptions {
            namespace: "ops".to_owned(),
            daemonset: "i".to_owned(),
            timeout: Duration::from_secs(60),
        };
        let result = run(&options, &client).await;
        let received = received.lock().unwrap();
        let writes = received.iter().filter(|request| request.method != Method::GET);
        (result, writes.map(|request| (request.method.clone(), request.body.clone())).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn daemon_set_is_deleted_once_in_the_foreground() {
        let (result, writes) =
            run_against(vec![Some(daemon_set(false)), Some(daemon_set(true)), Some(daemon_set(true)), None])
                .await;
        assert!(result.unwrap().contains("restored"));
        let [(Method::DELETE, body)] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(body["propagationPolicy"], "Foreground");
    }

    #[tokio::test(start_paused = true)]
    async fn absent_daemon_set_is_success() {
        let (result, writes) = run_against(vec![None]).await;
        assert!(result.is_ok() && writes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_remain_fail_the_command() {
        let (result, _) = run_against(vec![Some(daemon_set(false))]).await;
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with("2 pods of DaemonSet i are still restoring their nodes after 60 s"),
            "{error}"
        );
    }
}
