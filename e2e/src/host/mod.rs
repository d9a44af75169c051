//! The machine that everything runs on: commands, waits, locks, the cache directory, Debian packages. Nothing here depends on Kubernetes or
//! on this project.

pub mod apt;
pub mod cache;
pub mod command;
pub(crate) mod debian;
pub(crate) mod lock;
pub mod retry;
