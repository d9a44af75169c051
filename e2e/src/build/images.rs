//! The images that a node runs, as OCI archives in the cache. Our pause image is built as users build it ([`super::pause_image`]), the
//! others from Containerfiles that Docker could build. An image is rebuilt only if its inputs have changed. No registry is used.

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

/// Number of hexadecimal digits of the hash of the inputs in an archive's name.
const HASH_DIGITS: usize = 16;
/// Number of archives that are kept of each image.
const KEPT: usize = 3;

/// The image's OCI archive. It is built unless the cache has one of the same inputs.
///
/// # Errors
///
/// When a program that goes into it cannot be built, a package cannot be downloaded, or buildah fails.
pub fn ensure(image: Image) -> Result<PathBuf> {
    let what = format!("image {}", image.name());
    let directory = cache::root()?.join("images");
    fs::create_dir_all(&directory)?;
    let _lock = Lock::wait(&directory.join(format!("{}.lock", image.short())), &format!("it builds {what}"))?;
    let Some(containerfile) = image.containerfile() else {
        return pause(&directory);
    };
    let containerfile = project().join(containerfile);
    let recipe = fs::read(&containerfile).with_context(|| format!("reading {}", containerfile.display()))?;
    let inputs = image_context::inputs(image).with_context(|| what.clone())?;

    let mut hash = Sha256::new();
    hash.update(&recipe);
    inputs.hash_into(&mut hash)?;
    let archive =
        directory.join(format!("{}-{}.tar", image.short(), &format!("{:x}", hash.finalize())[..HASH_DIGITS]));
    if archive.is_file() {
        return Ok(archive);
    }
    eprintln!("building {what}");
    let started = Instant::now();
    let context = directory.join(format!("{}.context", image.short()));
    inputs.lay_out(&context).with_context(|| format!("context of {what}"))?;
    build(image.name(), &containerfile, &context, &[], &archive)?;
    fs::remove_dir_all(&context)?;
    prune(&directory, image.short())?;
    eprintln!("built {what} in {:.1} s", started.elapsed().as_secs_f32());
    Ok(archive)
}

/// Our pause image, for this machine's platform only and without a revision, so that an unrelated commit does not change the image. Packing
/// it takes less time than checking whether it has changed.
fn pause(directory: &Path) -> Result<PathBuf> {
    let platform = Platform::host().context("there is no pause image for this machine's architecture")?;
    let packed = Recipe::of_this_project(&[platform]).build()?;
    let hash = packed.digest.trim_start_matches("sha256:").get(..HASH_DIGITS).unwrap_or_default();
    let archive = directory.join(format!("pause-{hash}.tar"));
    if !archive.is_file() {
        let partial = archive.with_extension("partial");
        fs::write(&partial, &packed.bytes)?;
        fs::rename(&partial, &archive)?;
        prune(directory, "pause")?;
        eprintln!("packed image {PAUSE}");
    }
    Ok(archive)
}

/// Removes old archives of an image. A few are kept, because another run may be about to import one.
fn prune(directory: &Path, short: &str) -> Result<()> {
    let mut archives = vec![];
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The rest of the name must be the hash: `pause-…` may also be another image.
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

/// Builds a Containerfile into an OCI archive. The vfs driver and chroot isolation work everywhere; without a timestamp, equal inputs give
/// equal images. `options` are added to `buildah bud`.
///
/// # Errors
///
/// When buildah fails; the error has its output.
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
    // The image is in the archive; buildah's copy is not needed.
    output(buildah()?.args(["rmi", name]))?;
    fs::rename(&partial, archive)?;
    Ok(())
}

fn buildah() -> Result<Command> {
    let directory = cache::root()?.join("buildah");
    let mut command = Command::new("buildah");
    command
        .args(["--storage-driver", "vfs", "--root"])
        .arg(directory.join("root"))
        .arg("--runroot")
        .arg(directory.join("runroot"));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_archives_of_image_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, second: u64| {
            let file = fs::File::create(directory.path().join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(second)).unwrap();
        };
        for second in 0..5 {
            file(&format!("pause-{second:016x}.tar"), second);
        }
        file("pause.lock", 0);
        file("pause-two-00000000000000.tar", 0);
        prune(directory.path(), "pause").unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let kept: Vec<_> = (2..5).map(|second| format!("pause-{second:016x}.tar")).collect();
        assert_eq!(left[..3], kept);
        assert_eq!(left[3..], ["pause-two-00000000000000.tar", "pause.lock"]);
    }
}
