//! What goes into each image: programs of ours, built first, and files of Debian's packages.

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

/// What nginx is linked against, by the names that releases of Debian give it.
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
    /// Copied into the context's top folder under their names.
    files: Vec<PathBuf>,
    /// Unpacked into `rootfs/`.
    packages: Vec<PathBuf>,
    /// Links to busybox are made for what it can do.
    applets: bool,
}

/// Builds or downloads them where that has not been done yet.
pub(super) fn inputs(image: Image) -> Result<Inputs> {
    let own = |file: &str| project().join("e2e/images").join(image.short()).join(file);
    Ok(match image {
        // It is packed without a context.
        Image::Pause => Inputs::default(),
        Image::SandboxHealth => Inputs { files: vec![operator::program(&project())?], ..Inputs::default() },
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
    /// A package counts by its name, which has its version.
    pub(super) fn hash_into(&self, hash: &mut Sha256) -> Result<()> {
        for file in &self.files {
            hash.update(fs::read(file).with_context(|| format!("reading {}", file.display()))?);
        }
        for package in &self.packages {
            hash.update(package.file_name().unwrap_or_default().as_encoded_bytes());
        }
        Ok(())
    }

    /// Makes the folder that buildah is pointed at.
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
        for folder in ["usr/share/doc", "usr/share/man", "usr/share/lintian"] {
            let _ = fs::remove_dir_all(rootfs.join(folder));
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
    // Where the program is differs with the release; pods call /bin/sh.
    let folder = rootfs.join("bin");
    let busybox = folder.join("busybox");
    if !busybox.exists() {
        fs::create_dir_all(&folder)?;
        fs::rename(rootfs.join("usr/bin/busybox"), &busybox).context("the package has no busybox")?;
    }
    // Only the program itself knows its applets; it is static, so it runs here.
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        // A link of that name would replace the program by a link to itself.
        if applet != "busybox" {
            symlink("busybox", folder.join(applet)).with_context(|| format!("linking {applet}"))?;
        }
    }
    Ok(())
}

/// Compiles the third-party pause of the tests, under the name that upstream's has.
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
