//! A read-only disk with the files that a virtual machine needs: upstream's binaries, images, certificates and configuration. It is mounted
//! at `/node`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::command;

/// More than the binaries of a node need. The file is sparse.
const SIZE: &str = "2G";

/// A directory that becomes the disk.
pub(super) struct Contents(PathBuf);

impl Contents {
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let root = directory.join("node");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        Ok(Self(root))
    }

    /// Adds a file of the host's.
    pub(super) fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let target = self.target(to)?;
        // A hard link costs nothing; across file systems the file is copied.
        fs::hard_link(from, &target)
            .or_else(|_| fs::copy(from, &target).map(drop))
            .with_context(|| format!("adding {}", from.display()))
    }

    /// Adds a file with this text.
    pub(super) fn write(&self, to: &str, text: &str) -> Result<()> {
        let target = self.target(to)?;
        fs::write(&target, text).with_context(|| format!("writing {}", target.display()))
    }

    fn target(&self, to: &str) -> Result<PathBuf> {
        let target = self.0.join(to);
        fs::create_dir_all(target.parent().context("a path without a directory")?)?;
        Ok(target)
    }

    /// Makes the disk.
    pub(super) fn into_disk(self, disk: &Path) -> Result<()> {
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args(["-q", "-F", "-t", "ext4", "-L", "node", "-m", "0", "-d"])
            .arg(&self.0)
            .arg(disk)
            .arg(SIZE);
        command::output(&mut mke2fs)?;
        Ok(fs::remove_dir_all(self.0)?)
    }
}
