//! What a leader before this one told of and could not write down any more: it died in between. The Events themselves say it.
//! They are read once in a term, and only if a row has restarts that it does not say were told of: whoever told of one had it
//! in the row before, and so it is in the first list of rows.

use std::collections::HashMap;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::events::announced_in;
use super::reconcile::Context;
use super::requests;
use crate::api::{ApiError, is_forbidden};
use crate::resource::SandboxHealthStatus;

/// Makes `context` remember it.
pub async fn recall(context: &Context) -> Result<(), ApiError> {
    let pods = untold(context);
    if pods.is_empty() {
        return Ok(());
    }
    let now = Timestamp::now();
    let found = requests::each_of_our_events(&context.client, |event| {
        for (uid, restarts) in announced_in(event, &pods) {
            context.storms().told_before(&uid, restarts, now);
        }
    });
    match found.await {
        // A role of somebody's own may lack this right. To tell of nothing would be worse.
        Err(error) if is_forbidden(&error) => {
            tracing::warn!(%error, "which Events a leader before this one made is not known; some of a storm may be told of twice");
            Ok(())
        }
        found => found,
    }
}

/// Namespaces of the pods with restarts that their rows do not say were told of, by UID.
fn untold(context: &Context) -> HashMap<String, String> {
    let rows = context.objects.state();
    let rows = rows.iter().filter_map(|row| row.0.as_ref().ok());
    let is_untold =
        |status: &SandboxHealthStatus| status.restarts > status.announced_restarts.unwrap_or_default();
    rows.filter(|row| row.status.as_ref().is_some_and(is_untold))
        .map(|row| (row.spec.pod_uid.clone(), row.namespace().unwrap_or_default()))
        .collect()
}
