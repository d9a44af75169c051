//! Objects of pods that are not watched. Nobody looks after those, and what they say stays: whoever may create objects made
//! them, or `watch.pods` was `All` before. They are looked for now and then, and deleted.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;

use super::pods::PodKey;
use super::reconcile::Context;
use super::requests;
use crate::api::ApiError;
use crate::resource::SandboxHealth;

/// Between looks. It asks for nothing where each object's pod is one that is watched and has a node.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Failures after which a look is given up: more than one object that somebody keeps, and few where nothing gets through.
const FAILURES: usize = 5;

/// Looks for strays and deletes them, for ever.
pub async fn clear_away(context: Arc<Context>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        look(&context).await;
    }
}

/// Looks once. What fails is tried at the next look.
pub async fn look(context: &Context) {
    context.lookout.wait_until_known().await;
    let mut failures = 0;
    for object in context.objects.state() {
        // One that is not understood is left alone, whosever it is.
        let Ok(object) = &object.0 else { continue };
        let pod = PodKey::of(&object.metadata);
        if object.metadata.deletion_timestamp.is_some() || context.lookout.pod(&pod).is_some() {
            continue;
        }
        if let Err(error) = clear(object, context).await {
            tracing::warn!(object = %pod, %error, "an object of a pod that is not watched was not deleted; trying again");
            failures += 1;
            if failures == FAILURES {
                return;
            }
        }
    }
}

/// The pod may be new and about to be kept. One that is gone takes its object with it.
async fn clear(object: &SandboxHealth, context: &Context) -> Result<(), ApiError> {
    let Some(pod) = requests::live_pod(&context.client, object).await? else { return Ok(()) };
    if context.lookout.watch_pods().watched(&pod).is_some() {
        return Ok(());
    }
    let deleted = requests::delete(&context.client, object).await;
    context.metrics.requested("delete", &deleted);
    deleted?;
    let (namespace, name) = (object.namespace(), object.name_any());
    tracing::warn!(namespace, pod = name, "deleted an object of a pod that is not watched");
    Ok(())
}
