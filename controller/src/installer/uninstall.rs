//! `sandbox-health uninstall-pause`, run before the chart is uninstalled: deletes the installer's DaemonSet and waits until each of its
//! pods has restored its node. It touches no node itself.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use super::preflight::LABEL;
use crate::k8s::error::ApiError;

const INTERVAL: Duration = Duration::from_secs(2);
/// How long an installer may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The container that restores the node.
const INSTALLER: &str = "installer";

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
    check_installers(&api, &Api::namespaced(client.clone(), namespace), options).await?;
    let deadline = Instant::now() + *timeout;
    loop {
        let remaining = match delete(&api, daemonset).await {
            Ok(None) => return Ok(format!("DaemonSet {daemonset} is deleted, and its nodes are restored")),
            Ok(Some(pods)) => {
                format!("DaemonSet {daemonset} is still restoring its nodes (pods that are left: {pods})")
            }
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

/// Fails if the installer of a node does not run: nothing else would restore that node.
async fn check_installers(
    daemon_sets: &Api<DaemonSet>,
    pods: &Api<Pod>,
    options: &UninstallOptions,
) -> anyhow::Result<()> {
    let UninstallOptions { namespace, daemonset, .. } = options;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let nodes = nodes_without_installer(daemon_sets, pods, daemonset).await;
        if nodes.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let nodes = nodes.with_context(|| format!("reading the pods of the DaemonSet {daemonset}"))?;
            bail!(
                "the installer does not run on {}, so nothing would restore the pause image there, and DaemonSet {daemonset} is kept. \
                 See `kubectl -n {namespace} describe pods` for the reason. Correct it, or remove the label {} from a node that was not \
                 switched or that you restore by hand, and run the command again",
                nodes.join(", "),
                LABEL.0,
            );
        }
        sleep(INTERVAL).await;
    }
}

async fn nodes_without_installer(
    daemon_sets: &Api<DaemonSet>,
    pods: &Api<Pod>,
    name: &str,
) -> Result<Vec<String>, ApiError> {
    let Some(daemon_set) = daemon_sets.get_opt(name).await? else {
        return Ok(Vec::new());
    };
    let labels = daemon_set.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
    let selector: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods = pods.list(&ListParams::default().labels(&selector.join(","))).await?;
    let idle = pods.items.into_iter().filter(|pod| {
        // One that is terminating was restored, or is replaced.
        pod.metadata.deletion_timestamp.is_none() && !is_installer_running(pod)
    });
    Ok(idle.filter_map(|pod| pod.spec?.node_name).collect())
}

fn is_installer_running(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    let installer = statuses.into_iter().flatten().find(|status| status.name == INSTALLER);
    installer.and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some())
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
            "spec": {"selector": {"matchLabels": {"app": "i"}}, "template": {}},
            "status": {"currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberReady": 2, "numberMisscheduled": 0},
        });
        if is_terminating {
            daemon_set["metadata"]["deletionTimestamp"] = json!("2026-11-29T11:00:00Z");
        }
        daemon_set
    }

    /// A pod of the DaemonSet, with the state of its installer.
    fn pod(node: &str, state: &str) -> Value {
        json!({
            "metadata": {"name": node},
            "spec": {"nodeName": node, "containers": []},
            "status": {"initContainerStatuses": [
                {"name": "image-check", "state": {"terminated": {"exitCode": 0}}, "image": "", "imageID": "", "ready": true, "restartCount": 0},
                {"name": "installer", "state": {state: {}}, "image": "", "imageID": "", "ready": true, "restartCount": 0},
            ]},
        })
    }

    /// Answers of reading the DaemonSet, after the first, which is not terminating.
    async fn run_against(mut answers: Vec<Option<Value>>) -> (anyhow::Result<String>, Vec<(Method, Value)>) {
        answers.insert(0, Some(daemon_set(false)));
        run_with_pods(answers, json!([pod("a", "running"), pod("b", "running")])).await
    }

    async fn run_with_pods(
        answers: Vec<Option<Value>>,
        pods: Value,
    ) -> (anyhow::Result<String>, Vec<(Method, Value)>) {
        let answers = Mutex::new(answers.into_iter());
        let (client, received) = answering(move |request| match request.method {
            Method::GET if request.path.contains("/pods") => {
                assert!(request.path.contains("labelSelector=app%3Di"), "{}", request.path);
                Answer::Object(json!({"metadata": {}, "items": pods}))
            }
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
        let (result, writes) = run_with_pods(vec![None, None], json!([])).await;
        assert!(result.is_ok() && writes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_remain_fail_the_command() {
        let (result, _) = run_against(vec![Some(daemon_set(false))]).await;
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with("DaemonSet i is still restoring its nodes (pods that are left: 2) after 60 s"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn daemon_set_is_kept_if_an_installer_does_not_run() {
        let pods = json!([pod("a", "running"), pod("b", "waiting"), pod("c", "terminated")]);
        let (result, writes) = run_with_pods(vec![Some(daemon_set(false)); 100], pods).await;
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("the installer does not run on b, c, so"), "{error}");
        assert!(writes.is_empty(), "{writes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn terminating_pods_need_no_installer() {
        let mut ended = pod("a", "terminated");
        ended["metadata"]["deletionTimestamp"] = json!("2026-11-29T11:00:00Z");
        let (result, _) =
            run_with_pods(vec![Some(daemon_set(true)), Some(daemon_set(true)), None], json!([ended])).await;
        assert!(result.is_ok(), "{result:?}");
    }
}
