//! The labels of an image: the annotations that the OCI image specification defines, from the same sources as the packages' metadata. The
//! Containerfiles have the same labels; tests compare them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::About;
use crate::host::command::output;

/// Label to value, in the order in which they are written.
pub(super) type Labels = BTreeMap<&'static str, String>;

/// Without a `revision` its label is omitted.
pub(super) fn labels(about: &About, revision: Option<&str>) -> Labels {
    let mut labels = Labels::from([
        ("org.opencontainers.image.title", about.program.into()),
        ("org.opencontainers.image.description", about.description.into()),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").into()),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").into()),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").into()),
    ]);
    if let Some(revision) = revision {
        labels.insert("org.opencontainers.image.revision", revision.into());
    }
    labels
}

/// The commit that is checked out, with `-dirty` behind it where a tracked file differs; `None` outside of a repository.
#[must_use]
pub fn revision(project: &Path) -> Option<String> {
    let git = |arguments: &[&str]| output(Command::new("git").arg("-C").arg(project).args(arguments)).ok();
    let commit = git(&["rev-parse", "HEAD"])?;
    // Untracked files, such as the archive itself, are not part of the image.
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let dirty = if changed.is_empty() { "" } else { "-dirty" };
    Some(format!("{}{dirty}", commit.trim()))
}
