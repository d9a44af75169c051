//! Requests of agent and controller in the audit log of an API server (audit.k8s.io/v1 Event, one per line).

use anyhow::Result;
use serde_json::Value;

use crate::cluster::Node;
use crate::names::RELEASE_NAMESPACE;

/// A colon-separated list of the audit logs of all scenarios: `cargo e2e` sets it for the tests that run after a complete and successful run.
pub const AUDIT_LOGS: &str = "SANDBOX_HEALTH_AUDIT_LOGS";

/// A request of agent or controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// `agent` or `controller`.
    pub component: String,
    /// The verb of the API, such as `patch`.
    pub verb: String,
    /// With the subresource: `sandboxhealths/status`.
    pub resource: String,
    /// Of the object; empty for lists.
    pub name: String,
    /// When the API server received it (RFC 3339, microseconds).
    pub at: String,
    /// With the query.
    pub uri: String,
}

impl Call {
    /// `None` for a request of another client, and for the first of two lines of one request.
    fn parse(event: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = text(&event["user"]["username"]);
        let account = user.strip_prefix(&format!("system:serviceaccount:{RELEASE_NAMESPACE}:"))?;
        // `helm test` has an account as well.
        let component =
            ["agent", "controller"].into_iter().find(|name| account.ends_with(&format!("-{name}")))?;
        // Tests send requests that must be denied with a copied token, by kubectl.
        if text(&event["userAgent"]).starts_with("kubectl/") {
            return None;
        }
        // A watch may last longer than the tests.
        if event["verb"] != "watch" && event["stage"] != "ResponseComplete" {
            return None;
        }
        let object = &event["objectRef"];
        let resource = match (text(&object["resource"]), text(&object["subresource"])) {
            (resource, _) if resource.is_empty() => text(&event["requestURI"]),
            (resource, subresource) if subresource.is_empty() => resource,
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        Some(Self {
            component: component.to_owned(),
            verb: text(&event["verb"]),
            resource,
            name: text(&object["name"]),
            at: text(&event["requestReceivedTimestamp"]),
            uri: text(&event["requestURI"]),
        })
    }

    /// Whether a list or watch selects the objects of one node.
    #[must_use]
    pub fn is_limited_to_one_node(&self) -> bool {
        !["list", "watch"].contains(&self.verb.as_str())
            || self.uri.contains("fieldSelector=spec.nodeName%3D")
    }

    /// Whether the API server answers it without a scan of etcd: it is no list, a list without a selector, or a list that is answered from
    /// the watch cache. A list with a selector that is read from etcd decodes every object of the resource. That happens without
    /// `resourceVersion=0`, and before Kubernetes 1.34 for each page after the first. Events have no watch cache.
    #[must_use]
    pub fn scans_no_store(&self) -> bool {
        self.verb != "list"
            || self.resource == "events"
            || !self.uri.contains("Selector=")
            || (self.uri.contains("resourceVersion=0") && !self.uri.contains("limit="))
    }

    /// Whether it changes an object. Renewals of the Lease count, too.
    #[must_use]
    pub fn is_write(&self) -> bool {
        ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str())
    }
}

/// The requests of agent and controller in the text of an audit log.
///
/// # Errors
///
/// When a line is not JSON.
pub fn calls(log: &str) -> Result<Vec<Call>> {
    // The last line may be incomplete.
    let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let mut calls = Vec::new();
    for line in complete.lines().filter(|line| line.contains(RELEASE_NAMESPACE)) {
        calls.extend(Call::parse(&serde_json::from_str(line)?));
    }
    Ok(calls)
}

/// The writes of agent and controller to a cluster so far, without the Lease, which is renewed all the time.
///
/// # Errors
///
/// When the audit log cannot be read.
pub fn writes(node: &Node) -> Result<Vec<Call>> {
    let calls = calls(&node.audit_log()?)?;
    Ok(calls.into_iter().filter(|call| call.is_write() && call.resource != "leases").collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(user: &str, verb: &str, stage: &str) -> String {
        let user = format!("system:serviceaccount:{RELEASE_NAMESPACE}:{user}");
        json!({
            "stage": stage, "verb": verb, "user": {"username": user}, "requestURI": "/apis/x?limit=1",
            "objectRef": {"resource": "sandboxhealths", "subresource": "status", "name": "web"},
            "requestReceivedTimestamp": "2026-11-28T11:00:00.000001Z",
        })
        .to_string()
    }

    #[test]
    fn selected_list_must_come_from_the_watch_cache() {
        for (query, expected) in [
            ("limit=100", true),
            ("fieldSelector=spec.nodeName%3Dn&resourceVersion=0", true),
            ("fieldSelector=spec.nodeName%3Dn", false),
            ("fieldSelector=spec.nodeName%3Dn&limit=10&resourceVersion=0", false),
        ] {
            let log = event("sandbox-health-agent", "list", "ResponseComplete").replace("limit=1", query);
            assert_eq!(calls(&format!("{log}\n")).unwrap()[0].scans_no_store(), expected, "{query}");
        }
    }

    #[test]
    fn requests_of_agent_and_controller_are_parsed() {
        let log = [
            event("sandbox-health-agent", "patch", "ResponseComplete"),
            event("sandbox-health-test", "get", "ResponseComplete"),
            event("sandbox-health-controller", "list", "ResponseStarted"),
            event("sandbox-health-controller", "watch", "ResponseStarted"),
        ];
        let calls = calls(&format!("{}\n{{\"incomplete\"", log.join("\n"))).unwrap();
        let found: Vec<_> = calls.iter().map(|call| (call.component.as_str(), call.verb.as_str())).collect();
        assert_eq!(found, [("agent", "patch"), ("controller", "watch")]);
        assert_eq!(calls[0].resource, "sandboxhealths/status");
        assert!(calls[0].is_write() && calls[0].is_limited_to_one_node());
        assert!(!calls[1].is_write() && !calls[1].is_limited_to_one_node());
    }
}
