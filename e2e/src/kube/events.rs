//! Events of the operator and of the kubelet.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::pods::uid_of;
use super::sandbox_health::sandbox_health;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};

/// The notes of the Events about this very pod so far, oldest first. An earlier pod of the name has left some, too.
///
/// # Errors
///
/// When they cannot be listed.
pub fn events_of(node: &Node, pod: &str, reason: &str) -> Result<Vec<String>> {
    let uid = uid_of(node, pod)?;
    let selector = format!("involvedObject.uid={uid},reason={reason}");
    let mut list = node.get(&["events", "--field-selector", &selector])?;
    let mut items: Vec<Value> = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    // The one has seconds, the other microseconds; the kubelet's Events have none of those.
    items.sort_by_key(|item| {
        [&item["metadata"]["creationTimestamp"], &item["eventTime"]].map(Value::to_string)
    });
    Ok(items.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Waits until row and Events both tell of exactly so many restarts.
pub fn told_of(node: &Node, pod: &str, restarts: usize) -> Result<Vec<String>> {
    retry::until(&format!("{pod} has {restarts} restarts"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        ensure!(object["status"]["restarts"] == restarts, "the row says {}", object["status"]);
        let told = events_of(node, pod, "SandboxRestarted")?;
        ensure!(told.len() == restarts, "{told:?}");
        Ok(told)
    })
}

/// The notes of all Events of restarts, by the UID of the pod.
pub fn events_by_pod(node: &Node) -> Result<BTreeMap<String, Vec<String>>> {
    let list = node.get(&["events", "--field-selector", "reason=SandboxRestarted"])?;
    let mut notes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in list["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        notes.entry(text(&event["involvedObject"]["uid"])).or_default().push(text(&event["message"]));
    }
    Ok(notes)
}

/// The number in `Sandbox restart 3: …` and in `Sandbox restart 3, at least: …`.
pub fn number_of(note: &str) -> Option<usize> {
    note.strip_prefix("Sandbox restart ")?.split([',', ':']).next()?.parse().ok()
}
