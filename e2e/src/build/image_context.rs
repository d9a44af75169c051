//! The inputs of each image: our own binaries, which are built first, and files of Debian packages.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::Image;
use crate::build::cargo::project;
use crate::build::operator;
use crate::host::command::output;
use crate::host::debian;

/// Libraries of nginx, each with its package names in several Debian releases.
const NGINX_PACKAGES: [&[&str]; 7] = [
    &["nginx"],
    &["nginx-common"],
    &["libc6"],
    &["libcrypt1"],
    &["libpcre2-8-0"],
    &["libssl3", "libssl3t64"],
    &["zlib1g"],
];

/// The inputs of an image besides its Containerfile.
#[derive(Default)]
pub(super) struct Inputs {
    /// Copied into the root of the build context.
    files: Vec<PathBuf>,
    /// Packages that are unpacked into `rootfs/`.
    packages: Vec<PathBuf>,
    /// Whether each applet of busybox gets a link to it.
    applets: bool,
}

/// Builds or downloads the inputs that are not in the cache.
pub(super) fn inputs(image: Image) -> Result<Inputs> {
    let own = |file: &str| project().join("e2e/images").join(image.short()).join(file);
    Ok(match image {
        // The pause image is packed without a build context.
        Image::Pause => Inputs::default(),
        Image::SandboxHealth => Inputs { files: vec![operator::build(&project())?], ..Inputs::default() },
        Image::Busybox => Inputs {
            files: vec![own("passwd"), own("group")],
            packages: vec![debian::download("busybox-static")?],
            applets: true,
        },
        Image::Nginx => Inputs {
            files: vec![own("passwd"), own("group"), own("nginx.conf")],
            packages: NGINX_PACKAGES.into_iter().map(debian::download_any).collect::<Result<_>>()?,
            applets: false,
        },
        Image::OtherPause | Image::HostilePause => {
            Inputs { files: vec![own("pause.c")], ..Inputs::default() }
        }
    })
}

impl Inputs {
    /// A package is hashed by its name, which has its version.
    pub(super) fn hash_into(&self, hash: &mut Sha256) -> Result<()> {
        for file in &self.files {
            hash.update(fs::read(file).with_context(|| format!("reading {}", file.display()))?);
        }
        for package in &self.packages {
            hash.update(package.file_name().unwrap_or_default().as_encoded_bytes());
        }
        Ok(())
    }

    /// Writes the build context for buildah.
    pub(super) fn lay_out(&self, context: &Path) -> Result<()> {
        if context.exists() {
            fs::remove_dir_all(context)?;
        }
        fs::create_dir_all(context)?;
        for file in &self.files {
            let name = file.file_name().context("an input without a name")?;
            fs::copy(file, context.join(name)).with_context(|| format!("copying {}", file.display()))?;
            if name == "pause.c" {
                compile(&context.join(name), &context.join("pause"))?;
            }
        }
        let rootfs = context.join("rootfs");
        if !self.packages.is_empty() {
            fs::create_dir_all(&rootfs)?;
        }
        for package in &self.packages {
            debian::unpack(package, &rootfs)?;
        }
        for directory in ["usr/share/doc", "usr/share/man", "usr/share/lintian"] {
            let _ = fs::remove_dir_all(rootfs.join(directory));
        }
        if self.applets {
            link_applets(&rootfs)?;
        }
        if rootfs.exists() {
            let tmp = rootfs.join("tmp");
            fs::create_dir_all(&tmp)?;
            fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
        }
        Ok(())
    }
}

fn link_applets(rootfs: &Path) -> Result<()> {
    // The path of the binary depends on the release; pods run /bin/sh.
    let directory = rootfs.join("bin");
    let busybox = directory.join("busybox");
    if !busybox.exists() {
        fs::create_dir_all(&directory)?;
        fs::rename(rootfs.join("usr/bin/busybox"), &busybox).context("the package has no busybox")?;
    }
    // Only the binary itself lists its applets; it is static, so it runs here.
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        // A link of that name would replace the binary by a link to itself.
        if applet != "busybox" {
            symlink("busybox", directory.join(applet)).with_context(|| format!("linking {applet}"))?;
        }
    }
    Ok(())
}

/// Compiles the tests' third-party pause, with the file name of upstream's.
#[cfg(feature = "measure")]
pub(crate) fn third_party_pause() -> Result<std::path::PathBuf> {
    let directory = crate::host::cache::root()?.join("third-party-pause");
    std::fs::create_dir_all(&directory)?;
    let program = directory.join("pause");
    compile(&crate::build::cargo::project().join("e2e/images/other-pause/pause.c"), &program)?;
    Ok(program)
}

fn compile(source: &Path, program: &Path) -> Result<()> {
    output(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(program).arg(source))
        .map(drop)
        .context("a C compiler is needed (Debian: apt-get install gcc libc6-dev)")
}
