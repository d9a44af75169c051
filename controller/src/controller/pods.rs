//! What is kept of each pod that is watched, and of others nothing: a cluster has many. It makes no request and reads no clock.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use crate::sandbox_condition::SandboxCondition;
use crate::scope::{PidNamespaces, WatchPods, is_finished};

/// Namespace and name of a pod, as `namespace/name`. Many hold it, so that they share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey(Arc<str>);

impl PodKey {
    /// The key of the pod of this name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The key of the pod that has this metadata, or of the one whose object has it: they have the same name.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        let [namespace, name] =
            [&metadata.namespace, &metadata.name].map(|part| part.as_deref().unwrap_or_default());
        Self::new(namespace, name)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }

    /// Neither of them has a slash.
    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or_default()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A pod that is watched and has a node, as far as anything is decided by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPod {
    /// Its name.
    pub key: PodKey,
    /// Its UID.
    pub uid: Box<str>,
    /// Name of its node.
    pub node: Box<str>,
    /// How its processes are kept apart.
    pub namespaces: PidNamespaces,
    /// Whether all its containers ended for good.
    pub is_finished: bool,
    /// When it was asked to go, if it was.
    pub asked_to_go: Option<Timestamp>,
    /// What the kubelet says of its sandbox.
    pub sandbox: Option<SandboxCondition>,
}

impl KeptPod {
    /// What is kept of a pod; `None` for one that is not to be watched, or has no node yet.
    #[must_use]
    pub fn of(pod: &Pod, watch: WatchPods) -> Option<Self> {
        let namespaces = watch.watched(pod)?;
        Some(Self {
            key: PodKey::of(&pod.metadata),
            uid: pod.metadata.uid.as_deref()?.into(),
            node: pod.spec.as_ref()?.node_name.as_deref()?.into(),
            namespaces,
            is_finished: is_finished(pod),
            asked_to_go: asked_to_go(&pod.metadata),
            sandbox: SandboxCondition::of(pod),
        })
    }
}

fn asked_to_go(metadata: &ObjectMeta) -> Option<Timestamp> {
    // It is when the grace ends, which may be hours from when it began.
    let ends = metadata.deletion_timestamp.as_ref()?.0;
    let grace = SignedDuration::from_secs(metadata.deletion_grace_period_seconds.unwrap_or_default());
    Some(ends.checked_sub(grace).unwrap_or(ends))
}

/// The pods that are kept.
#[derive(Debug, Default)]
pub struct Pods {
    known: HashMap<PodKey, Arc<KeptPod>>,
    /// Those of a list that is not complete. What it lacks is gone, and that is known when it is complete.
    listed: HashMap<PodKey, Arc<KeptPod>>,
}

impl Pods {
    /// Takes in what the watch brought: the pod, if it's kept, or was until now.
    pub fn take_in(&mut self, event: &Event<Pod>, watch: WatchPods) -> Option<Arc<KeptPod>> {
        match event {
            Event::Apply(pod) => keep(&mut self.known, pod, watch),
            Event::Delete(pod) => self.known.remove(&PodKey::of(&pod.metadata)),
            Event::InitApply(pod) => keep(&mut self.listed, pod, watch),
            Event::Init => {
                self.listed = HashMap::new();
                None
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.known.shrink_to_fit();
                None
            }
        }
    }

