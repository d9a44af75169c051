//! Images as they ship: one program, for one platform or several, in an OCI archive that is the same bytes whoever makes it. How
//! the programs are built is none of its concern.

mod archive;
mod labels;
mod platform;

pub(crate) use archive::archive;
pub use archive::{Archive, Size};
pub use labels::revision;
pub use platform::Platform;

/// What is the same in an image for every platform.
pub(crate) struct About {
    /// Name of the program's file, in the top folder.
    pub(crate) program: &'static str,
    /// The image's `Cmd`: what a runtime adds to the entrypoint.
    pub(crate) arguments: &'static [&'static str],
    /// One line for people who look into a registry.
    pub(crate) description: &'static str,
    /// uid and gid that it runs as, unless the pod asks for others.
    pub(crate) user: &'static str,
}
