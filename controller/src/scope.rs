//! Which pods are looked at and for how long, and which pods are the agents'. Both parts must agree on it, so it stands here
//! once.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Whose sandboxes are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WatchPods {
    /// Pods with `shareProcessNamespace: true`.
    SharedPidNamespace,
    /// Every pod that has PID namespaces of its own. One that doesn't share a single one gets an object only once something is
    /// wrong with it.
    All,
}

/// How a pod's processes are kept apart from others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespaces {
    /// One for the whole pod, whose PID 1 is pause (`shareProcessNamespace: true`).
    Shared,
    /// One for each container, whose own PID 1 must reap.
    PerContainer,
}

impl WatchPods {
    /// How the pod's processes are kept apart, if it's to be watched.
    #[must_use]
    pub fn watched(self, pod: &Pod) -> Option<PidNamespaces> {
        let spec = pod.spec.as_ref()?;
        // With the node's PID namespace there is none of the pod; the API refuses to share one at the same time.
        if spec.host_pid == Some(true) {
            return None;
        }
        match (spec.share_process_namespace, self) {
            (Some(true), _) => Some(PidNamespaces::Shared),
            (_, Self::All) => Some(PidNamespaces::PerContainer),
            (_, Self::SharedPidNamespace) => None,
        }
    }
}

/// Whether all containers of the pod ended for good.
#[must_use]
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the pod is ready, by its conditions.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|has| has.type_ == "Ready" && has.status == "True")
}

/// Labels that an object must have, written as `key=value,…`; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(BTreeMap<String, String>);

impl Selector {
    /// Whether the object has all of them.
    #[must_use]
    pub fn matches(&self, metadata: &ObjectMeta) -> bool {
        let labels = metadata.labels.as_ref();
        self.0.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<_> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        formatter.write_str(&labels.join(","))
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("{pair:?} is not key=value")),
        };
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(pair).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut pod = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"containers": []}});
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_without_a_shared_namespace_is_watched_only_with_all() {
        use PidNamespaces::{PerContainer, Shared};
        use WatchPods::{All, SharedPidNamespace};
        for (spec, sharing_alone, all) in [
            (json!({"shareProcessNamespace": true}), Some(Shared), Some(Shared)),
            (json!({"shareProcessNamespace": false}), None, Some(PerContainer)),
            (json!({}), None, Some(PerContainer)),
            (json!({"hostPID": true}), None, None),
        ] {
            let pod = pod(spec.clone());
            assert_eq!((SharedPidNamespace.watched(&pod), All.watched(&pod)), (sharing_alone, all), "{spec}");
        }
    }

    #[test]
    fn a_selector_asks_for_every_label() {
        let pod = pod(json!({}));
        let matches = |text: &str| text.parse::<Selector>().unwrap().matches(&pod.metadata);
        assert!(matches("a=1") && matches("a=1,b=2") && matches(""));
        assert!(!matches("a=1,b=3") && !matches("c="));
        assert_eq!("b=2,a=1".parse::<Selector>().unwrap().to_string(), "a=1,b=2");
        for bad in ["a", "=1", "a=1,"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
