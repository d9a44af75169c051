//! Watches that never end: kube's watcher with backoff, whose first list `/readyz` waits for.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, future};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::crd::SandboxHealth;
use crate::health::Readiness;

/// A SandboxHealth object, or why it cannot be deserialized: an object of a newer version must not hide all others.
pub(crate) type GuardedObject = DeserializeGuard<SandboxHealth>;

/// Watches forever; `/readyz` names it `part` until the first list is complete. Errors are retried, and reported by the client.
pub(crate) fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    part: &'static str,
    readiness: Arc<Readiness>,
) -> impl Stream<Item = Event<K>>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + 'static,
{
    readiness.expect(part);
    watcher(api, config).default_backoff().filter_map(move |event| {
        match &event {
            Ok(Event::InitDone) => readiness.done(part),
            Ok(_) => {}
            Err(error) => tracing::debug!(part, %error, "watch failed; will retry"),
        }
        future::ready(event.ok())
    })
}

/// Removes the fields that no cache needs, half of an object, and warns if it cannot be deserialized.
pub(crate) fn prune(object: &mut GuardedObject) {
    object.meta_mut().managed_fields = None;
    if let Err(error) = &object.0 {
        let object = ObjectRef::from_obj(object);
        tracing::warn!(%object, error = %error.error, "skipping a SandboxHealth object that failed to deserialize");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, answering};
    use http::StatusCode;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test(start_paused = true)]
    async fn watch_that_was_forbidden_once_goes_on_and_stays_ready() {
        let was_refused = AtomicBool::new(false);
        let (client, _) = answering(move |request| {
            let version = json!({"resourceVersion": "1"});
            if !request.path.contains("watch=true") {
                Answer::Object(
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": version, "items": []}),
                )
            } else if !was_refused.swap(true, Ordering::Relaxed) {
                Answer::Refused(StatusCode::FORBIDDEN)
            } else {
                let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "resourceVersion": "2"}});
                Answer::Object(json!({"type": "ADDED", "object": pod}))
            }
        });
        let readiness = Arc::new(Readiness::default());
        let pods: Api<Pod> = Api::all(client);
        let events = watch(pods, watcher::Config::default(), "pods", readiness.clone());
        assert!(readiness.reasons().starts_with("pods: "), "{}", readiness.reasons());
        let events: Vec<_> = events.take(3).collect().await;
        assert!(matches!(&events[..], [Event::Init, Event::InitDone, Event::Apply(_)]), "{events:?}");
        assert_eq!(readiness.reasons(), "");
    }
}
