//! What the controller does for one pod: makes sure that it has its object, judges the object's status, announces what
//! happened, and writes the judgement. Each step is repeated safely.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt as _};

use super::conditions::{Judgement, judge};
use super::events::{due, event};
use super::metrics::ControllerMetrics;
use super::objects;
use crate::api::ApiError;
use crate::backoff;
use crate::resource::{SandboxHealth, ZOMBIES_REAPED};

/// From the end of an earlier pod's object to the next look; the watch is faster as a rule.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Pods whose failures are kept. Pods that went leave theirs behind; to forget them all costs a few shorter waits.
const FAILURES_MAX: usize = 10_000;

/// What a reconciliation works with.
pub struct Context {
    /// The way to the API.
    pub client: Client,
    /// All SandboxHealth objects, as the watch brought them.
    pub objects: Store<DeserializeGuard<SandboxHealth>>,
    /// Where to count.
    pub metrics: Arc<ControllerMetrics>,
    /// Name of this replica, for Events.
    pub instance: String,
    /// Failures in a row, by pod.
    failures: Mutex<HashMap<ObjectRef<Pod>, u32>>,
    random: RandomState,
}

impl Context {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(
        client: Client,
        objects: Store<DeserializeGuard<SandboxHealth>>,
        metrics: Arc<ControllerMetrics>,
        instance: String,
    ) -> Self {
        Self { client, objects, metrics, instance, failures: Mutex::default(), random: RandomState::new() }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<ObjectRef<Pod>, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_after_failure(&self, pod: &Pod) -> Duration {
        let mut failures = self.failures();
        if failures.len() >= FAILURES_MAX {
            failures.clear();
        }
        let before = failures.entry(ObjectRef::from_obj(pod)).or_default();
        let wait = backoff::wait(*before, pod.metadata.uid.as_deref().unwrap_or_default(), &self.random);
        *before = before.saturating_add(1);
        wait
    }
}

/// What was being done when it failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The watch of objects ended before it had brought them.
    #[error("the objects are not known")]
    NoObjects,
    /// Creating the pod's object.
    #[error("creating the SandboxHealth object: {0}")]
    Create(#[source] ApiError),
    /// Deleting what an earlier pod of the name left.
    #[error("deleting the SandboxHealth object of an earlier pod of the name: {0}")]
    Delete(#[source] ApiError),
    /// Creating an Event.
    #[error("creating an Event: {0}")]
    Event(#[source] ApiError),
    /// Writing the conditions.
    #[error("writing the conditions: {0}")]
    Apply(#[source] ApiError),
}

/// Looks after one pod.
pub async fn reconcile(pod: Arc<Pod>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let outcome = look_after(&pod, &context).await;
    context.metrics.reconciled(outcome.is_ok());
    if outcome.is_ok() {
        context.failures().remove(&ObjectRef::from_obj(&*pod));
    }
    outcome
}

/// What is done after a failure.
pub fn try_again(pod: Arc<Pod>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    let wait = context.wait_after_failure(&pod);
    tracing::warn!(namespace, pod = name, %error, ?wait, "trying again");
    Action::requeue(wait)
}

async fn look_after(pod: &Pod, context: &Context) -> Result<Action, ReconcileError> {
    context.objects.wait_until_ready().await.map_err(|_| ReconcileError::NoObjects)?;
    let Some(wanted) = objects::object_for(pod).filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
        return Ok(Action::await_change());
    };
    let Some(object) = existing(&wanted, &context.objects) else {
        let created = objects::create(&context.client, &wanted).await;
        context.metrics.requested("create", &created);
        created.map_err(ReconcileError::Create)?;
        return Ok(Action::await_change());
    };
    if !objects::is_of(&object, pod) {
        let deleted = objects::delete_stale(&context.client, &object, pod).await;
        context.metrics.requested("delete", &deleted);
        deleted.map_err(ReconcileError::Delete)?;
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    judge_and_announce(pod, &object, context).await
}

fn existing(
    wanted: &SandboxHealth,
    objects: &Store<DeserializeGuard<SandboxHealth>>,
) -> Option<SandboxHealth> {
    let reference = ObjectRef::new(&wanted.name_any()).within(wanted.metadata.namespace.as_deref()?);
    let found = objects.get(&reference)?;
    match &found.0 {
        Ok(object) => Some(object.clone()),
        Err(invalid) => {
            tracing::warn!(object = ?wanted.metadata.name, error = %invalid.error, "an object is not of its own kind");
            None
        }
    }
}

async fn judge_and_announce(
    pod: &Pod,
    object: &SandboxHealth,
    context: &Context,
) -> Result<Action, ReconcileError> {
    let now = Timestamp::now();
    let status = object.status.clone().unwrap_or_default();
    let Judgement { mut conditions, until } = judge(&status, is_finished(pod), now);
    let mut announced_restarts = status.restarts;
    let announced = announce(object, context, now).await;
    if announced.is_err() {
        // By these we know what is announced. The summary does not wait for it: it is what people look at.
        announced_restarts = status.announced_restarts.unwrap_or_default();
        conditions.retain(|condition| condition.type_ != ZOMBIES_REAPED);
        conditions.extend(status.condition(ZOMBIES_REAPED).cloned());
    }
    if conditions != status.conditions || status.announced_restarts.unwrap_or_default() != announced_restarts
    {
        let applied =
            objects::apply_judgement(&context.client, object, &conditions, announced_restarts).await;
        context.metrics.requested("apply", &applied);
        applied.map_err(ReconcileError::Apply)?;
    }
    announced?;
    let wait =
        until.map(|until| until.duration_since(now).max(jiff::SignedDuration::from_secs(1)).unsigned_abs());
    Ok(wait.map_or_else(Action::await_change, Action::requeue))
}

async fn announce(object: &SandboxHealth, context: &Context, now: Timestamp) -> Result<(), ReconcileError> {
    for announcement in due(object) {
        let event = event(object, &announcement, &context.instance, now);
        let created = objects::create_event(&context.client, &event).await;
        context.metrics.requested("event", &created);
        created.map_err(ReconcileError::Event)?;
        context.metrics.announced(announcement.reason);
    }
    Ok(())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, CREATE, DELETE, EVENTS, Exchange, POD, STATUS, server};
    use http::{Method, StatusCode};
    use kube::runtime::{reflector, watcher};
    use serde_json::{Value, json};

    fn pod(uid: &str) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": uid}, "spec": {"nodeName": "n", "containers": []}})
    }

    fn object(pod_uid: &str, status: Value) -> Value {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": pod_uid});
        json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1", "ownerReferences": [owner]},
            "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
            "status": status,
        })
    }

