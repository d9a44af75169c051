//! Debian packages unpacked into a folder, for test images, for what we are measured beside, for Prometheus and for a registry.
//! Nothing is installed on the host: an installed nginx would start a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::apt::apt_get;
use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;

/// The package file in the cache, downloaded the first time.
pub(crate) fn download(package: &str) -> Result<PathBuf> {
    let folder = cache::root()?.join("debs");
    fs::create_dir_all(&folder)?;
    if let Some(file) = downloaded(&folder, package)? {
        return Ok(file);
    }
    eprintln!("downloading Debian package {package}");
    if fetch(&folder, package).is_err() {
        // Its version may have left the mirror since the lists were last fetched, or there are no lists yet.
        apt_get(&["update"])?;
        fetch(&folder, package)?;
    }
    downloaded(&folder, package)?.with_context(|| format!("apt-get downloaded no {package}"))
}

/// The first of these that exists: libraries change their names between releases of Debian.
pub(crate) fn download_any(packages: &[&str]) -> Result<PathBuf> {
    let mut last = None;
    for package in packages {
        match download(package) {
            Ok(file) => return Ok(file),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no package named")))
}

/// The folder in the cache that has the package's files, unpacked the first time.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    let folders = cache::root()?.join("unpacked");
    let _one_at_a_time =
        Lock::wait(&folders.join(format!("{package}.lock")), &format!("{package} is unpacked"))?;
    let file = download(package)?;
    let folder = folders.join(file.file_stem().context("a package without a name")?);
    if !folder.exists() {
        let partial = folders.join(format!("{package}.partial"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        unpack(&file, &partial)?;
        fs::rename(&partial, &folder)?;
    }
    Ok(folder)
}

/// Puts a package's files below `root`, without running its scripts.
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<()> {
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(root)).map(drop)
}

/// apt-get names the file PACKAGE_VERSION_ARCHITECTURE.deb, and renames it into place only when it is whole.
fn downloaded(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let start = format!("{package}_");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(".deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn fetch(folder: &Path, package: &str) -> Result<()> {
    // The default sandbox user could not write to a folder of root's.
    let unboxed = ["-o", "APT::Sandbox::User=root"];
    output(Command::new("apt-get").args(["-q", "download", package]).args(unboxed).current_dir(folder))
        .map(drop)
}
