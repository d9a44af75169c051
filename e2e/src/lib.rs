//! A real Kubernetes cluster as a library: [`cluster::Node`] starts it, the tests and the demo use it, and it is removed completely when
//! its owner exits. It needs no registry and no Docker.
//!
//! It must never change the host beyond its own cache directory ([`host::cache`]) and the Debian packages that [`host::apt`] names.
//! Two traces remain: empty directories at the mount points that are compiled into the kubelet, and on cgroup v2 the controllers
//! that the root cgroup delegates.
//!
//! Imports go one way: `names`, `host` ← `build` ← `cluster` ← `kube` ← `demo`, `monitoring`, `measure`, `scenario` ← `runner`, tests.

pub mod build;

pub mod cluster;
pub mod demo;
pub mod doc_blocks;
pub mod host;
pub mod kube;
#[cfg(feature = "measure")]
pub mod measure;
pub mod monitoring;
pub mod names;
pub mod platforms;
pub mod runner;
pub mod scenario;
pub mod trial;
pub mod vm;
