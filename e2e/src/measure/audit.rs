//! The operator's writes in the audit log of an API server. They are recognized by their resource, which no other client writes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;

/// A write of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) at: Timestamp,
    /// Verb and resource, such as `create sandboxhealths` or `patch sandboxhealths/status`.
    pub(super) what: String,
    pub(super) ok: bool,
}

/// Resources that no other client writes while the controller is measured.
const RESOURCES: [&str; 2] = ["sandboxhealths", "events"];

/// The operator's writes in the text of an audit log. Writes for fake nodes and their pods are left out.
pub(super) fn writes(log: &str) -> Result<Vec<Write>> {
    let mut writes = vec![];
    for line in log.lines().filter(|line| RESOURCES.iter().any(|resource| line.contains(resource))) {
        let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let resource = text("/objectRef/resource");
        if !RESOURCES.contains(&resource) || text("/userAgent").starts_with("kwok") {
            continue;
        }
        let subresource = text("/objectRef/subresource");
        let slash = if subresource.is_empty() { "" } else { "/" };
        let code = event.pointer("/responseStatus/code").and_then(Value::as_i64).unwrap_or_default();
        writes.push(Write {
            at: text("/stageTimestamp").parse().context("the time of a write")?,
            what: format!("{} {resource}{slash}{subresource}", text("/verb")),
            ok: (200..300).contains(&code),
        });
    }
    Ok(writes)
}

/// Number of writes by verb and resource.
pub(super) fn counted<'a>(writes: impl IntoIterator<Item = &'a Write>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for write in writes {
        let failed = if write.ok { "" } else { " (refused)" };
        *counts.entry(format!("{}{failed}", write.what)).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(verb: &str, object: Value, code: u16, agent: &str) -> String {
        json!({
            "stageTimestamp": "2026-11-25T04:00:01.250000Z", "verb": verb, "objectRef": object,
            "responseStatus": {"code": code}, "userAgent": agent,
        })
        .to_string()
    }

    #[test]
    fn writes_of_other_clients_are_left_out() {
        let log = [
            line("create", json!({"resource": "sandboxhealths"}), 201, ""),
            line("patch", json!({"resource": "sandboxhealths", "subresource": "status"}), 200, ""),
            line("patch", json!({"resource": "sandboxhealths", "subresource": "status"}), 409, ""),
            line("patch", json!({"resource": "pods", "name": "events", "subresource": "status"}), 200, ""),
            line("create", json!({"resource": "events"}), 201, "kwok/v0.8.0"),
        ];
        let writes = writes(&log.join("\n")).unwrap();
        let expected = [
            ("create sandboxhealths", 1),
            ("patch sandboxhealths/status", 1),
            ("patch sandboxhealths/status (refused)", 1),
        ];
        let expected = expected.map(|(what, count)| (what.to_owned(), count));
        assert_eq!(counted(&writes), expected.into());
        assert_eq!(writes[0].at, "2026-11-25T04:00:01.25Z".parse().unwrap());
    }
}
