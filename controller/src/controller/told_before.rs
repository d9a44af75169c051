//! What a leader before this one told of and could not write down any more: it died in between. The Events themselves say it.
//! They are read once in a term, and only if a row had restarts, when the term began, that it did not say were told of: whoever
//! told of one had it in the row before, and so it is in the first list of rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use tokio::sync::OnceCell;

use super::events::announced_in;
use super::reconcile::{Context, ReconcileError};
use super::requests;
use crate::api::{ApiError, is_forbidden};
use crate::resource::SandboxHealthStatus;
use crate::waited::waited;

/// After a failure. Meanwhile nobody waits for an answer, and rows are judged.
const AGAIN: SignedDuration = SignedDuration::from_mins(1);
/// After so many failures it's done without. To tell of nothing would be worse than to tell of some of a storm twice.
const TRIES: u32 = 5;

/// What is known of it.
#[derive(Debug, Default)]
pub struct ToldBefore {
    /// Namespaces of the pods whose rows had restarts that nobody noted as told of, by UID.
    untold: OnceLock<HashMap<String, String>>,
    recalled: OnceCell<()>,
    failed: Mutex<Option<Failed>>,
}

#[derive(Debug, Clone)]
struct Failed {
    tries: u32,
    at: Timestamp,
    error: Arc<ApiError>,
}

impl ToldBefore {
    /// Has the storms remember what was told of, if this pod may be among it. All rows must be known.
    pub async fn recall_if_needed(
        &self,
        pod_uid: &str,
        context: &Context,
        now: Timestamp,
    ) -> Result<(), ReconcileError> {
        let untold = self.untold.get_or_init(|| untold(context));
        if !untold.contains_key(pod_uid) {
            return Ok(());
        }
        let recalled = self.recalled.get_or_try_init(|| self.recall(untold, context, now)).await;
        recalled.map(drop).map_err(ReconcileError::Recall)
    }

    async fn recall(
        &self,
        untold: &HashMap<String, String>,
        context: &Context,
        now: Timestamp,
    ) -> Result<(), Arc<ApiError>> {
        let before = self.failed();
        if let Some(before) = before.as_ref().filter(|before| waited(before.at, now) < AGAIN) {
            return Err(before.error.clone());
        }
        let read = requests::each_of_our_events(&context.client, |event| {
            for (uid, restarts) in announced_in(event, untold) {
                context.storms().told_before(&uid, restarts, now);
            }
        });
        let error = match read.await {
            Ok(()) => return Ok(()),
            Err(error) => Arc::new(error),
        };
        let tries = before.map_or(1, |before| before.tries.saturating_add(1));
        // A role of somebody's own may lack this right.
        if tries >= TRIES || matches!(&*error, ApiError::Other(error) if is_forbidden(error)) {
            tracing::warn!(%error, "which Events a leader before this one made is not known; some may be made again");
            return Ok(());
        }
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Failed { tries, at: now, error: error.clone() });
        Err(error)
    }

    fn failed(&self) -> Option<Failed> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There was no leader before.
    #[cfg(test)]
    pub(super) fn there_was_nobody(&self) {
        self.untold.set(HashMap::new()).unwrap();
    }
}

fn untold(context: &Context) -> HashMap<String, String> {
    let rows = context.objects.state();
    let rows = rows.iter().filter_map(|row| row.0.as_ref().ok());
    let is_untold =
        |status: &SandboxHealthStatus| status.restarts > status.announced_restarts.unwrap_or_default();
    rows.filter(|row| row.status.as_ref().is_some_and(is_untold))
        .map(|row| (row.spec.pod_uid.clone(), row.namespace().unwrap_or_default()))
        .collect()
}
