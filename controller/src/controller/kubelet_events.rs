//! The kubelet's last warning about a pod whose sandbox is not created. Events are not watched, because most of them do not concern
//! sandboxes: those of the pod are listed when it becomes `SandboxNotCreated`, and every few minutes after that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client};
use tokio::time::Instant;

use super::index::locked;
use crate::core::token_bucket::TokenBucket;
use crate::k8s::error::ApiError;
use crate::k8s::pod::LeanPod;
use crate::text::{cut, printable};

/// Least time between two lists for a pod.
const REFRESH: Duration = Duration::from_secs(300);
/// Lists at once after a quiet time: the API server reads all Events of the namespace from etcd for each.
const BURST: u32 = 10;
/// Between lists after that.
const INTERVAL: Duration = Duration::from_secs(2);
/// Limit in bytes of a warning.
pub const WARNING_MAX: usize = 300;

pub struct KubeletEvents {
    rate: Mutex<TokenBucket>,
    listed: Mutex<HashMap<ObjectRef<LeanPod>, Instant>>,
}

impl KubeletEvents {
    pub fn new(now: Instant) -> Self {
        Self { rate: Mutex::new(TokenBucket::new(BURST, INTERVAL, now)), listed: Mutex::default() }
    }

    /// Lists the Events of a pod. `None` if that is not due, or there is no warning.
    pub async fn last_warning(&self, client: &Client, pod: &LeanPod) -> Option<String> {
        if !self.take_turn(ObjectRef::from_obj(pod), Instant::now()) {
            return None;
        }
        let events: Api<Event> = Api::namespaced(client.clone(), pod.namespace());
        // As in the Events that we create.
        let uid = pod.mirror_uid.as_deref().unwrap_or(pod.uid());
        let selector = format!("regarding.uid={uid},type=Warning,reportingController=kubelet");
        match events.list(&ListParams::default().fields(&selector)).await.map_err(ApiError::from) {
            Ok(list) => newest(&list.items)?.note.as_deref().map(one_line),
            Err(error) => {
                let (namespace, pod) = (pod.namespace(), pod.name());
                tracing::warn!(namespace, pod, %error, "failed to list the pod's Events");
                None
            }
        }
    }

    fn take_turn(&self, pod: ObjectRef<LeanPod>, now: Instant) -> bool {
        let mut listed = locked(&self.listed);
        let is_due = listed.get(&pod).is_none_or(|at| now.duration_since(*at) >= REFRESH)
            && locked(&self.rate).take(now);
        if is_due {
            listed.insert(pod, now);
        }
        is_due
    }

    pub fn retain(&self, exists: impl Fn(&ObjectRef<LeanPod>) -> bool) {
        locked(&self.listed).retain(|pod, _| exists(pod));
    }
}

/// The Event that was observed last.
pub(super) fn newest<'a>(events: impl IntoIterator<Item = &'a Event>) -> Option<&'a Event> {
    let time = |event: &&Event| -> Option<Timestamp> {
        let series = event.series.as_ref().map(|series| series.last_observed_time.0);
        let last = event.deprecated_last_timestamp.as_ref().map(|last| last.0);
        series.or(last).or(event.event_time.as_ref().map(|first| first.0))
    };
    events.into_iter().max_by_key(time)
}

/// One line of limited length. `ID` replaces the id of a sandbox that was not created: each attempt has another one.
pub(super) fn one_line(note: &str) -> String {
    let is_id = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = note.split_inclusive(|it: char| !it.is_ascii_alphanumeric()).map(|word| {
        let id = word.trim_end_matches(|it: char| !it.is_ascii_alphanumeric());
        if is_id(id) { word.replace(id, "ID") } else { word.to_owned() }
    });
    let line = words.collect::<String>().replace('"', "'");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&printable(line.as_bytes()), WARNING_MAX).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn warning_is_one_printable_line_without_ids() {
        let id = "9c1185a5".repeat(8);
        let note = format!("Failed to create \"{id}\":\n\tno address\u{202e}; id ({id}) and {}", &id[1..]);
        let expected = format!("Failed to create 'ID': no address?; id (ID) and {}", &id[1..]);
        assert_eq!(one_line(&note), expected);
        assert_eq!(one_line(&"x".repeat(1000)).len(), WARNING_MAX);
    }

    #[test]
    fn newest_event_is_the_last_observed_one() {
        let event = |note: &str, times: serde_json::Value| {
            let mut event = json!({"metadata": {}, "eventTime": null, "note": note});
            event.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
            serde_json::from_value::<Event>(event).unwrap()
        };
        let at = |minute: u32| format!("2027-01-15T08:{minute:02}:00.000000Z");
        let events = [
            event("first", json!({"eventTime": at(1)})),
            event("repeated", json!({"deprecatedLastTimestamp": "2027-01-15T08:09:00Z", "eventTime": at(2)})),
            event("series", json!({"eventTime": at(0), "series": {"count": 2, "lastObservedTime": at(8)}})),
        ];
        let newest = |events: &[Event]| newest(events)?.note.clone();
        assert_eq!(newest(&events).as_deref(), Some("repeated"));
        assert_eq!(newest(&events[..1]).as_deref(), Some("first"));
        assert_eq!(newest(&[]), None);
    }
}
