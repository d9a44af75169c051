//! Decisions as pure functions: values in, values out. No Kubernetes client, no /proc, and no clock: the time is an argument.

pub mod actions;
pub mod cause;
pub mod conditions;
pub mod events;
pub mod report_policy;
pub mod sandbox;
pub mod token_bucket;
pub mod zombies;