    /// The pod of this name.
    #[must_use]
    pub fn get(&self, key: &PodKey) -> Option<Arc<KeptPod>> {
        self.known.get(key).cloned()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &KeptPod> {
        self.known.values().map(|pod| &**pod)
    }
}

fn keep(pods: &mut HashMap<PodKey, Arc<KeptPod>>, pod: &Pod, watch: WatchPods) -> Option<Arc<KeptPod>> {
    let Some(kept) = KeptPod::of(pod, watch).map(Arc::new) else {
        // One of its name that was kept is gone.
        return pods.remove(&PodKey::of(&pod.metadata));
    };
    pods.insert(kept.key.clone(), kept.clone());
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, uid: &str, changes: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        for (part, fields) in changes.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                pod[part][field] = value.clone();
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    fn kept(changes: Value) -> Option<KeptPod> {
        KeptPod::of(&pod("web", "u-1", changes), WatchPods::SharedPidNamespace)
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    #[test]
    fn a_pod_is_kept_in_some_dozens_of_bytes_and_its_names() {
        assert!(size_of::<KeptPod>() <= 104, "{}", size_of::<KeptPod>());
        assert_eq!(size_of::<PodKey>(), 16);
    }

    #[test]
    fn what_decisions_need_is_kept() {
        let ready = json!({"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2027-01-15T08:00:00Z"});
        let expected = KeptPod {
            key: PodKey::new("shop", "web"),
            uid: "u-1".into(),
            node: "n".into(),
            namespaces: PidNamespaces::Shared,
            is_finished: false,
            asked_to_go: None,
            sandbox: Some(SandboxCondition { ready: true, at: at("2027-01-15T08:00:00Z") }),
        };
        assert_eq!(kept(json!({"status": {"conditions": [ready]}})), Some(expected));
        assert!(kept(json!({"status": {"phase": "Failed"}})).unwrap().is_finished);
    }

    #[test]
    fn of_a_pod_that_is_not_watched_or_has_no_node_nothing_is_kept() {
        for changes in [
            json!({"spec": {"shareProcessNamespace": false}}),
            json!({"spec": {"hostPID": true}}),
            json!({"spec": {"nodeName": null}}),
        ] {
            assert_eq!(kept(changes.clone()), None, "{changes}");
        }
        let own = pod("web", "u-1", json!({"spec": {"shareProcessNamespace": false}}));
        let kept = KeptPod::of(&own, WatchPods::All).unwrap();
        assert_eq!(kept.namespaces, PidNamespaces::PerContainer);
    }

    #[test]
    fn a_pod_was_asked_to_go_when_its_grace_began() {
        let asked = |metadata: Value| kept(json!({ "metadata": metadata })).unwrap().asked_to_go;
        let ends = "2027-01-15T09:00:00Z";
        assert_eq!(asked(json!({ "deletionTimestamp": ends })), Some(at(ends)));
        let graceful = json!({"deletionTimestamp": ends, "deletionGracePeriodSeconds": 3600});
        assert_eq!(asked(graceful), Some(at("2027-01-15T08:00:00Z")));
        let beyond = json!({"deletionTimestamp": ends, "deletionGracePeriodSeconds": i64::MAX});
        assert_eq!(asked(beyond), Some(at(ends)));
    }

    #[test]
    fn a_key_has_a_namespace_and_a_name() {
        let key = PodKey::of(&pod("web.1", "u-1", json!({})).metadata);
        assert_eq!((key.namespace(), key.name(), key.to_string().as_str()), ("shop", "web.1", "shop/web.1"));
    }

    #[test]
    fn what_a_list_lacks_is_kept_until_the_list_is_complete() {
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut pods = Pods::default();
        let mut take_in = |event: Event<Pod>| {
            let told_of = pods.take_in(&event, WatchPods::SharedPidNamespace);
            let mut known: Vec<_> = pods.iter().map(|pod| format!("{} {}", pod.key, pod.uid)).collect();
            known.sort();
            (told_of.map(|pod| pod.key.name().to_owned()), known.join(", "))
        };
        let (a, b) = (pod("a", "1", json!({})), pod("b", "1", json!({})));
        let own = pod("own", "1", json!({"spec": {"shareProcessNamespace": false}}));
        let told = |name: &str, known: &str| (Some(name.to_owned()), known.to_owned());
        let silent = |known: &str| (None, known.to_owned());
        assert_eq!(take_in(Init), silent(""));
        assert_eq!(take_in(InitApply(a.clone())), told("a", ""));
        assert_eq!(take_in(InitApply(own.clone())), silent(""));
        assert_eq!(take_in(InitDone), silent("shop/a 1"));
        assert_eq!(take_in(Apply(b.clone())), told("b", "shop/a 1, shop/b 1"));
        assert_eq!(take_in(Apply(own)), silent("shop/a 1, shop/b 1"));
        let pending = pod("b", "2", json!({"spec": {"nodeName": null}}));
        assert_eq!(take_in(Apply(pending.clone())), told("b", "shop/a 1"), "an earlier one of the name");
        assert_eq!(take_in(Apply(pending)), silent("shop/a 1"));
        assert_eq!(take_in(Apply(pod("b", "2", json!({})))), told("b", "shop/a 1, shop/b 2"));
        // A list that breaks off is begun anew.
        assert_eq!(take_in(Init), silent("shop/a 1, shop/b 2"));
        assert_eq!(take_in(InitApply(a)), told("a", "shop/a 1, shop/b 2"));
        assert_eq!(take_in(Init), silent("shop/a 1, shop/b 2"));
        assert_eq!(take_in(InitApply(b.clone())), told("b", "shop/a 1, shop/b 2"));
        assert_eq!(take_in(InitDone), silent("shop/b 1"));
        assert_eq!(take_in(Delete(b.clone())), told("b", ""));
        assert_eq!(take_in(Delete(b)), silent(""));
    }
}
