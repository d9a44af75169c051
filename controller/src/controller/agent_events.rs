//! Why agents cannot be created: the message of admission, from the Events of the agents' DaemonSet. They are listed only while it has fewer
//! pods than it wants.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::context::Context;
use super::kubelet_events::{newest, one_line};
use crate::k8s::error::ApiError;

/// Interval between lists. It is shorter than the grace of a missing agent, so that its condition has the message.
const INTERVAL: Duration = Duration::from_secs(30);

pub async fn run(context: &Context) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        update(context).await;
    }
}

pub async fn update(context: &Context) {
    let error = match context.index.incomplete_daemon_set() {
        Some(daemon_set) => creation_error(&daemon_set, context).await,
        None => Ok(None),
    };
    match error {
        Ok(error) => context.index.set_creation_error(error),
        Err(error) => tracing::warn!(%error, "failed to list the Events of the agents' DaemonSet"),
    }
}

async fn creation_error(daemon_set: &DaemonSet, context: &Context) -> Result<Option<String>, ApiError> {
    let events: Api<Event> = Api::namespaced(context.client.clone(), &context.options.lease_namespace);
    let selector = format!("regarding.uid={}", daemon_set.uid().unwrap_or_default());
    let events = events.list(&ListParams::default().fields(&selector)).await?;
    Ok(last_error(&events.items, &daemon_set.name_any()))
}

/// The message of the last creation, if that failed.
fn last_error(events: &[Event], daemon_set: &str) -> Option<String> {
    let is_creation =
        |event: &&Event| matches!(event.reason.as_deref(), Some("FailedCreate" | "SuccessfulCreate"));
    let last = newest(events.iter().filter(is_creation))?;
    let note = last.note.as_deref().filter(|_| last.reason.as_deref() == Some("FailedCreate"))?;
    // The recorder of Events puts a prefix before the message of similar ones.
    let message = note.split_once("Error creating: ").map_or(note, |(_, message)| message);
    Some(one_line(&without_suffixes(message, daemon_set)))
}

/// The message with the DaemonSet's name in place of names of pods: each attempt has another one.
fn without_suffixes(message: &str, daemon_set: &str) -> String {
    let prefix = format!("{daemon_set}-");
    let mut parts = message.split(&prefix);
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        renamed.push_str(daemon_set);
        renamed.push_str(part.trim_start_matches(|it: char| it.is_ascii_alphanumeric()));
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(minute: u32, reason: &str, note: &str) -> Event {
        let time = format!("2027-01-15T08:{minute:02}:00Z");
        let event = json!({"metadata": {}, "eventTime": null, "deprecatedLastTimestamp": time, "reason": reason, "note": note});
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn creation_error_is_that_of_the_last_attempt_without_the_name_of_the_pod() {
        let refusal = |suffix: &str| {
            format!(
                "(combined from similar events): Error creating: pods \"agents{suffix}\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)"
            )
        };
        let expected = "pods 'agents' is forbidden: violates PodSecurity 'baseline:latest': host namespaces (hostPID=true)";
        for suffix in ["-x2k4f", "-", ""] {
            let events = [
                event(5, "FailedCreate", &refusal(suffix)),
                event(3, "SuccessfulCreate", "Created pod: agents-a"),
                event(6, "SuccessfulDelete", "Deleted pod: agents-a"),
            ];
            assert_eq!(last_error(&events, "agents").as_deref(), Some(expected));
        }
    }

    #[test]
    fn creation_error_before_a_created_pod_is_over() {
        let failed = event(3, "FailedCreate", "Error creating: exceeded quota");
        let events = [failed, event(5, "SuccessfulCreate", "Created pod: agents-a")];
        assert_eq!(last_error(&events[..1], "agents").as_deref(), Some("exceeded quota"));
        assert_eq!((last_error(&events, "agents"), last_error(&[], "agents")), (None, None));
    }
}
