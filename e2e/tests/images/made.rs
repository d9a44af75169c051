//! Three ways to the same image: the command, somebody else's checkout, and the Containerfile.

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

/// Paths of other lengths, and nothing of what one has built can be of use to the other. The last commit is what is cloned.
pub(crate) fn two_clean_clones_give_the_same_digest(platform: Platform) -> Result<()> {
    let (near, far) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let near = build_in(near.path(), platform)?;
    let far =
        build_in(&far.path().join("a folder/with a much longer name/than the first one has"), platform)?;
    ensure!(near.digest == far.digest, "{} and {}", near.digest, far.digest);
    ensure!(near.bytes == far.bytes, "the same digest in two different archives");
    Ok(())
}

fn build_in(folder: &Path, platform: Platform) -> Result<Archive> {
    let (clone, environment) = clone_into(folder)?;
    let revision = revision(&clone);
    ensure!(revision.as_ref().is_some_and(|revision| !revision.contains("dirty")), "{revision:?}");
    let recipe = Recipe { project: clone, environment, revision, ..Recipe::of_this_project(&[platform]) };
    recipe.build()
}

/// A clone of the project, and an environment with Cargo's directories beside it.
pub(crate) fn clone_into(folder: &Path) -> Result<(PathBuf, Vec<(&'static str, OsString)>)> {
    let clone = folder.join("project");
    fs::create_dir_all(folder)?;
    run(Command::new("git").args(["clone", "--quiet"]).arg(project()).arg(&clone))?;
    let cargo_home = folder.join("cargo");
    fs::create_dir(&cargo_home)?;
    let own = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    // What has been downloaded need not be so again; Cargo and rustc see it below the new path.
    for shared in ["registry", "config.toml", "credentials.toml"] {
        if own.join(shared).exists() {
            symlink(own.join(shared), cargo_home.join(shared))?;
        }
    }
    let environment =
        vec![("CARGO_HOME", cargo_home.into()), ("CARGO_TARGET_DIR", folder.join("target").into())];
    Ok((clone, environment))
}

pub(crate) fn the_command_writes_what_it_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pause.tar");
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2e"));
    let said = run(command
        .args(["pause-image", "--output"])
        .arg(&path)
        .args(["--name", "registry.example/pause:test"]))?;
    let archive = fs::read(&path)?;
    let digest = Layout::read(&archive)?.top()?["digest"].clone();
    let digest = digest.as_str().context("no digest")?;
    let lines: Vec<_> = said.lines().collect();
    let [name, amd64, arm64, file] = lines[..] else { bail!("it says {said}") };
    ensure!(name == format!("registry.example/pause:test@{digest}"), "it says {name}");
    ensure!(
        amd64.starts_with("linux/amd64: program ") && arm64.starts_with("linux/arm64: program "),
        "{said}"
    );
    ensure!(file == format!("{}: {} bytes", path.display(), archive.len()), "it says {file}");
    ensure!(fs::read_dir(folder.path())?.count() == 1, "it leaves something beside the archive");
    Ok(())
}

pub(crate) fn the_containerfile_makes_the_same_image() -> Result<()> {
    let platform = Platform::host().context("no image for this machine")?;
    let ours = Image::shipped(platform)?;
    let folder = tempfile::tempdir()?;
    // As `cargo pause` leaves it.
    fs::write(folder.path().join("pause"), &ours.pause()?.content)?;
    let archive = folder.path().join("pause.tar");
    let revision = format!("REVISION={REVISION}");
    // The version is the file's own. A label with the version of buildah would be one more.
    let options = ["--identity-label=false", "--build-arg", &revision];
    let containerfile = project().join("pause/Containerfile");
    let name = "localhost/e2e/pause-by-containerfile:test";
    images::build(name, &containerfile, folder.path(), &options, &archive)?;
    let theirs = Image::read(platform, &fs::read(&archive)?)?;
    ensure!(theirs.pause()?.content == ours.pause()?.content, "/pause has other bytes");
    ensure!(theirs.settings() == ours.settings(), "{:?} and {:?}", theirs.settings(), ours.settings());
    Ok(())
}

/// Without a revision, or each commit would be another image to a node that keeps running. It is built by the user's compiler.
pub(crate) fn a_node_gets_the_program_of_the_command() -> Result<()> {
    let platform = Platform::host().context("no image for this machine")?;
    let archive = images::ensure(NodeImage::Pause)?;
    ensure!(images::ensure(NodeImage::Pause)? == archive, "built again, it is another");
    let command = Recipe::of_this_project(&[platform]).build()?;
    let (node, command) =
        (Image::read(platform, &fs::read(&archive)?)?, Image::read(platform, &command.bytes)?);
    ensure!(node.pause()?.content == command.pause()?.content, "/pause has other bytes");
    ensure!(node.name()? == names::PAUSE, "it is called {}", node.name()?);
    let revision = &node.settings()[2]["org.opencontainers.image.revision"];
    ensure!(revision.is_null(), "it is of the revision {revision}");
    Ok(())
}
