//! Images as they ship: one binary, for one or several platforms, in an OCI archive that is reproducible byte by byte. Nothing here builds
//! binaries.

mod archive;
mod labels;
mod platform;

pub(crate) use archive::archive;
pub use archive::{Archive, Size};
pub use labels::revision;
pub use platform::Platform;

/// Properties of an image that are the same for every platform.
pub(crate) struct About {
    /// File name of the binary, in the root directory.
    pub(crate) program: &'static str,
    /// The image's `Cmd`: what a runtime adds to the entrypoint.
    pub(crate) arguments: &'static [&'static str],
    /// One line, which registries show.
    pub(crate) description: &'static str,
    /// uid and gid that it runs as, unless the pod asks for others.
    pub(crate) user: &'static str,
}
