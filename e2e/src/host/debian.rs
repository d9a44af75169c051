//! Debian packages, unpacked into a directory for test images, benchmarks, Prometheus and a registry. Nothing is installed on the host: an
//! installed nginx would start a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::host::apt::apt_get;
use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;

/// Debian's keys (package debian-archive-keyring).
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror of the host's Debian.
pub(crate) fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let value = |key: &str| {
        let lines = release.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"')).next()
    };
    ensure!(value("ID") == Some("debian"), "Debian packages are needed, and this machine is not Debian");
    let codename = value("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")?;
    let known = output(Command::new("apt-get").args(["indextargets", "--format", "$(CODENAME) $(SITE)"]))?;
    let mut mirrors = known.lines().filter_map(|line| line.split_once(' '));
    let mirror = mirrors.find(|(of, _)| *of == codename).map(|(_, site)| site.into());
    mirror.with_context(|| format!("apt has no mirror of Debian {codename} (run apt-get update)"))
}

/// The host's apt options for HTTP, without those that weaken verification.
pub(crate) fn http_options() -> Result<Vec<String>> {
    let options = output(Command::new("apt-config").arg("dump"))?;
    let lines =
        options.lines().filter(|line| line.starts_with("Acquire::http") && !line.contains("::Verify-"));
    Ok(lines.map(str::to_owned).collect())
}

/// The package file in the cache. The first call downloads it.
pub(crate) fn download(package: &str) -> Result<PathBuf> {
    let directory = cache::root()?.join("debs");
    fs::create_dir_all(&directory)?;
    if let Some(file) = downloaded(&directory, package)? {
        return Ok(file);
    }
    eprintln!("downloading Debian package {package}");
    if fetch(&directory, package).is_err() {
        // The mirror may have replaced this version since the lists were last fetched, or there are no lists yet.
        apt_get(&["update"])?;
        fetch(&directory, package)?;
    }
    downloaded(&directory, package)?.with_context(|| format!("apt-get download created no file of {package}"))
}

/// The first of these packages that exists: libraries have other names in other Debian releases.
pub(crate) fn download_any(packages: &[&str]) -> Result<PathBuf> {
    let mut last = None;
    for package in packages {
        match download(package) {
            Ok(file) => return Ok(file),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no package was given")))
}

/// The directory in the cache with the package's files. The first call unpacks them.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    let directories = cache::root()?.join("unpacked");
    let _one_at_a_time =
        Lock::wait(&directories.join(format!("{package}.lock")), &format!("{package} is unpacked"))?;
    let file = download(package)?;
    let directory = directories.join(file.file_stem().context("a package without a name")?);
    if !directory.exists() {
        let partial = directories.join(format!("{package}.partial"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        unpack(&file, &partial)?;
        fs::rename(&partial, &directory)?;
    }
    Ok(directory)
}

/// Puts a package's files below `root`, without running its scripts.
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<()> {
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(root)).map(drop)
}

/// apt-get names the file PACKAGE_VERSION_ARCHITECTURE.deb, and renames it into place only when it is whole.
fn downloaded(directory: &Path, package: &str) -> Result<Option<PathBuf>> {
    let start = format!("{package}_");
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(".deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn fetch(directory: &Path, package: &str) -> Result<()> {
    // apt's default sandbox user cannot write to a directory of root.
    let unboxed = ["-o", "APT::Sandbox::User=root"];
    output(Command::new("apt-get").args(["-q", "download", package]).args(unboxed).current_dir(directory))
        .map(drop)
}
