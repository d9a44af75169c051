//! Deletes SandboxHealth objects that Kubernetes' garbage collector does not: those of pods that are not observed, and those whose
//! owner was removed (`kubectl delete pod --cascade=orphan`, a restore). An object is deleted only after the API server confirmed
//! it about the pod: a cache may be incomplete.

use std::collections::HashMap;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use super::context::Context;
use super::reconcile::{delete, live_pod};
use crate::crd::SandboxHealth;
use crate::k8s::error::ApiError;

/// Between searches in the caches, which make no request. An object is checked when two have found it without a pod: one that was just
/// created may be in its cache in a moment, and the object of a deleted one be garbage-collected.
const SEARCH_INTERVAL: Duration = Duration::from_secs(30);
/// Between checks of an object that is left to the garbage collector.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// Objects that are checked after a search. A namespace that is deleted leaves thousands for a moment.
const CHECKS: usize = 20;

/// When objects without an observed pod are to be checked, by UID.
pub type Checks = HashMap<String, Instant>;

pub async fn run(context: &Context) {
    let mut checks = Checks::default();
    loop {
        tokio::time::sleep(SEARCH_INTERVAL).await;
        search(context, &mut checks).await;
    }
}

pub async fn search(context: &Context, checks: &mut Checks) {
    context.prune();
    for object in due(context, checks, Instant::now()) {
        let name = ObjectRef::from_obj(&object);
        match check(&object, context).await {
            Ok(true) => tracing::warn!(object = %name, "deleted an orphaned SandboxHealth object"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(object = %name, %error, "failed to check an orphaned SandboxHealth object; will retry");
                continue;
            }
        }
        checks.insert(object.uid().unwrap_or_default(), Instant::now() + CHECK_INTERVAL);
    }
}

fn due(context: &Context, checks: &mut Checks, now: Instant) -> Vec<SandboxHealth> {
    let objects = context.index.objects.state();
    let orphans: HashMap<_, _> = objects
        .iter()
        // An object that cannot be deserialized is left alone, and one that is being deleted waits for a finalizer.
        .filter_map(|object| object.0.as_ref().ok())
        .filter(|object| object.metadata.deletion_timestamp.is_none() && context.index.pod(*object).is_none())
        .map(|object| (object.uid().unwrap_or_default(), object))
        .collect();
    checks.retain(|uid, _| orphans.contains_key(uid));
    let mut due = Vec::new();
    for (uid, object) in orphans {
        let check_at = checks.entry(uid).or_insert(now + SEARCH_INTERVAL);
        if now >= *check_at && due.len() < CHECKS {
            due.push(object.clone());
        }
    }
    due
}

/// Deletes the object if the garbage collector will not; returns whether it did.
async fn check(object: &SandboxHealth, context: &Context) -> Result<bool, ApiError> {
    let pod_uid = &object.spec.pod_uid;
    let is_orphaned = match live_pod(&context.client, object).await? {
        Some(pod) if pod.uid() == pod_uid => context.index.watched(&pod).is_none(),
        // The garbage collector deletes an object whose owner is gone.
        _ => !object.owner_references().iter().any(|owner| owner.uid == *pod_uid),
    };
    if is_orphaned {
        delete(&context.client, object).await?;
    }
    Ok(is_orphaned)
}