    fn restarted() -> Value {
        json!({
            "restarts": 1,
            "announcedRestarts": 0,
            "history": [{"sandboxID": "a", "startedAt": "2026-11-24T08:00:00Z", "reason": "PauseExited"}],
            "lastRestart": {"time": "2026-11-24T09:00:00Z", "reason": "PauseExited", "message": "pause was killed by SIGKILL"},
        })
    }

    /// Looks after a pod when the object (if any) is as given, and the server expects these requests; the bodies that it got.
    async fn looked_after(
        pod: Value,
        object: Option<Value>,
        script: impl IntoIterator<Item = Exchange>,
    ) -> (Result<Action, ReconcileError>, Vec<Value>) {
        let (objects, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Init);
        if let Some(object) = object {
            let object: DeserializeGuard<SandboxHealth> = serde_json::from_value(object).unwrap();
            writer.apply_watcher_event(&watcher::Event::InitApply(object));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let (client, served) = server(script);
        let metrics = Arc::new(ControllerMetrics::default());
        let context = Context::new(client, objects, metrics, "test".to_owned());
        let outcome = look_after(&serde_json::from_value(pod).unwrap(), &context).await;
        drop(context);
        (outcome, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_pod_without_an_object_gets_one() {
        let script = [(Method::POST, CREATE, Answer::Object(object("u-1", json!({}))))];
        let (outcome, _) = looked_after(pod("u-1"), None, script).await;
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_pod_that_is_being_deleted_or_has_no_node_gets_none() {
        let mut deleted = pod("u-1");
        deleted["metadata"]["deletionTimestamp"] = json!("2026-11-24T08:00:00Z");
        let mut pending = pod("u-1");
        pending["spec"] = json!({"containers": []});
        for pod in [deleted, pending] {
            looked_after(pod, None, []).await.0.unwrap();
        }
    }

    #[tokio::test]
    async fn an_object_of_an_earlier_pod_makes_room() {
        let script = [
            (Method::GET, POD, Answer::Object(pod("u-2"))),
            (Method::DELETE, DELETE, Answer::Object(object("u-1", json!({})))),
        ];
        let (outcome, _) =
            looked_after(pod("u-2"), Some(object("u-1", json!({"restarts": 4}))), script).await;
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_restart_is_announced_before_it_is_noted_as_announced() {
        let script = [
            (Method::POST, EVENTS, Answer::Object(json!({"metadata": {}}))),
            (Method::PATCH, STATUS, Answer::Object(object("u-1", json!({})))),
        ];
        let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
        outcome.unwrap();
        assert_eq!(bodies[0]["reason"], "SandboxRestarted");
        assert!(bodies[0]["note"].as_str().unwrap().contains("SIGKILL"), "{}", bodies[0]);
        assert_eq!(bodies[0]["regarding"]["uid"], "u-1");
        assert_eq!(bodies[1]["status"]["announcedRestarts"], 1);
    }

    #[tokio::test]
    async fn what_could_not_be_announced_is_judged_all_the_same_and_stays_unannounced() {
        let script = [
            (Method::POST, EVENTS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)),
            (Method::PATCH, STATUS, Answer::Object(object("u-1", json!({})))),
        ];
        let (outcome, bodies) = looked_after(pod("u-1"), Some(object("u-1", restarted())), script).await;
        assert!(matches!(outcome, Err(ReconcileError::Event(_))), "{outcome:?}");
        let status = &bodies[1]["status"];
        assert_eq!(status["announcedRestarts"], 0);
        let types: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|has| &has["type"]).collect();
        assert_eq!(types, ["Healthy"]);
    }

    #[tokio::test]
    async fn a_pod_that_fails_again_and_again_is_left_for_longer_and_longer() {
        let (objects, _writer) = reflector::store();
        let (client, _served) = server([]);
        let context =
            Context::new(client, objects, Arc::new(ControllerMetrics::default()), "test".to_owned());
        let pod: Pod = serde_json::from_value(pod("u-1")).unwrap();
        let waits: Vec<_> = (0..8).map(|_| context.wait_after_failure(&pod)).collect();
        assert!(waits[0] <= Duration::from_secs(1) && waits[7] > Duration::from_secs(30), "{waits:?}");
    }

    #[tokio::test]
    async fn a_status_that_is_judged_already_is_left_alone() {
        let mut status = restarted();
        status["announcedRestarts"] = json!(1);
        let conditions =
            judge(&serde_json::from_value(status.clone()).unwrap(), false, Timestamp::now()).conditions;
        status["conditions"] = serde_json::to_value(conditions).unwrap();
        looked_after(pod("u-1"), Some(object("u-1", status)), []).await.0.unwrap();
    }
}
