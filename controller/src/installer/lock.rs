//! The lock of the roll-out: as many Leases as nodes may be switched at a time. This file reads and writes them; when a step follows is
//! decided in `step`.

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Resource as _};

use super::preflight::NodeFacts;
use crate::k8s::error::ApiError;
use crate::k8s::pause_lease::{self, Step, Switch};

/// Age of a step after which its holder may be a node that is no longer managed.
const HOLDER_CHECK_SECONDS: i64 = 600;

#[derive(Debug)]
pub(super) struct Lock {
    pub(super) leases: Api<Lease>,
    pub(super) nodes: Api<Node>,
    pub(super) daemon_sets: Api<DaemonSet>,
    pub(super) daemon_set: String,
    pub(super) name: String,
    pub(super) concurrency: u32,
}

/// A Lease as it was read. One that is absent is free.
#[derive(Debug, Clone)]
pub(super) struct Held {
    lease: Lease,
    pub(super) name: String,
    pub(super) switch: Option<Switch>,
}

impl Held {
    pub(super) fn is_of(&self, node: &str) -> bool {
        self.switch.as_ref().is_some_and(|switch| switch.node == node)
    }
}

impl Lock {
    /// All Leases, also those of a higher concurrency before.
    pub(super) async fn read(&self, now: Timestamp) -> anyhow::Result<Vec<Held>> {
        let mut all = Vec::new();
        for number in 0.. {
            let name = pause_lease::name(&self.name, number);
            let lease = self.leases.get_opt(&name).await.map_err(ApiError::from)?;
            if lease.is_none() && number >= self.concurrency {
                break;
            }
            let lease = lease.unwrap_or_default();
            let mut switch = Switch::read(&lease)
                .with_context(|| format!("the roll-out stops until the Lease {name} is deleted"))?;
            if let Some(other) = &switch
                && self.is_abandoned(other, now).await?
            {
                switch = None;
            }
            all.push(Held { lease, name, switch });
        }
        Ok(all)
    }

    /// A node that was deleted, or that lost its label while its pod was killed, cannot finish its switch. A failure stays, for the
    /// next node could fail as well.
    async fn is_abandoned(&self, switch: &Switch, now: Timestamp) -> Result<bool, ApiError> {
        let age = now.duration_since(switch.since).as_secs();
        if switch.step == Step::Failed || age <= HOLDER_CHECK_SECONDS {
            return Ok(false);
        }
        let node = self.nodes.get_opt(&switch.node).await?;
        Ok(!node.is_some_and(|node| NodeFacts::from(node).is_managed()))
    }

    /// Writes the switch into a Lease, or frees it. The server refuses it with a conflict if the Lease was changed since it was read.
    pub(super) async fn write(&self, held: &Held, switch: Option<&Switch>) -> Result<(), ApiError> {
        let (mut lease, params) = (held.lease.clone(), PostParams::default());
        match switch {
            Some(switch) => switch.write(&mut lease),
            None => pause_lease::release(&mut lease),
        }
        if lease.metadata.resource_version.is_some() {
            self.leases.replace(&held.name, &params, &lease).await?;
            return Ok(());
        }
        // It is deleted with the DaemonSet, and not created for one that is being deleted.
        let daemon_set = self.daemon_sets.get(&self.daemon_set).await?;
        lease.metadata.name = Some(held.name.clone());
        lease.metadata.owner_references = daemon_set.owner_ref(&()).map(|owner| vec![owner]);
        if daemon_set.metadata.deletion_timestamp.is_none() {
            self.leases.create(&params, &lease).await?;
        }
        Ok(())
    }
}
