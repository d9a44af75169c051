//! Leader election by a Lease, which is created if absent. The rules are those of client-go's leaderelection: times of other replicas
//! are compared for being different only, never with our clock. kube-leader-election compares clocks.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::health::Readiness;
use crate::k8s::error::ApiError;

/// How long a Lease is valid after its renewal. A standby sees the last renewal within [`RETRY`] and the end of its validity within
/// another, so that a killed leader is replaced within 19 s.
const DURATION: Duration = Duration::from_secs(15);
/// How long a leader stays leader after it began its last successful renewal. It is shorter than [`DURATION`], which a standby counts
/// from when it saw the renewal, and leaves time for two requests of 5 s each to a slow API server.
const RENEW_DEADLINE: Duration = Duration::from_secs(12);
/// Between the beginnings of renewals, and between attempts of a standby.
const RETRY: Duration = Duration::from_secs(2);
const PART: &str = "lease";

#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The Lease as we wrote it last: a renewal need not read it first.
    held: Option<Lease>,
    /// When the request that acquired or renewed it began.
    renewed_at: Instant,
    observed: Option<Observed>,
}

/// The last renewal of a holder, and when we observed it.
#[derive(Debug, Clone, PartialEq)]
struct Observed {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

impl Elector {
    /// `identity` must be unique among the replicas.
    pub fn new(client: Client, namespace: &str, name: String, identity: String) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name, identity, held: None, renewed_at: Instant::now(), observed: None }
    }

    pub async fn acquire(&mut self, readiness: &Readiness) {
        loop {
            match self.try_acquire().await {
                Ok(true) => return readiness.done(PART),
                Ok(false) => readiness.done(PART),
                Err(ApiError::Conflict(_)) => {}
                Err(error) => readiness.pending(PART, format!("{}: {error}", self.name)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the Lease; returns when this replica is no longer the leader.
    pub async fn hold(&mut self) {
        let mut next = self.renewed_at + RETRY;
        loop {
            let deadline = self.renewed_at + RENEW_DEADLINE;
            tokio::time::sleep_until(deadline.min(next)).await;
            next = Instant::now() + RETRY;
            match tokio::time::timeout_at(deadline, self.try_acquire()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => break,
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew the lease; will retry"),
            }
        }
        self.held = None;
    }

    /// Releases the Lease, so that a standby need not wait until it expires.
    pub async fn release(self) {
        let released = if self.held.is_some() { self.try_release().await } else { Ok(()) };
        let _ = released.inspect_err(|error| tracing::warn!(%error, "failed to release the lease"));
    }

    /// It is read first: a renewal may have been interrupted.
    async fn try_release(&self) -> Result<(), ApiError> {
        let mut lease = self.api.get(&self.name).await?;
        let spec = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        if let Some(spec) = spec {
            spec.holder_identity = None;
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    /// Acquires or renews the Lease if it is absent, free or held by this replica; returns whether this replica is the leader.
    async fn try_acquire(&mut self) -> Result<bool, ApiError> {
        let begun = Instant::now();
        if let Some(held) = self.held.clone() {
            match self.write(held, true, begun).await {
                // It was deleted, or written by another replica.
                Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => self.held = None,
                result => return result.map(|()| true),
            }
        }
        let lease = self.api.get_opt(&self.name).await?.unwrap_or_default();
        let spec = lease.spec.clone().unwrap_or_default();
        self.observed = observe(&spec, self.observed.take(), Instant::now());
        let is_ours = self.observed.as_ref().is_some_and(|observed| observed.holder == self.identity);
        if !is_ours && is_valid(&spec, self.observed.as_ref(), Instant::now()) {
            return Ok(false);
        }
        self.write(lease, is_ours, begun).await.map(|()| true)
    }

    /// The server refuses it if another replica was faster: the metadata has the version that was read, if there was a Lease.
    async fn write(&mut self, lease: Lease, is_ours: bool, begun: Instant) -> Result<(), ApiError> {
        let Lease { metadata, spec } = lease;
        let is_absent = metadata.resource_version.is_none();
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..metadata };
        let spec = claim(spec.unwrap_or_default(), &self.identity, is_ours, Timestamp::now());
        let (lease, params) = (Lease { metadata, spec: Some(spec) }, PostParams::default());
        let written = if is_absent {
            self.api.create(&params, &lease).await?
        } else {
            self.api.replace(&self.name, &params, &lease).await?
        };
        (self.held, self.renewed_at) = (Some(written), begun);
        Ok(())
    }
}

fn observe(spec: &LeaseSpec, before: Option<Observed>, now: Instant) -> Option<Observed> {
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty())?;
    match before {
        Some(before) if before.holder == holder && before.renewed == spec.renew_time => Some(before),
        _ => Some(Observed { holder, renewed: spec.renew_time.clone(), at: now }),
    }
}

/// Whether the holder's Lease is valid, by the duration that the holder wrote into it.
fn is_valid(spec: &LeaseSpec, observed: Option<&Observed>, now: Instant) -> bool {
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = seconds.map_or(DURATION, Duration::from_secs);
    observed.is_some_and(|observed| now.duration_since(observed.at) < duration)
}

fn claim(spec: LeaseSpec, identity: &str, is_ours: bool, now: Timestamp) -> LeaseSpec {
    let transitions = spec.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if is_ours { spec.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if is_ours { transitions } else { transitions.saturating_add(1) }),
        ..spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, Received, answering};
    use http::{Method, StatusCode};
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    /// An API server that has one Lease, or none.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<Value>>>,
        delay: Arc<Mutex<Duration>>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            answering(move |request| server.answer(request)).0
        }

        fn answer(&self, request: &Received) -> Answer {
            let mut stored = self.lease.lock().unwrap();
            let version = stored.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
            let refused = |code| Answer::Refused(code);
            match (&request.method, version) {
                (&Method::GET, Some(_)) | (&Method::POST, None) | (&Method::PUT, Some(_)) => {}
                (&Method::POST, Some(_)) => return refused(StatusCode::CONFLICT),
                _ => return refused(StatusCode::NOT_FOUND),
            }
            if request.method != Method::GET {
                let version = stored.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
                let expected = request.body["metadata"]["resourceVersion"].clone();
                if request.method == Method::PUT && version != Some(expected) {
                    return refused(StatusCode::CONFLICT);
                }
                let next = version.and_then(|it| it.as_str()?.parse::<u32>().ok()).unwrap_or_default() + 1;
                let mut lease = request.body.clone();
                lease["metadata"]["resourceVersion"] = json!(next.to_string());
                *stored = Some(lease);
            }
            Answer::Late(*self.delay.lock().unwrap(), stored.clone().unwrap())
        }

        fn holder(&self) -> Option<String> {
            let stored = self.lease.lock().unwrap();
            Some(stored.as_ref()?["spec"]["holderIdentity"].as_str()?.to_owned())
        }

        fn elector(&self, identity: &str) -> Elector {
            Elector::new(self.client(), "ops", "l".to_owned(), identity.to_owned())
        }
    }

    async fn acquired(elector: &mut Elector) {
        elector.acquire(&Readiness::default()).await;
    }

    /// How long the term lasted, at most `max`.
    async fn term(elector: &mut Elector, max: Duration) -> Duration {
        let start = Instant::now();
        let _ = tokio::time::timeout(max, elector.hold()).await;
        start.elapsed()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn absent_lease_is_created() {
        let server = Server::default();
        acquired(&mut server.elector("me")).await;
        assert_eq!(server.holder().as_deref(), Some("me"));
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_lease_is_created_again_within_the_term() {
        let server = Server::default();
        let mut elector = server.elector("me");
        acquired(&mut elector).await;
        *server.lease.lock().unwrap() = None;
        assert_eq!(term(&mut elector, HOUR).await, HOUR);
        assert_eq!(server.holder().as_deref(), Some("me"));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_server_does_not_end_the_term() {
        let server = Server::default();
        *server.delay.lock().unwrap() = Duration::from_secs(5);
        let (mut leader, mut standby) = (server.elector("me"), server.elector("other"));
        acquired(&mut leader).await;
        let no_takeover = tokio::time::timeout(HOUR, acquired(&mut standby));
        let (held, taken) = tokio::join!(term(&mut leader, HOUR), no_takeover);
        assert!(held >= HOUR && taken.is_err(), "{held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn leader_that_gets_no_response_stops_before_its_lease_is_taken() {
        let server = Server::default();
        let (mut leader, mut standby) = (server.elector("me"), server.elector("other"));
        acquired(&mut leader).await;
        leader.api = Api::namespaced(answering(|_| Answer::Silence).0, "ops");
        let start = Instant::now();
        let takeover = async {
            acquired(&mut standby).await;
            start.elapsed()
        };
        let (held, taken) = tokio::join!(term(&mut leader, HOUR), takeover);
        assert!(held < taken && taken <= Duration::from_secs(19), "{held:?} {taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn released_lease_is_taken_at_the_next_attempt() {
        let server = Server::default();
        let (mut leader, mut standby) = (server.elector("me"), server.elector("other"));
        acquired(&mut leader).await;
        leader.release().await;
        let start = Instant::now();
        acquired(&mut standby).await;
        assert_eq!((start.elapsed(), server.holder().as_deref()), (Duration::ZERO, Some("other")));
    }

    #[tokio::test(start_paused = true)]
    async fn lease_that_another_replica_took_ends_the_term() {
        let server = Server::default();
        let mut leader = server.elector("me");
        acquired(&mut leader).await;
        let mut taken = server.lease.lock().unwrap().clone().unwrap();
        taken["spec"]["holderIdentity"] = json!("other");
        taken["metadata"]["resourceVersion"] = json!("99");
        *server.lease.lock().unwrap() = Some(taken);
        assert!(term(&mut leader, HOUR).await <= RETRY);
    }

    fn held_by(holder: &str, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: seconds,
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn lease_is_valid_for_the_duration_in_its_record() {
        let start = Instant::now();
        for (seconds, duration) in [(None, DURATION), (Some(60), Duration::from_secs(60))] {
            let spec = held_by("other", seconds);
            let observed = observe(&spec, None, start);
            let valid_after = |elapsed| is_valid(&spec, observed.as_ref(), start + elapsed);
            assert!(valid_after(duration - RETRY) && !valid_after(duration), "{seconds:?}");
        }
        let free = held_by("", None);
        assert_eq!(observe(&free, None, start), None);
    }

    #[test]
    fn renewal_keeps_the_time_of_acquisition_and_takeover_does_not() {
        let spec = held_by("me", None);
        let renewed = claim(spec.clone(), "me", true, Timestamp::UNIX_EPOCH);
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(4), None));
        let taken = claim(spec, "me", false, Timestamp::UNIX_EPOCH);
        assert_eq!((taken.lease_transitions, taken.acquire_time.is_some()), (Some(5), true));
    }
}
