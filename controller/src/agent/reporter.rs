//! Sends the reports of the node's pods: one request at a time per pod, and a rate limit for all of them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::Client;
use tokio::time::Instant;

use super::report::Request;
use super::tracker::Tracker;
use crate::core::token_bucket::TokenBucket;
use crate::crd::AGENT_FIELD_MANAGER;
use crate::health::Readiness;
use crate::k8s::error::{ApiError, record_write, reset_writes};
use crate::k8s::pod::NodePod;
use crate::k8s::status::{create, write};

/// Requests at once after a quiet time: a restart of all sandboxes must not load the API server.
const BURST: u32 = 20;
/// Between requests after that.
const INTERVAL: Duration = Duration::from_millis(200);

pub struct Response {
    pod: Arc<NodePod>,
    request: Request,
    result: Result<(), ApiError>,
}

pub struct Reporter {
    client: Client,
    readiness: Arc<Readiness>,
    rate: TokenBucket,
    pub responses: FuturesUnordered<BoxFuture<'static, Response>>,
}

impl Reporter {
    pub fn new(client: Client, readiness: Arc<Readiness>, now: Instant) -> Self {
        let rate = TokenBucket::new(BURST, INTERVAL, now);
        Self { client, readiness, rate, responses: FuturesUnordered::new() }
    }

    /// Sends due requests within the rate limit, in the order of the last requests of their pods, oldest first.
    pub fn send_due(&mut self, tracker: &mut Tracker, now: Instant) {
        let due = tracker.pods.values_mut().filter_map(|tracked| Some((tracked.request_due(now)?, tracked)));
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|(_, tracked)| tracked.report.requested_at);
        for (request, tracked) in due {
            if !self.rate.take(now) {
                break;
            }
            tracked.report.requested(now);
            self.responses.push(Box::pin(send(self.client.clone(), tracked.pod.clone(), request)));
        }
    }

    pub fn answered(&mut self, tracker: &mut Tracker, response: Response, now: Instant) {
        let Response { pod, request, result } = response;
        if let Request::WriteStatus(_) = request {
            record_write(&self.readiness, &result);
        }
        let Some(tracked) = tracker.pods.get_mut(pod.uid()) else { return };
        tracked.report.answered(request, &result, now);
        if let Err(error) = result {
            let (namespace, pod) = (pod.namespace(), pod.name());
            tracing::warn!(namespace, pod, %error, "failed to update SandboxHealth; will retry");
        }
    }

    /// Reports writes as ready once no pod's write is failing.
    pub fn check_readiness(&self, tracker: &Tracker) {
        if !tracker.pods.values().any(|tracked| tracked.report.is_failing()) {
            reset_writes(&self.readiness);
        }
    }
}

async fn send(client: Client, pod: Arc<NodePod>, request: Request) -> Response {
    let result = match &request {
        Request::CreateObject => create(&client, &*pod, &pod.node, AGENT_FIELD_MANAGER).await.map(drop),
        Request::WriteStatus(status) => write(&client, &*pod, status.as_ref().clone()).await,
    };
    Response { pod, request, result }
}
