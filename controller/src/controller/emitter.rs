//! Delivers Events: in the background, each on its own, with backoff, at a limited rate, and with few requests at a time for a
//! namespace, so that one whose webhooks hang delays no other. Which Events are due is decided in `core::events`.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::stream::FuturesUnordered;
use k8s_openapi::api::events::v1::Event;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::index::locked;
use super::metrics::{ControllerMetrics, EventOutcome};
use crate::core::events::{MAX_AGE, Reason};
use crate::core::token_bucket::TokenBucket;
use crate::k8s::error::ApiError;

/// Events at once after a quiet time: a node of 110 pods reboots.
const BURST: u32 = 110;
/// Between Events after that.
const INTERVAL: Duration = Duration::from_millis(50);
/// Requests at a time for one namespace.
const PER_NAMESPACE: usize = 4;
/// Attempts for an Event, the last about an hour after the first.
const ATTEMPTS: usize = 60;

pub type Queued = UnboundedReceiver<(Reason, Event)>;

pub struct Emitter {
    client: Client,
    metrics: Arc<ControllerMetrics>,
    rate: Mutex<TokenBucket>,
    queue: UnboundedSender<(Reason, Event)>,
    emitted: Mutex<HashMap<String, Instant>>,
}

impl Emitter {
    pub fn new(client: Client, metrics: Arc<ControllerMetrics>) -> (Self, Queued) {
        let (queue, queued) = unbounded();
        let rate = Mutex::new(TokenBucket::new(BURST, INTERVAL, Instant::now()));
        (Self { client, metrics, rate, queue, emitted: Mutex::default() }, queued)
    }

    pub fn emit(&self, reason: Reason, event: Event) {
        let is_new = locked(&self.emitted).insert(event.name_any(), Instant::now()).is_none();
        if is_new {
            let _ = self.queue.unbounded_send((reason, event));
        }
    }

    /// Forgets Events that are not due any more.
    pub fn prune(&self) {
        let max_age = MAX_AGE.unsigned_abs();
        locked(&self.emitted).retain(|_, at| at.elapsed() < max_age);
    }

    /// Delivers queued Events, forever.
    pub async fn run(&self, mut queued: Queued) {
        let mut deliveries = FuturesUnordered::new();
        let mut namespaces: HashMap<String, Arc<Semaphore>> = HashMap::new();
        loop {
            tokio::select! {
                Some((reason, event)) = queued.next() => {
                    let namespace = namespaces.entry(event.namespace().unwrap_or_default());
                    let slots = namespace.or_insert_with(|| Arc::new(Semaphore::new(PER_NAMESPACE))).clone();
                    deliveries.push(self.deliver(reason, event, slots));
                }
                Some(()) = deliveries.next() => namespaces.retain(|_, slots| Arc::strong_count(slots) > 1),
                else => return,
            }
        }
    }

    async fn deliver(&self, reason: Reason, event: Event, slots: Arc<Semaphore>) {
        let namespace = event.namespace().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let create = || async {
            // It is never closed.
            let _slot = slots.acquire().await;
            let start_at = locked(&self.rate).reserve(Instant::now());
            tokio::time::sleep_until(start_at).await;
            match api.create(&PostParams::default(), &event).await.map_err(ApiError::from) {
                // It was created for the same restart or onset, by this leader or another.
                Ok(_) | Err(ApiError::Conflict(_)) => Ok(()),
                Err(error) => Err(error),
            }
        };
        let backoff = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(Duration::from_secs(60))
            .with_max_times(ATTEMPTS)
            .with_jitter();
        let result =
            pin!(create.retry(backoff).sleep(tokio::time::sleep).when(|error| !error.is_final())).await;
        let outcome = match &result {
            Ok(()) => EventOutcome::Created,
            Err(error) if error.is_final() => EventOutcome::Refused,
            Err(_) => EventOutcome::Failed,
        };
        self.metrics.event(reason, outcome);
        if let Err(error) = result
            && !matches!(error, ApiError::NamespaceTerminating(_))
        {
            tracing::warn!(namespace, event = event.name_any(), reason = reason.into_str(), %error, "failed to create the Event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, Received, answering};
    use http::StatusCode;
    use serde_json::json;

    fn event(namespace: &str, name: &str) -> Event {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}, "eventTime": null}))
            .unwrap()
    }

    fn ok() -> Answer {
        Answer::Object(json!({"metadata": {}, "eventTime": null}))
    }

    /// Emits these Events and waits; the requests, each with the seconds since the start.
    async fn emitted(
        events: impl IntoIterator<Item = Event>,
        answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
        wait: u64,
    ) -> (Vec<(u64, String)>, Arc<ControllerMetrics>) {
        let start = Instant::now();
        let (client, requests) = answering(answer);
        let metrics = Arc::<ControllerMetrics>::default();
        let (emitter, queued) = Emitter::new(client, metrics.clone());
        for event in events {
            emitter.emit(Reason::SandboxRestarted, event);
        }
        let _ = tokio::time::timeout(Duration::from_secs(wait), emitter.run(queued)).await;
        let requests = requests.lock().unwrap();
        let name = |request: &Received| request.body["metadata"]["name"].as_str().unwrap().to_owned();
        let requests = requests.iter().map(|request| ((request.at - start).as_secs(), name(request)));
        (requests.collect(), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn event_is_created_once() {
        let (requests, _) = emitted([event("shop", "a"), event("shop", "a")], |_| ok(), 3600).await;
        assert_eq!(requests.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn conflict_is_success_and_refusal_is_final() {
        for (code, outcome) in [(409, "created"), (403, "refused"), (422, "refused"), (404, "refused")] {
            let answer = move |_: &Received| Answer::Refused(StatusCode::from_u16(code).unwrap());
            let (requests, metrics) = emitted([event("shop", "a")], answer, 7200).await;
            assert_eq!(requests.len(), 1, "{code}");
            let line =
                format!("sandboxhealth_events_total{{reason=\"SandboxRestarted\",outcome=\"{outcome}\"}} 1");
            assert!(crate::telemetry::Metrics::render(&*metrics).unwrap().contains(&line), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_event_is_retried_with_backoff_for_an_hour() {
        let answer = |_: &Received| Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR);
        let (requests, _) = emitted([event("shop", "a")], answer, 3 * 3600).await;
        assert_eq!(requests.len(), ATTEMPTS + 1);
        let last = requests.last().unwrap().0;
        assert!((3000..3 * 3600).contains(&last), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn namespace_whose_webhooks_hang_does_not_delay_others() {
        let slow = (0..1000).map(|index| event("slow", &format!("slow-{index}")));
        let answer = |request: &Received| {
            if request.path.contains("/slow/") { Answer::Silence } else { ok() }
        };
        let (requests, _) = emitted(slow.chain([event("shop", "a")]), answer, 60).await;
        let (at, _) = requests.iter().find(|(_, name)| name == "a").unwrap();
        assert_eq!(*at, 0);
        assert!(requests.len() < 100, "{}", requests.len());
    }

    #[tokio::test(start_paused = true)]
    async fn rate_is_limited_after_a_burst() {
        let namespaces = (0..300).map(|index| event(&format!("ns-{index}"), &format!("e-{index}")));
        let (requests, _) = emitted(namespaces, |_| ok(), 60).await;
        let within = |second| requests.iter().filter(|(at, _)| *at <= second).count();
        assert_eq!(requests.len(), 300);
        assert!((BURST as usize..BURST as usize + 25).contains(&within(0)), "{}", within(0));
        assert!(within(5) < 240, "{}", within(5));
    }
}
