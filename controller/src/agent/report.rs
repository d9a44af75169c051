//! The report of one pod: its SandboxHealth object, what was written to it, and the request that is due. Nothing is sent here, and which
//! status is worth a write is decided in `core::report_policy`.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::core::report_policy::{REFRESH, Urgency, is_sandbox_change, is_unhealthy, urgency};
use crate::core::token_bucket::TokenBucket;
use crate::crd::SandboxHealthStatus;
use crate::k8s::error::ApiError;
use crate::k8s::pod::PidNamespaces;

/// Writes at once of changes that the pod itself can cause; after that, one per [`REFRESH`].
const POD_CAUSED_BURST: u32 = 10;
/// Time that the controller has to create the object of an unhealthy pod before the agent does, above the limit of objects.
const CREATE_GRACE: Duration = Duration::from_secs(10);
/// Backoff after failed requests: jitter makes each delay up to twice as long.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_secs(1))
    .with_max_delay(Duration::from_secs(30))
    .with_jitter()
    .without_max_times();

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    CreateObject,
    WriteStatus(Box<SandboxHealthStatus>),
}

#[derive(Debug)]
pub struct Report {
    /// UID of the object; `None` while there is none.
    pub object: Option<String>,
    written: Option<(SandboxHealthStatus, Instant)>,
    /// Since when the pod is unhealthy without an object.
    missed_since: Option<Instant>,
    pod_caused: TokenBucket,
    is_requesting: bool,
    pub requested_at: Option<Instant>,
    /// When to retry after a failure, and the delays after that.
    retry: Option<(Instant, ExponentialBackoff)>,
}

impl Report {
    pub fn new(now: Instant) -> Self {
        Self {
            object: None,
            written: None,
            missed_since: None,
            pod_caused: TokenBucket::new(POD_CAUSED_BURST, REFRESH, now),
            is_requesting: false,
            requested_at: None,
            retry: None,
        }
    }

    /// Sets the UID of another object, or of none, with the status `written` to it. A status that an earlier object had is written again.
    pub fn set_object(&mut self, uid: Option<&str>, written: Option<SandboxHealthStatus>, now: Instant) {
        self.object = uid.map(str::to_owned);
        self.written = written.map(|status| (status, now));
        self.retry = None;
    }

    pub fn is_failing(&self) -> bool {
        self.retry.is_some()
    }

    /// The request that is due. A pod that `is_ending` has no sandbox any more.
    pub fn due(
        &mut self,
        status: &SandboxHealthStatus,
        namespaces: Option<PidNamespaces>,
        is_ending: bool,
        now: Instant,
    ) -> Option<Request> {
        if self.object.is_some() || !is_unhealthy(status) {
            self.missed_since = None;
        }
        if self.is_requesting || self.retry.as_ref().is_some_and(|(at, _)| now < *at) {
            return None;
        }
        if is_ending && !self.has_unwritten_change(status) {
            // The object is about to be deleted with its pod.
            return None;
        }
        if self.object.is_none() {
            // The controller creates none for a pod that does not share its PID namespace.
            let is_shared = namespaces == Some(PidNamespaces::Shared);
            let grace = if is_shared { CREATE_GRACE } else { Duration::ZERO };
            let is_due = is_unhealthy(status) && now >= *self.missed_since.get_or_insert(now) + grace;
            return is_due.then_some(Request::CreateObject);
        }
        let written = self.written.as_ref().map(|(status, at)| (status, *at));
        let is_due = match urgency(written, status, now) {
            Urgency::None => false,
            Urgency::RateLimited => self.pod_caused.has_token(now),
            Urgency::Immediate => true,
        };
        is_due.then(|| Request::WriteStatus(Box::new(status.clone())))
    }

    fn has_unwritten_change(&self, status: &SandboxHealthStatus) -> bool {
        let written = self.written.as_ref().map(|(status, _)| status);
        let restarts = written.map_or(0, |written| written.restarts);
        let termination = written.and_then(|written| written.termination.as_ref());
        self.object.is_some() && (status.restarts > restarts || status.termination.as_ref() != termination)
    }

    pub fn requested(&mut self, now: Instant) {
        self.is_requesting = true;
        self.requested_at = Some(now);
    }

    pub fn answered(&mut self, request: Request, result: &Result<(), ApiError>, now: Instant) {
        self.is_requesting = false;
        match (request, result) {
            (Request::WriteStatus(status), Ok(())) => {
                self.retry = None;
                return self.written_now(*status, now);
            }
            // The server may have stored a status that is no longer true.
            (Request::WriteStatus(_), Err(error)) if error.may_have_been_done() => self.written = None,
            // An object that was created is written to when the watch shows it.
            (Request::WriteStatus(_) | Request::CreateObject, _) => {}
        }
        let mut delays = self.retry.take().map_or_else(|| BACKOFF.build(), |(_, delays)| delays);
        let delay = delays.next().unwrap_or(REFRESH);
        self.retry = Some((now + delay, delays));
    }

    fn written_now(&mut self, status: SandboxHealthStatus, now: Instant) {
        if let Some((before, _)) = &self.written
            && !is_sandbox_change(before, &status)
        {
            self.pod_caused.take(now);
        }
        self.written = Some((status, now));
    }
}
