//! Everything that must exist before a node can start: packages, programs, images.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::build::go::Binaries;
use crate::build::preflight::Facts;
use crate::build::{Image, images};
use crate::host::apt;

/// What a node is started from. Cheap to make when everything is in the cache.
#[derive(Debug, Clone)]
pub struct Setup {
    pub(crate) binaries: Binaries,
    pub(crate) images: Vec<PathBuf>,
}

impl Setup {
    /// Installs and builds what is missing, with progress on stderr. Our pause image is always among the images, for
    /// it is the node's sandbox image.
    ///
    /// # Errors
    ///
    /// When the machine lacks something, or a build fails.
    pub fn prepare(images: &[Image]) -> Result<Self> {
        if let Some(lack) = Facts::observe()?.lacking() {
            bail!(lack);
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

    /// One more OCI archive to import, wherever it comes from.
    #[must_use]
    pub fn with_archive(mut self, archive: PathBuf) -> Self {
        self.images.push(archive);
        self
    }
}
