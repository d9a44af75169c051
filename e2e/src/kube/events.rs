//! Events of the operator and of the kubelet.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::pods::uid_of;
use super::sandbox_health::sandbox_health;
use crate::cluster::Node;
use crate::host::retry::{self, TIMEOUT};

/// The Events in `default` that a field selector selects.
///
/// # Errors
///
/// When they cannot be listed.
pub fn events(node: &Node, selector: &str) -> Result<Vec<Value>> {
    let selector = selector.replace('=', "%3D").replace(',', "%2C");
    let mut list = node.read(&format!("/api/v1/namespaces/default/events?fieldSelector={selector}"))?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// The messages of the Events of a pod with this reason, oldest first. Events of an earlier pod of the same name are left out.
///
/// # Errors
///
/// When they cannot be listed.
pub fn events_of(node: &Node, pod: &str, reason: &str) -> Result<Vec<String>> {
    let uid = uid_of(node, pod)?;
    let mut items = events(node, &format!("involvedObject.uid={uid},reason={reason}"))?;
    // Timestamps have seconds or microseconds; the kubelet's Events have none with microseconds.
    items.sort_by_key(|item| {
        [&item["metadata"]["creationTimestamp"], &item["eventTime"]].map(Value::to_string)
    });
    Ok(items.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Waits until the object of a pod and its Events both report exactly so many restarts; the messages of the Events.
pub fn wait_for_restarts(node: &Node, pod: &str, restarts: usize) -> Result<Vec<String>> {
    retry::until(&format!("{pod} has {restarts} restarts"), TIMEOUT, || {
        let object = sandbox_health(node, pod)?;
        ensure!(object["status"]["restarts"] == restarts, "the object has {}", object["status"]);
        let messages = events_of(node, pod, "SandboxRestarted")?;
        ensure!(messages.len() == restarts, "{messages:?}");
        Ok(messages)
    })
}

/// The messages of all Events of restarts, by the UID of the pod.
pub fn restart_events_by_pod(node: &Node) -> Result<BTreeMap<String, Vec<String>>> {
    let mut messages: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in events(node, "reason=SandboxRestarted")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        messages.entry(text(&event["involvedObject"]["uid"])).or_default().push(text(&event["message"]));
    }
    Ok(messages)
}

/// The number in `… (restart 3): …` and in `… (at least restart 3): …`.
pub fn restart_number(message: &str) -> Option<usize> {
    message.split_once("restart ")?.1.split(')').next()?.parse().ok()
}
