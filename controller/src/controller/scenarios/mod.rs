//! Reconciles against a mocked API server: which requests are made, and which are not. The decisions have tests of their own.

mod failures;
mod gc;
mod leadership;
mod objects;
mod pause_rollout;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action as Requeue;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::context::Context;
use super::emitter::Queued;
use super::index::fake::{FakeWatches, daemon_set, options, pod};
use super::metrics::ControllerMetrics;
use super::reconcile::{ReconcileError, failed, on_error, reconcile};
use super::{ControllerOptions, agent_events};
use crate::core::conditions::{AgentState, evaluate};
use crate::crd::SandboxHealth;
use crate::k8s::pod::LeanPod;
use crate::telemetry::Metrics as _;
use crate::testing::{Answer, Received, answering};

/// A leader, its caches, and the API server that it sees.
struct World {
    watches: FakeWatches,
    context: Arc<Context>,
    events: Option<Queued>,
    requests: Arc<Mutex<Vec<Received>>>,
}

impl World {
    fn new(answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_max_objects(100, answer)
    }

    fn with_max_objects(max: u32, answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_options(options(max), answer)
    }

    fn with_options(
        options: ControllerOptions,
        answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let watches = FakeWatches::new(&options, true);
        let (client, requests) = answering(answer);
        let (context, events) =
            Context::new(options, client, watches.index.clone(), Arc::default(), Arc::default());
        context.update_room();
        Self { watches, context: Arc::new(context), events: Some(events), requests }
    }

    /// Reconciles the pod of this name once.
    async fn reconcile(&self, name: &str) -> Result<Requeue, ReconcileError> {
        let pods = self.watches.index.pods.state();
        let pod = pods.iter().find(|pod| pod.name() == name).unwrap();
        reconcile(pod.clone(), self.context.clone()).await
    }

    /// Delivers the queued Events, for at most this time.
    async fn deliver(&mut self, seconds: u64) {
        let events = self.events.take().unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(seconds), self.context.emitter.run(events)).await;
    }

    /// Runs the queue for this time.
    async fn run(&self, seconds: u64) {
        let all = super::reconcile_all(self.context.clone());
        let _ = tokio::time::timeout(Duration::from_secs(seconds), all).await;
    }

    /// The requests so far, as method and last parts of the path.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(brief).collect()
    }

    fn bodies(&self) -> Vec<Value> {
        self.requests.lock().unwrap().iter().map(|request| request.body.clone()).collect()
    }
}

/// `PATCH shop/sandboxhealths/web/status`
fn brief(request: &Received) -> String {
    let path = request.path.split('?').next().unwrap_or_default();
    let place = path.split("/namespaces/").last().unwrap_or_default();
    format!("{} {place}", request.method)
}

fn object(uid: &str, status: Value) -> Value {
    let mut object = json!(SandboxHealth::of_pod("shop", "web", uid, "n"));
    object["metadata"]["uid"] = json!(format!("o-{uid}"));
    object["metadata"]["resourceVersion"] = json!("7");
    object["status"] = status;
    object
}

/// The server has each requested object, and accepts each write.
fn accepting(request: &Received) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    match &request.method {
        &Method::GET => Answer::Object(pod("web", "u-1")),
        _ if path.ends_with("/events") => Answer::Object(json!({"metadata": {}, "eventTime": null})),
        _ => {
            let mut written = object("u-1", json!({}));
            written["metadata"]["resourceVersion"] = json!("8");
            Answer::Object(written)
        }
    }
}

fn ago(minutes: i64) -> String {
    (Timestamp::now() - SignedDuration::from_mins(minutes)).to_string()
}

fn healthy() -> Value {
    json!({
        "restarts": 0, "source": "ProcScan", "sandbox": {"id": "a", "startedAt": ago(90)},
        "processes": {"zombies": 0, "zombiesPeak": 0, "total": 2, "observedAt": ago(90)},
    })
}

fn restarted() -> Value {
    let mut status = healthy();
    status["restarts"] = json!(1);
    status["history"] = json!([{"sandboxID": "z", "startedAt": ago(95), "reason": "PauseExited"}]);
    status["lastRestart"] =
        json!({"time": ago(5), "reason": "PauseExited", "message": "pause was killed by SIGKILL"});
    status
}

/// The status with the conditions that follow from it.
fn evaluated(mut status: Value) -> Value {
    let known = serde_json::from_value(status.clone()).unwrap();
    let evaluation = evaluate(&known, "n", None, AgentState::Ready, Timestamp::now());
    status["conditions"] = json!(evaluation.conditions);
    status
}
