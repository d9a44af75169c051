//! Debian packages unpacked into a folder, for test images, for what we are measured beside, for Prometheus and for a registry.
//! Nothing is installed on the host: an installed nginx would start a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::host::apt::apt_get;
use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;

/// Debian's keys, as its package of keys has them.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the host's own Debian comes from.
pub(crate) fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let value = |key: &str| {
        let lines = release.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"')).next()
    };
    ensure!(value("ID") == Some("debian"), "this is not Debian, whose packages have one");
    let codename = value("VERSION_CODENAME").context("/etc/os-release names no release")?;
    let known = output(Command::new("apt-get").args(["indextargets", "--format", "$(CODENAME) $(SITE)"]))?;
    let mut mirrors = known.lines().filter_map(|line| line.split_once(' '));
    let mirror = mirrors.find(|(of, _)| *of == codename).map(|(_, site)| site.into());
    mirror.with_context(|| format!("apt knows no mirror of Debian {codename} (try apt-get update)"))
}

/// The host's options of apt that lead to its mirror, and none that trust more than apt does by itself.
pub(crate) fn http_options() -> Result<Vec<String>> {
    let options = output(Command::new("apt-config").arg("dump"))?;
    let lines =
        options.lines().filter(|line| line.starts_with("Acquire::http") && !line.contains("::Verify-"));
    Ok(lines.map(str::to_owned).collect())
}

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
