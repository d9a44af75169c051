//! Reconciles one pod: makes sure that it has its object, writes the object's conditions, and queues Events. Each step can be
//! repeated. The decisions are in `core`.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::controller::Action as Requeue;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use super::context::{Context, OUTDATED_MAX};
use crate::core::actions::{Action, next};
use crate::core::conditions::{
    AgentState, Evaluation, RESTART_MEMORY, Terminal, add_creation_error, evaluate,
};
use crate::core::events::{due, event};
use crate::crd::{CONTROLLER_FIELD_MANAGER, REPORTING, SandboxHealth, SandboxHealthStatus};
use crate::k8s::error::{ApiError, record_write};
use crate::k8s::pod::LeanPod;
use crate::k8s::status::{create, write_conditions};
use crate::procfs::pause::ReadError;

/// Wait for a stale object to be gone. The watch reports it sooner as a rule.
const DELETED_RETRY: Duration = Duration::from_secs(5);
/// Wait for room below `maxObjects`, or for a finalizer.
const LONG_RETRY: Duration = Duration::from_secs(300);
/// Wait while other reconciles of a slow namespace wait for the API server.
const SLOW_RETRY: Duration = Duration::from_secs(10);
/// Wait while the kubelet cannot create the sandbox of a pod, until its warnings are read again.
const WARNING_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("failed to {action}: {error}")]
pub struct ReconcileError {
    action: &'static str,
    error: ApiError,
}

type Outcome = Result<Requeue, ReconcileError>;

pub(super) fn failed(action: &'static str) -> impl Fn(ApiError) -> ReconcileError {
    move |error| ReconcileError { action, error }
}

pub async fn reconcile(pod: Arc<LeanPod>, context: Arc<Context>) -> Outcome {
    let Some(_namespace) = context.enter(pod.namespace()) else {
        return Ok(Requeue::requeue(SLOW_RETRY));
    };
    let start = Instant::now();
    let result = reconcile_pod(&pod, &context).await;
    context.metrics.reconciled(start.elapsed(), result.is_ok());
    if result.is_ok() {
        context.succeeded(&ObjectRef::from_obj(&*pod));
    }
    result
}

/// When to retry a pod whose reconcile failed.
pub fn on_error(pod: Arc<LeanPod>, error: &ReconcileError, context: Arc<Context>) -> Requeue {
    let wait = context.backoff(ObjectRef::from_obj(&*pod));
    let (namespace, pod) = (pod.namespace(), pod.name());
    tracing::warn!(namespace, pod, %error, ?wait, "reconcile failed; will retry");
    Requeue::requeue(wait)
}

async fn reconcile_pod(pod: &LeanPod, context: &Context) -> Outcome {
    let Some(namespaces) = context.index.watched(pod) else { return Ok(Requeue::await_change()) };
    let object = context.index.object(pod);
    let object = match object.as_ref().map(|object| &object.0) {
        // A newer version wrote it: it must not be overwritten.
        Some(Err(_)) => return Ok(Requeue::await_change()),
        Some(Ok(object)) => Some(object),
        None => None,
    };
    match next(pod, namespaces, object) {
        Action::None => Ok(Requeue::await_change()),
        Action::Create => create_object(pod, context).await,
        Action::DeleteStale(object) => delete_stale(object, pod, context).await,
        Action::UpdateConditions(object) => update_conditions(pod, object, context).await,
    }
}

async fn create_object(pod: &LeanPod, context: &Context) -> Outcome {
    if !context.take_room() {
        return Ok(Requeue::requeue(LONG_RETRY));
    }
    let created = create(&context.client, pod, &pod.node, CONTROLLER_FIELD_MANAGER).await;
    context.record_speed(pod.namespace(), &created);
    match created {
        // The watch delivers the object, or the deletion of the pod.
        Ok(_) | Err(ApiError::Conflict(_) | ApiError::NamespaceTerminating(_)) => Ok(Requeue::await_change()),
        Err(error) => Err(failed("create the SandboxHealth object")(error)),
    }
}

