//! The images that a node of ours runs, as OCI archives in the cache. Ours comes from where users get it
//! ([`super::pause_image`]), the others from Containerfiles that one could build with Docker, and each is built again only when
//! what goes into it has changed. No registry is asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::image::Image;
use super::image_context;
use crate::build::cargo::project;
use crate::build::oci::Platform;
use crate::build::pause_image::Recipe;
use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;
use crate::names::PAUSE;

/// Hexadecimal digits of an archive's name that tell what it was made from.
const HASH_DIGITS: usize = 16;
/// Archives of an image that are kept.
const KEPT: usize = 3;

/// The image's OCI archive, built if there is none of these inputs.
///
/// # Errors
///
/// When a program that goes into it cannot be built, a package cannot be downloaded, or buildah fails.
pub fn ensure(image: Image) -> Result<PathBuf> {
    let what = format!("image {}", image.name());
    let folder = cache::root()?.join("images");
    fs::create_dir_all(&folder)?;
    let _lock = Lock::wait(&folder.join(format!("{}.lock", image.short())), &format!("it builds {what}"))?;
    let Some(containerfile) = image.containerfile() else {
        return pause(&folder);
    };
    let containerfile = project().join(containerfile);
    let recipe = fs::read(&containerfile).with_context(|| format!("reading {}", containerfile.display()))?;
    let inputs = image_context::inputs(image).with_context(|| what.clone())?;

    let mut hash = Sha256::new();
    hash.update(&recipe);
    inputs.hash_into(&mut hash)?;
    let archive =
        folder.join(format!("{}-{}.tar", image.short(), &format!("{:x}", hash.finalize())[..HASH_DIGITS]));
    if archive.is_file() {
        return Ok(archive);
    }
    eprintln!("building {what}");
    let started = Instant::now();
    let context = folder.join(format!("{}.context", image.short()));
    inputs.lay_out(&context).with_context(|| format!("context of {what}"))?;
    build(image.name(), &containerfile, &context, &[], &archive)?;
    fs::remove_dir_all(&context)?;
    prune(&folder, image.short())?;
    eprintln!("built {what} in {:.1} s", started.elapsed().as_secs_f32());
    Ok(archive)
}

/// Ours, for this machine alone and without a revision: a commit that changes nothing of it is no other image to a node.
/// Packing it takes less time than finding out whether it has changed.
fn pause(folder: &Path) -> Result<PathBuf> {
    let platform = Platform::host().context("there is no pause image for this machine's architecture")?;
    let packed = Recipe::of_this_project(&[platform]).build()?;
    let hash = packed.digest.trim_start_matches("sha256:").get(..HASH_DIGITS).unwrap_or_default();
    let archive = folder.join(format!("pause-{hash}.tar"));
    if !archive.is_file() {
        let partial = archive.with_extension("partial");
        fs::write(&partial, &packed.bytes)?;
        fs::rename(&partial, &archive)?;
        prune(folder, "pause")?;
        eprintln!("packed image {PAUSE}");
    }
    Ok(archive)
}

/// Removes archives of an image that newer ones have replaced. A few are kept, for whoever is about to import one.
fn prune(folder: &Path, short: &str) -> Result<()> {
    let mut archives = vec![];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The rest of the name must be the hash: `pause` is not `pause-…` of another image.
        let hash = name.strip_prefix(short).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".tar"));
        if hash.is_some_and(|hash| hash.len() == HASH_DIGITS && !hash.contains('-')) {
            archives.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    archives.sort();
    archives.reverse();
    for (_, path) in archives.into_iter().skip(KEPT) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Builds a Containerfile into an OCI archive. Vfs and chroot because they work anywhere; no time stamp, so that equal inputs give
/// an equal image. `options` are further ones of `buildah bud`.
///
/// # Errors
///
/// When buildah fails; the error has what it said.
pub fn build(
    name: &str,
    containerfile: &Path,
    context: &Path,
    options: &[&str],
    archive: &Path,
) -> Result<()> {
    let partial = archive.with_extension("partial");
    output(
        buildah()?
            .args(["bud", "--quiet", "--isolation", "chroot", "--timestamp", "0", "-t", name])
            .args(options)
            .arg("-f")
            .arg(containerfile)
            .arg(context),
    )?;
    let target = format!("oci-archive:{}:{}", partial.display(), name);
    if partial.exists() {
        fs::remove_file(&partial)?;
    }
    output(buildah()?.args(["push", "--quiet", name, &target]))?;
    // What the archive holds need not be kept twice.
    output(buildah()?.args(["rmi", name]))?;
    fs::rename(&partial, archive)?;
    Ok(())
}

fn buildah() -> Result<Command> {
    let folder = cache::root()?.join("buildah");
    let mut command = Command::new("buildah");
    command
        .args(["--storage-driver", "vfs", "--root"])
        .arg(folder.join("root"))
        .arg("--runroot")
        .arg(folder.join("runroot"));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_archives_of_an_image_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, second: u64| {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(second)).unwrap();
        };
        for second in 0..5 {
            file(&format!("pause-{second:016x}.tar"), second);
        }
        file("pause.lock", 0);
        file("pause-two-00000000000000.tar", 0);
        prune(folder.path(), "pause").unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let kept: Vec<_> = (2..5).map(|second| format!("pause-{second:016x}.tar")).collect();
        assert_eq!(left[..3], kept);
        assert_eq!(left[3..], ["pause-two-00000000000000.tar", "pause.lock"]);
    }
}
