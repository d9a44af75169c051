//! What goes into each image: programs of ours, built first, and files of Debian's packages.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::{Image, project};
use crate::debian;
use crate::invocation::output;

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
        Image::Pause => Inputs { files: vec![pause()?], ..Inputs::default() },
        Image::SandboxHealth => Inputs { files: vec![sandbox_health()?], ..Inputs::default() },
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
        Image::OtherPause => Inputs { files: vec![own("pause.c")], ..Inputs::default() },
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

fn compile(source: &Path, program: &Path) -> Result<()> {
    output(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(program).arg(source))
        .map(drop)
        .context("a C compiler is needed (Debian: apt-get install gcc libc6-dev)")
}

/// The pause program as it ships.
fn pause() -> Result<PathBuf> {
    executable(cargo().arg("pause"))
}

/// The operator's program as it ships: static, for its image holds nothing else.
fn sandbox_health() -> Result<PathBuf> {
    let triple = host_triple()?;
    let flags = format!("target.{triple}.rustflags=[\"-C\",\"target-feature=+crt-static\"]");
    executable(cargo().args([
        "build",
        "--release",
        "--package",
        "sandbox-health",
        "--target",
        &triple,
        "--config",
        &flags,
    ]))
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(project());
    cargo
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.into())
}

/// Cargo says where it puts a program, whatever target folder is configured.
fn executable(build: &mut Command) -> Result<PathBuf> {
    // What Cargo says meanwhile is progress, and what it says of an error is all there is to say.
    let build = build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = output(build)?;
    let path = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo named no executable")?;
    ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}
