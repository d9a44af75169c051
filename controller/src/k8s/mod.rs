//! Access to the Kubernetes API that agent and controller share: the client, errors, what is read of a pod, and how `status` is
//! written. No decision about sandboxes is made here.

pub mod client;
pub mod error;
pub mod node;
pub mod pause_lease;
pub mod pod;
pub mod status;
pub(crate) mod watch;
