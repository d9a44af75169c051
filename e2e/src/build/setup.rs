//! Everything that must exist before a node can start: packages, programs, images.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::build::go::Binaries;
use crate::build::preflight::Facts;
use crate::build::{Image, images};
use crate::host::apt;

/// The inputs of a node: binaries and images. Cheap if everything is in the cache.
#[derive(Debug, Clone)]
pub struct Setup {
    pub(crate) binaries: Binaries,
    pub(crate) images: Vec<PathBuf>,
}

impl Setup {
    /// Installs and builds what is missing, with progress on stderr. Our pause image is always among the images, because it is the node's
    /// sandbox image.
    ///
    /// # Errors
    ///
    /// When a requirement is missing, or a build fails.
    pub fn prepare(images: &[Image]) -> Result<Self> {
        if let Some(reason) = Facts::observe()?.missing() {
            bail!(reason);
        }
        apt::ensure_installed()?;
        let binaries = Binaries::ensure()?;
        let mut wanted = vec![Image::Pause];
        wanted.extend(images.iter().filter(|image| **image != Image::Pause));
        let images = wanted.into_iter().map(images::ensure).collect::<Result<_>>()?;
        Ok(Self { binaries, images })
    }

    /// The OCI archives.
    #[must_use]
    pub fn images(&self) -> &[PathBuf] {
        &self.images
    }

    /// Adds an OCI archive that the node imports.
    #[must_use]
    pub fn with_archive(mut self, archive: PathBuf) -> Self {
        self.images.push(archive);
        self
    }
}
