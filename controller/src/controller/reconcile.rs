//! What the controller does for one pod: makes sure that it has its object, judges the object's status, announces what
//! happened, and writes the judgement. Each step is repeated safely.

use std::sync::Arc;
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
use crate::resource::SandboxHealth;

/// From a failure to the next attempt.
const RETRY: Duration = Duration::from_secs(5);

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
    outcome
}

/// What is done after a failure.
pub fn try_again(pod: Arc<Pod>, error: &ReconcileError, _: Arc<Context>) -> Action {
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    tracing::warn!(namespace, pod = name, %error, "trying again");
    Action::requeue(RETRY)
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
        return Ok(Action::requeue(RETRY));
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
    let Judgement { conditions, until } = judge(&status, is_finished(pod), now);
    for announcement in due(object) {
        let created =
            objects::create_event(&context.client, &event(object, &announcement, &context.instance, now))
                .await;
        context.metrics.requested("event", &created);
        created.map_err(ReconcileError::Event)?;
        context.metrics.announced(announcement.reason);
    }
    if conditions != status.conditions || status.announced_restarts.unwrap_or_default() != status.restarts {
        let applied = objects::apply_judgement(&context.client, object, &conditions, status.restarts).await;
        context.metrics.requested("apply", &applied);
        applied.map_err(ReconcileError::Apply)?;
    }
    let wait =
        until.map(|until| until.duration_since(now).max(jiff::SignedDuration::from_secs(1)).unsigned_abs());
    Ok(wait.map_or_else(Action::await_change, Action::requeue))
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
