//! Everything that is built before a cluster starts: upstream's binaries from their Go modules, the project's own binaries, images
//! and releases. Nothing here runs a cluster.

pub(crate) mod cargo;
pub mod cargo_tools;
pub(crate) mod debian_toolchain;
pub mod dependencies;
pub mod go;
mod image;
pub(crate) mod image_context;
pub mod images;
pub mod oci;
pub mod operator;
pub mod pause_image;
pub mod preflight;
pub mod prometheus_operator;
pub mod registry;
pub mod release;
pub mod release_command;
mod setup;
pub mod site;

pub use cargo::{cargo, project_file};
pub use image::Image;
pub use setup::Setup;
