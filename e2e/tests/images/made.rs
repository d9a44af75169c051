//! Three builds of the same image: by the command, in another checkout, and by the Containerfile.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::build::oci::{Archive, Platform, revision};
use e2e::build::pause_image::Recipe;
use e2e::build::{Image as NodeImage, images};
use e2e::names;

use crate::layout::{Image, Layout, REVISION};

pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(command: &mut Command) -> Result<String> {
    let ran = command.output()?;
    ensure!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?)
}

/// The clones have paths of different lengths and share no build artifacts. The last commit is cloned.
pub(crate) fn two_clones_give_same_digest(platform: Platform) -> Result<()> {
    let (near, far) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let far = far.path().join("a directory/with a much longer name/than the first one has");
    let near = build_in(clone_into(near.path())?, platform)?;
    let far = build_in(clone_into(&far)?, platform)?;
    ensure!(near.digest == far.digest, "{} and {}", near.digest, far.digest);
    ensure!(near.bytes == far.bytes, "the archives differ and have the same digest");
    Ok(())
}

/// The second clone is older than what the first has built, and the first is gone.
pub(crate) fn clones_share_a_target_directory(platform: Platform) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (older, environment) = clone_into(&directory.path().join("older"))?;
    let (newer, _) = clone_into(&directory.path().join("newer"))?;
    let first = build_in((newer.clone(), environment.clone()), platform)?;
    fs::remove_dir_all(newer)?;
    let second = build_in((older, environment), platform)?;
    ensure!(first.digest == second.digest, "{} and {}", first.digest, second.digest);
    Ok(())
}

fn build_in((clone, environment): ProjectClone, platform: Platform) -> Result<Archive> {
    let revision = revision(&clone);
    ensure!(revision.as_ref().is_some_and(|revision| !revision.contains("dirty")), "{revision:?}");
    let recipe = Recipe { project: clone, environment, revision, ..Recipe::of_this_project(&[platform]) };
    recipe.build()
}

/// A clone of the project, and an environment with Cargo's directories beside it.
type ProjectClone = (PathBuf, Vec<(&'static str, OsString)>);

pub(crate) fn clone_into(directory: &Path) -> Result<ProjectClone> {
    let clone = directory.join("project");
    fs::create_dir_all(directory)?;
    run(Command::new("git").args(["clone", "--quiet"]).arg(project()).arg(&clone))?;
    let cargo_home = directory.join("cargo");
    fs::create_dir(&cargo_home)?;
    let own = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    // Downloads are shared; Cargo and rustc see them below the new path.
    for shared in ["registry", "config.toml", "credentials.toml"] {
        if own.join(shared).exists() {
            symlink(own.join(shared), cargo_home.join(shared))?;
        }
    }
    let environment =
        vec![("CARGO_HOME", cargo_home.into()), ("CARGO_TARGET_DIR", directory.join("target").into())];
    Ok((clone, environment))
}

pub(crate) fn command_prints_what_it_writes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("pause.tar");
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2e"));
    let output = run(command
        .args(["pause-image", "--output"])
        .arg(&path)
        .args(["--name", "registry.example/pause:test"]))?;
    let archive = fs::read(&path)?;
    let digest = Layout::read(&archive)?.top()?["digest"].clone();
    let digest = digest.as_str().context("no digest")?;
    let lines: Vec<_> = output.lines().collect();
    let [name, amd64, arm64, file] = lines[..] else { bail!("the command printed {output}") };
    ensure!(name == format!("registry.example/pause:test@{digest}"), "the command printed the name {name}");
    ensure!(
        amd64.starts_with("linux/amd64: program ") && arm64.starts_with("linux/arm64: program "),
        "{output}"
    );
    ensure!(
        file == format!("{}: {} bytes", path.display(), archive.len()),
        "the command printed the file {file}"
    );
    ensure!(
        fs::read_dir(directory.path())?.count() == 1,
        "the command wrote another file beside the archive"
    );
    Ok(())
}

pub(crate) fn containerfile_builds_same_image() -> Result<()> {
    let platform = Platform::host().context("no image for this machine")?;
    let shipped = Image::shipped(platform)?;
    let directory = tempfile::tempdir()?;
    // As `cargo pause` writes it.
    fs::write(directory.path().join("pause"), &shipped.pause()?.content)?;
    let archive = directory.path().join("pause.tar");
    let revision = format!("REVISION={REVISION}");
    // The version is the file's default. Buildah would add a label with its own version.
    let options = ["--identity-label=false", "--build-arg", &revision];
    let containerfile = project().join("pause/Containerfile");
    let name = "localhost/e2e/pause-by-containerfile:test";
    images::build(name, &containerfile, directory.path(), &options, &archive)?;
    let built = Image::read(platform, &fs::read(&archive)?)?;
    ensure!(built.pause()?.content == shipped.pause()?.content, "/pause has other bytes");
    ensure!(built.settings() == shipped.settings(), "{:?} and {:?}", built.settings(), shipped.settings());
    Ok(())
}

/// The image has no revision, otherwise each commit would change it for a running node. The user's compiler builds it.
pub(crate) fn node_image_has_binary_of_command() -> Result<()> {
    let platform = Platform::host().context("no image for this machine")?;
    let archive = images::ensure(NodeImage::Pause)?;
    ensure!(images::ensure(NodeImage::Pause)? == archive, "the second build differs");
    let command = Recipe::of_this_project(&[platform]).build()?;
    let (node, command) =
        (Image::read(platform, &fs::read(&archive)?)?, Image::read(platform, &command.bytes)?);
    ensure!(node.pause()?.content == command.pause()?.content, "/pause has other bytes");
    ensure!(node.name()? == names::PAUSE, "the node's image has the name {}", node.name()?);
    let revision = &node.settings()[2]["org.opencontainers.image.revision"];
    ensure!(revision.is_null(), "the node's image has the revision {revision}");
    Ok(())
}
