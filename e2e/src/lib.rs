//! A real one-node Kubernetes as a library: [`node::Node`] starts it, the tests and the demo use it, and nothing of it
//! is left when its owner ends. There is no registry, no virtual machine and no Docker in it.
//!
//! It must never change the host beyond its own cache folder ([`cache`]) and the Debian packages that [`packages`] names. Two
//! traces are left: empty folders at the mount points that the kubelet has built in, where there were none, and on cgroup v2
//! the controllers that the root hands down.

pub mod binaries;
pub mod cache;
mod cargo;
pub mod cargo_tools;
pub mod chaos;
pub mod cost;
pub mod dashboard;
mod debian;
pub mod fences;
pub mod images;
mod invocation;
mod lock;
pub mod node;
pub mod oci_image;
mod operator;
pub mod operator_kinds;
pub mod packages;
pub mod pause_image;
pub mod prerequisites;
pub mod prometheus;
pub mod registry;
pub mod release;
mod setup;
pub mod story;
pub mod wait;

pub use setup::Setup;
