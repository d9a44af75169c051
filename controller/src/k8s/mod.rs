//! Access to the Kubernetes API that agent and controller share: the client, errors, the fields of a pod that they read, and
//! the writes of `status`. No decision about sandboxes is made here.

pub mod client;
pub mod error;
pub mod node;
pub mod pause_lease;
pub mod pod;
pub mod status;
pub(crate) mod watch;
