//! The lock of the roll-out: as many Leases as nodes may be switched at a time. A Lease also has the state of its holder's switch, so
//! that a restarted installer goes on, the other nodes wait, and the controller reports.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Resource as _};
use strum::{EnumString, IntoStaticStr};

use crate::k8s::error::ApiError;

/// Age of a step after which its holder may be a node that was deleted.
const HOLDER_CHECK_SECONDS: i64 = 600;

pub const STEP: &str = "sandboxhealth.dev/step";
pub const SINCE: &str = "sandboxhealth.dev/since";
pub const PAUSE_VERSION: &str = "sandboxhealth.dev/pause-version";
pub const IMAGE: &str = "sandboxhealth.dev/image";
pub const MESSAGE: &str = "sandboxhealth.dev/message";
/// The value of [`SINCE`] of the switch that a pod proved. The controller writes it.
pub const PROVEN: &str = "sandboxhealth.dev/proven";

#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
pub enum Step {
    /// Files are written and the runtime is restarted.
    Switching,
    /// The runtime runs with the files; a new pod has to prove it.
    Switched,
    /// The files are removed and the runtime is restarted.
    Reverting,
    /// The node has the pause image that it had before.
    Failed,
}

/// What a Lease records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Name of the node that holds it.
    pub holder: Option<String>,
    pub step: Option<Step>,
    pub since: Option<Timestamp>,
    pub image: String,
    pub pause_version: String,
    pub message: String,
    pub is_proven: bool,
}

impl Record {
    pub fn of(lease: &Lease) -> Self {
        let get = |key| lease.metadata.annotations.as_ref()?.get(key).cloned();
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        Self {
            holder: holder.filter(|holder| !holder.is_empty()),
            step: get(STEP).and_then(|step| step.parse().ok()),
            since: get(SINCE).and_then(|since| since.parse().ok()),
            image: get(IMAGE).unwrap_or_default(),
            pause_version: get(PAUSE_VERSION).unwrap_or_default(),
            message: get(MESSAGE).unwrap_or_default(),
            is_proven: get(PROVEN).is_some_and(|proven| Some(proven) == get(SINCE)),
        }
    }

    /// The Lease with this record. Annotations of others stay; a proof belongs to one step and goes with it.
    fn write_to(&self, lease: &mut Lease) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        let step = self.step.map(|step| <&str>::from(step).to_owned());
        for (key, value) in [
            (STEP, step),
            (SINCE, self.since.map(|since| since.to_string())),
            (IMAGE, Some(self.image.clone())),
            (PAUSE_VERSION, Some(self.pause_version.clone())),
            (MESSAGE, Some(self.message.clone())),
            (PROVEN, None),
        ] {
            match value.filter(|value| !value.is_empty()) {
                Some(value) => annotations.insert(key.to_owned(), value),
                None => annotations.remove(key),
            };
        }
        let acquired = self.holder.is_some().then_some(self.since).flatten();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone().unwrap_or_default()),
            acquire_time: acquired.map(MicroTime),
            ..lease.spec.take().unwrap_or_default()
        });
    }
}

#[derive(Debug)]
pub(super) struct Lock {
    pub(super) leases: Api<Lease>,
    pub(super) nodes: Api<Node>,
    pub(super) daemon_sets: Api<DaemonSet>,
    pub(super) daemon_set: String,
    pub(super) name: String,
    pub(super) concurrency: usize,
}

/// A Lease as it was read.
#[derive(Debug, Clone)]
pub(super) struct Held {
    lease: Lease,
    pub(super) record: Record,
}

impl Lock {
    pub(super) fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }

    /// All Leases, also those of a higher concurrency before. An absent one is free.
    pub(super) async fn read(&self, now: Timestamp) -> Result<Vec<Held>, ApiError> {
        let mut all = Vec::new();
        loop {
            let lease = self.leases.get_opt(&self.name(all.len())).await?;
            if lease.is_none() && all.len() >= self.concurrency {
                return Ok(all);
            }
            let lease = lease.unwrap_or_default();
            let mut record = Record::of(&lease);
            if self.is_holder_deleted(&record, now).await? {
                record = Record::default();
            }
            all.push(Held { lease, record });
        }
    }

    /// A deleted node cannot finish its switch. Its failure stays, for the next node could fail as well.
    async fn is_holder_deleted(&self, record: &Record, now: Timestamp) -> Result<bool, ApiError> {
        match record {
            Record { holder: Some(holder), step, since: Some(since), .. }
                if *step != Some(Step::Failed)
                    && now.duration_since(*since).as_secs() > HOLDER_CHECK_SECONDS =>
            {
                Ok(self.nodes.get_opt(holder).await?.is_none())
            }
            _ => Ok(false),
        }
    }

    /// Writes a record. The server refuses it with a conflict if the Lease was changed since it was read.
    pub(super) async fn write(&self, index: usize, held: &Held, record: &Record) -> Result<(), ApiError> {
        let mut lease = held.lease.clone();
        record.write_to(&mut lease);
        if lease.metadata.resource_version.is_some() {
            self.leases.replace(&self.name(index), &PostParams::default(), &lease).await?;
            return Ok(());
        }
        // It is deleted with the DaemonSet, and not created for one that is being deleted.
        let daemon_set = self.daemon_sets.get(&self.daemon_set).await?;
        lease.metadata = ObjectMeta {
            name: Some(self.name(index)),
            owner_references: daemon_set.owner_ref(&()).map(|owner| vec![owner]),
            ..lease.metadata
        };
        if daemon_set.metadata.deletion_timestamp.is_none() {
            self.leases.create(&PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn record(step: Step) -> Record {
        Record {
            holder: Some("a".to_owned()),
            step: Some(step),
            since: Some(Timestamp::UNIX_EPOCH),
            image: "registry.example/pause:2".to_owned(),
            pause_version: "2".to_owned(),
            ..Record::default()
        }
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        for step in [Step::Switching, Step::Switched, Step::Reverting, Step::Failed] {
            let (mut lease, mut record) = (Lease::default(), record(step));
            record.message = "m".to_owned();
            record.write_to(&mut lease);
            assert_eq!(Record::of(&lease), record);
        }
    }

    #[test]
    fn proof_counts_for_the_step_that_it_names() {
        let mut lease = Lease::default();
        record(Step::Switched).write_to(&mut lease);
        let since = lease.metadata.annotations.as_ref().unwrap()[SINCE].clone();
        for (proven, is_proven) in [(since.as_str(), true), ("2026-11-29T11:00:00Z", false)] {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(PROVEN.to_owned(), proven.to_owned());
            assert_eq!(Record::of(&lease).is_proven, is_proven, "{proven}");
        }
    }

    #[test]
    fn released_lease_keeps_annotations_of_others_only() {
        let others = [("team".to_owned(), "a".to_owned())];
        let mut lease = Lease {
            metadata: ObjectMeta {
                annotations: Some(BTreeMap::from(others.clone())),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        record(Step::Switched).write_to(&mut lease);
        Record::default().write_to(&mut lease);
        assert_eq!(lease.metadata.annotations, Some(BTreeMap::from(others)));
        assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(""));
    }
}
