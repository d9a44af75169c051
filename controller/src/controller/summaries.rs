//! Makes the Events that sum up storms, and has their pods looked at again, which write down then that they were told of.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::events::{Reason, summary_event};
use super::reconcile::Context;
use super::requests;
use super::storm::Summary;

/// Failures in a row and the time of the next try, by node.
#[derive(Debug, Default)]
pub struct Attempts(HashMap<String, (u32, Timestamp)>);

/// Makes the summaries that are due.
pub async fn tell(context: &Context, attempts: &mut Attempts, now: Timestamp) {
    let due = context.storms().due(now);
    for summary in due {
        if attempts.0.get(&summary.node).is_some_and(|(_, again)| now < *again) {
            continue;
        }
        let node_uid = context.lookout.node_uid(&summary.node);
        let event = summary_event(&summary, node_uid.as_deref(), &context.instance, now);
        let created = requests::create_event(&context.client, &event).await;
        context.metrics.requested("event", &created);
        match created {
            Ok(()) => {
                attempts.0.remove(&summary.node);
                told(context, &summary, now);
            }
            Err(error) => {
                let failures = attempts.0.get(&summary.node).map_or(0, |(failures, _)| *failures);
                let wait = context.backoff(failures, &summary.node);
                tracing::warn!(node = summary.node, %error, ?wait, "the summary of a node's restarts was not made; trying again");
                let again = now.saturating_add(SignedDuration::try_from(wait).unwrap_or_default());
                attempts.0.insert(summary.node, (failures.saturating_add(1), again.unwrap_or(now)));
            }
        }
    }
}

fn told(context: &Context, summary: &Summary, now: Timestamp) {
    context.metrics.announced(Reason::SandboxesRestarted);
    context.metrics.summed_up(summary.restarts());
    context.storms().made(summary, now);
    for pod in summary.pods.keys() {
        context.lookout.look_again(pod.clone());
    }
}