async fn delete_stale(object: &SandboxHealth, pod: &LeanPod, context: &Context) -> Outcome {
    // A finalizer keeps it. The watch reports its end.
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::requeue(LONG_RETRY));
    }
    // The caches are independent: the object may be that of a newer pod than we know of.
    let deleted = match live_pod(&context.client, object).await {
        Ok(Some(live)) if live.uid() == pod.uid() => delete(&context.client, object).await,
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    context.record_speed(pod.namespace(), &deleted);
    deleted.map_err(failed("delete the stale SandboxHealth object"))?;
    Ok(Requeue::requeue(DELETED_RETRY))
}

async fn update_conditions(pod: &LeanPod, object: &SandboxHealth, context: &Context) -> Outcome {
    let key = ObjectRef::from_obj(pod);
    if context.is_outdated(&key, object) {
        return Ok(Requeue::requeue(OUTDATED_MAX));
    }
    let now = Timestamp::now();
    let mut status = object.status.clone().unwrap_or_default();
    let (terminal, terminating_in) = Terminal::of(pod, &status, Instant::now());
    let agent = context.index.agent_state(&pod.node);
    let is_observed = terminal.is_none() && agent == AgentState::Ready;
    let is_not_created = is_observed && add_kubelet_warning(&mut status, pod, context).await;
    let Evaluation { mut conditions, changes_at } = evaluate(&status, &pod.node, terminal, agent, now);
    if let Some(error) = context.index.creation_error() {
        add_creation_error(&mut conditions, &error);
    }
    let mut written = Ok(());
    if conditions != status.conditions {
        let result = write_conditions(&context.client, pod, &conditions).await;
        context.record_speed(pod.namespace(), &result);
        record_write(&context.readiness, &result);
        written = result.map(|after| context.set_written(key, &after));
    }
    // Events are delivered in the background: neither waits for the other.
    for due in due(&status, &conditions, pod.exec_probed(), now) {
        let (reason, instance) = (due.reason, &context.options.identity);
        context.emitter.emit(reason, event(object, pod.mirror_uid.as_deref(), &due, instance, now));
    }
    written.map_err(failed("update the conditions"))?;
    let changes_in = changes_at.map(|at| {
        // An agent wrote the time: it may be out of range.
        at.duration_since(now).clamp(SignedDuration::from_secs(1), RESTART_MEMORY).unsigned_abs()
    });
    let warning_in = is_not_created.then_some(WARNING_RETRY);
    let wait = changes_in.into_iter().chain(terminating_in).chain(warning_in).min();
    Ok(wait.map_or_else(Requeue::await_change, Requeue::requeue))
}

/// Adds to the message of a sandbox that is not created why the kubelet cannot create it. Returns whether there is such a sandbox.
async fn add_kubelet_warning(status: &mut SandboxHealthStatus, pod: &LeanPod, context: &Context) -> bool {
    let reason = ReadError::NotCreated.reason();
    let before = status.condition(REPORTING).filter(|before| before.reason == reason);
    let before = before.map(|before| before.message.clone());
    let Some(failure) = status.read_failure.as_mut().filter(|failure| failure.reason == reason) else {
        return false;
    };
    match (context.kubelet_events.last_warning(&context.client, pod).await, before) {
        (Some(warning), _) => failure.message.push_str(&format!("; kubelet: {warning}")),
        (None, Some(before)) => failure.message = before,
        (None, None) => {}
    }
    true
}

/// The pod of the object's name, read from the API server.
pub(super) async fn live_pod(client: &Client, object: &SandboxHealth) -> Result<Option<LeanPod>, ApiError> {
    let pods: Api<LeanPod> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    Ok(pods.get_opt(&object.name_any()).await?)
}

/// Deletes this object. It is no error if it is gone or was replaced.
pub(super) async fn delete(client: &Client, object: &SandboxHealth) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: object.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&object.name_any(), &params).await.map_err(ApiError::from) {
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
