//! Which of the replicas works: the one that holds the Lease. The rules are those of client-go's leader election (without
//! its jitter: few ask), and the decision is a pure function; times of other machines are only compared for being different, never
//! for being late.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::metrics::ControllerMetrics;
use crate::api::{ApiError, bounded};
use crate::serve::Readiness;

/// How long a holder that shows no sign of life keeps the Lease. Who waits sees the last sign within [`RETRY`] and the end of
/// this time within another, so that a replica that was killed is replaced within 14 s.
const DURATION: Duration = Duration::from_secs(10);
/// How long the holder works on after it asked for a renewal that got through.
const RENEW_DEADLINE: Duration = Duration::from_secs(7);
/// Between renewals, and between looks of those who wait.
const RETRY: Duration = Duration::from_secs(2);
/// Name that the Lease goes by in `/readyz`.
const PART: &str = "lease";

/// A replica's claim to a Lease.
#[derive(Debug)]
pub struct Claim {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Option<Seen>,
    /// When the last claim was made. Others may see a renewal long before its answer reaches us.
    asked: Instant,
    metrics: Arc<ControllerMetrics>,
}

/// The last sign of life of a holder, and when we saw it first.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

impl Claim {
    /// `identity` must be this replica's alone.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: String,
        identity: String,
        metrics: Arc<ControllerMetrics>,
    ) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name, identity, seen: None, asked: Instant::now(), metrics }
    }

    /// Waits until the Lease is ours.
    pub async fn acquire(&mut self, readiness: &Readiness) {
        loop {
            match self.claim().await {
                Ok(ours) => {
                    readiness.done(PART);
                    if ours {
                        return;
                    }
                }
                Err(ApiError::Conflict(_)) => {}
                Err(error) => readiness.pending(PART, format!("{}: {error}", self.name)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the Lease for as long as it's ours; returns when it is lost.
    pub async fn hold(&mut self) {
        let mut deadline = self.asked + RENEW_DEADLINE;
        loop {
            tokio::time::sleep_until(deadline.min(Instant::now() + RETRY)).await;
            match tokio::time::timeout_at(deadline, self.claim()).await {
                Ok(Ok(true)) => deadline = self.asked + RENEW_DEADLINE,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease was not renewed"),
            }
        }
    }

    /// Gives the Lease up if it's ours, so that another replica need not wait until it is stale.
    pub async fn release(self) {
        if let Err(error) = self.give_up().await {
            tracing::warn!(%error, "the lease was not given up");
        }
    }

    async fn give_up(&self) -> Result<(), ApiError> {
        let mut lease = bounded(self.api.get(&self.name)).await?;
        if let Some(spec) =
            lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        {
            spec.holder_identity = None;
            self.write(&lease).await?;
        }
        Ok(())
    }

    /// Takes or renews the Lease if it's free or ours; says whether it is ours now.
    async fn claim(&mut self) -> Result<bool, ApiError> {
        self.asked = Instant::now();
        let mut lease = bounded(self.api.get(&self.name)).await?;
        let spec = lease.spec.take().unwrap_or_default();
        self.seen = see(&spec, self.seen.take(), Instant::now());
        let Some(spec) = claimed(spec, &self.identity, self.seen.as_ref(), Instant::now(), Timestamp::now())
        else {
            return Ok(false);
        };
        lease.spec = Some(spec);
        // The server refuses it if another replica was faster: the object carries the version that we read.
        self.write(&lease).await?;
        Ok(true)
    }

    async fn write(&self, lease: &Lease) -> Result<(), ApiError> {
        let written = bounded(self.api.replace(&self.name, &PostParams::default(), lease)).await.map(drop);
        self.metrics.requested("lease", &written);
        written
    }
}

fn see(spec: &LeaseSpec, before: Option<Seen>, now: Instant) -> Option<Seen> {
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty())?;
    match before {
        Some(before) if before.holder == holder && before.renewed == spec.renew_time => Some(before),
        _ => Some(Seen { holder, renewed: spec.renew_time.clone(), at: now }),
    }
}

/// The Lease as it is to be written, if it's ours to write.
fn claimed(
    spec: LeaseSpec,
    identity: &str,
    seen: Option<&Seen>,
    now: Instant,
    clock: Timestamp,
) -> Option<LeaseSpec> {
    let ours = seen.is_some_and(|seen| seen.holder == identity);
    if seen.is_some_and(|seen| !ours && now.duration_since(seen.at) < DURATION) {
        return None;
    }
    let transitions = spec.lease_transitions.unwrap_or_default();
    Some(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if ours { spec.acquire_time } else { Some(MicroTime(clock)) },
        renew_time: Some(MicroTime(clock)),
        lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
        ..spec
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, server};
    use crate::serve::Metrics as _;
    use http::Method;

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    fn claim(spec: LeaseSpec, seen: Option<&Seen>, now: Instant) -> Option<LeaseSpec> {
        claimed(spec, "me", seen, now, Timestamp::from_second(1_800_000_000).unwrap())
    }

    fn lease(holder: &str, renewed: i64) -> serde_json::Value {
        let mut lease = serde_json::to_value(Lease::default()).unwrap();
        lease["metadata"] = serde_json::json!({"name": "l", "namespace": "ops", "resourceVersion": "1"});
        lease["spec"] = serde_json::to_value(held_by(holder, renewed)).unwrap();
        lease
    }

    fn claim_of(client: Client, metrics: &Arc<ControllerMetrics>) -> Claim {
        Claim::new(client, "ops", "l".to_owned(), "me".to_owned(), metrics.clone())
    }

    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/l";
    const RENEW: &str = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/l?";

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_was_killed_is_replaced_within_14_s_of_its_last_sign_of_life() {
        // It renewed just after the other had looked; the next look is the first to see that.
        let looks = (0..6).map(|_| (Method::GET, LEASE, Answer::Object(lease("killed", 2))));
        let earlier = std::iter::once((Method::GET, LEASE, Answer::Object(lease("killed", 1))));
        let taken = std::iter::once((Method::PUT, RENEW, Answer::Object(lease("me", 3))));
        let (client, served) = server(earlier.chain(looks).chain(taken));
        let metrics = Arc::default();
        let mut claim = claim_of(client, &metrics);
        let killed = Instant::now();
        claim.acquire(&Readiness::default()).await;
        assert!(killed.elapsed() <= Duration::from_secs(14), "{:?}", killed.elapsed());
        drop(claim);
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_hears_nothing_stops_before_another_may_begin() {
        let (client, _served) = server([
            (Method::GET, LEASE, Answer::Object(lease("me", 1))),
            (Method::PUT, RENEW, Answer::Object(lease("me", 2))),
            (Method::GET, LEASE, Answer::Silence),
        ]);
        let metrics = Arc::default();
        let mut claim = claim_of(client, &metrics);
        let renewed = Instant::now();
        claim.acquire(&Readiness::default()).await;
        claim.hold().await;
        assert!(renewed.elapsed() < DURATION, "{:?}", renewed.elapsed());
        let text = metrics.render().unwrap();
        let renewed = "sandbox_health_api_requests_total{verb=\"lease\",result=\"ok\"} 1\n";
        assert!(text.contains(renewed), "{text}");
    }

    #[test]
    fn a_free_lease_is_taken() {
        let now = Instant::now();
        for free in
            [LeaseSpec::default(), LeaseSpec { holder_identity: Some(String::new()), ..LeaseSpec::default() }]
        {
            assert_eq!(see(&free, None, now), None);
            let taken = claim(free, None, now).unwrap();
            assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(1)));
        }
    }

    #[test]
    fn a_lease_of_ours_is_renewed() {
        let now = Instant::now();
        let spec = held_by("me", 1);
        let seen = see(&spec, None, now);
        let renewed = claim(spec.clone(), seen.as_ref(), now).unwrap();
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(4), spec.acquire_time));
        assert_ne!(renewed.renew_time, spec.renew_time);
    }

    #[test]
    fn a_holder_that_shows_life_keeps_the_lease() {
        let start = Instant::now();
        let seen = see(&held_by("other", 1), None, start);
        let later = start + DURATION;
        let seen = see(&held_by("other", 2), seen, later);
        assert_eq!(claim(held_by("other", 2), seen.as_ref(), later), None);
    }

    #[test]
    fn a_holder_that_shows_none_loses_it() {
        let start = Instant::now();
        let seen = see(&held_by("other", 1), None, start);
        assert_eq!(claim(held_by("other", 1), seen.as_ref(), start + DURATION - RETRY), None);
        let later = start + DURATION;
        let seen = see(&held_by("other", 1), seen, later);
        let taken = claim(held_by("other", 1), seen.as_ref(), later).unwrap();
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(5)));
    }
}
