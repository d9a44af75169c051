//! The root file system of the virtual machines: Debian with what a Kubernetes node needs, and two kernels. It is built once into the
//! cache; a machine writes to a layer above it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::host::lock::Lock;
use crate::host::{apt, cache, command, debian};

const SUITE: &str = "trixie";
/// The release with this suite.
pub const DEBIAN: &str = "Debian 13";
/// Version of its kernel.
pub const DEBIAN_KERNEL: &str = "6.12";
/// Version of its containerd.
pub const DEBIAN_CONTAINERD: &str = "1.7";
/// Its kernel is newer than that of Debian stable.
const BACKPORTS: &str = "trixie-backports";
const KERNEL: &str = "linux-image-cloud-amd64";
/// With conmon, by which CRI-O runs containers, and buildah, which imports images into its storage and does not work without netavark.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,dbus,udev,kmod,iproute2,iptables,conntrack,runc,crun,containerd,\
                        containernetworking-plugins,openssh-server,procps,ca-certificates,conmon,buildah,netavark";
const LEFT_OUT: [&str; 3] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"];
/// Sparse.
const SIZE: &str = "8G";
/// Files that are written after the packages have been installed.
const FILES: [(&str, &str); 6] = [
    ("etc/systemd/network/10-eth0.network", "[Match]\nName=eth0\n[Network]\nDHCP=yes\nIPv6AcceptRA=no\n"),
    ("etc/fstab", "/dev/vda / ext4 defaults 0 1\nLABEL=node /node ext4 ro,nofail 0 0\n"),
    ("etc/modules-load.d/kubernetes.conf", "br_netfilter\noverlay\n"),
    ("etc/sysctl.d/kubernetes.conf", "net.ipv4.ip_forward=1\nnet.bridge.bridge-nf-call-iptables=1\n"),
    // Otherwise systemd asks for one at the console.
    ("etc/machine-id", ""),
    // Journals survive a reboot, so that a failed test can show them.
    ("etc/systemd/journald.conf.d/persistent.conf", "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n"),
];
const MOUNT_POINT: &str = "node";
const TIMERS_OFF: [&str; 5] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "dpkg-db-backup.timer",
];

/// The files of a built root file system.
#[derive(Debug, Clone)]
pub(super) struct Rootfs(PathBuf);

impl Rootfs {
    /// ext4, to be read only.
    pub(super) fn disk(&self) -> PathBuf {
        self.0.join("root.ext4")
    }

    /// The private key of its administrator.
    pub(super) fn key(&self) -> PathBuf {
        self.0.join("key")
    }

    /// A kernel (`vmlinuz`) or its initial RAM file system (`initrd`).
    pub(super) fn boot_file(&self, kernel: &str, file: &str) -> PathBuf {
        self.0.join(format!("{kernel}.{file}"))
    }
}

/// Builds it on the first call, with progress on stderr.
pub(super) fn ensure() -> Result<Rootfs> {
    apt::ensure_installed_for_vm()?;
    let directory = cache::root()?.join("vm").join(format!("{SUITE}-{}", recipe_hash()));
    if !directory.is_dir() {
        let _lock = Lock::wait(&directory.with_extension("lock"), "it builds the root file system")?;
        if !directory.is_dir() {
            build(&directory)?;
        }
    }
    Ok(Rootfs(directory))
}

/// A hash of the recipe: another recipe gets another directory.
fn recipe_hash() -> String {
    let mut hash = Sha256::new();
    for part in [SUITE, BACKPORTS, KERNEL, PACKAGES, SIZE].iter().chain(&LEFT_OUT).chain(&TIMERS_OFF) {
        hash.update(part);
    }
    for (path, text) in FILES {
        hash.update(path);
        hash.update(text);
    }
    format!("{:x}", hash.finalize())[..16].to_owned()
}

fn build(directory: &Path) -> Result<()> {
    eprintln!("building a Debian {SUITE} root file system (once, about 2 min)");
    let begun = Instant::now();
    let partial = directory.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let root = partial.join("root");
    fs::create_dir_all(&partial)?;
    bootstrap(&root, &directory.with_extension("log"))?;
    let rootfs = Rootfs(partial.clone());
    configure(&root, &rootfs)?;
    copy_kernels(&root, &rootfs)?;
    command::output(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "root", "-d"])
            .arg(&root)
            .arg(rootfs.disk())
            .arg(SIZE),
    )?;
    fs::remove_dir_all(&root)?;
    fs::rename(&partial, directory)?;
    eprintln!("built the root file system in {} s", begun.elapsed().as_secs());
    Ok(())
}

/// Debian's packages, and the kernel of backports beside that of the release.
fn bootstrap(root: &Path, log: &Path) -> Result<()> {
    let (mirror, keys) = (debian::mirror()?, debian::KEYS);
    let source = |suite: &str| format!("deb [signed-by={keys}] {mirror} {suite} main");
    let install = "APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes -oDPkg::Chroot-Directory=\"$1\" --no-install-recommends";
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--mode=root", "--variant=minbase", &format!("--include={PACKAGES}")]);
    bootstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    // A mirror may be a frozen copy. Signatures are checked all the same.
    bootstrap.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    bootstrap.args(debian::http_options()?.iter().map(|option| format!("--aptopt={option}")));
    bootstrap.arg(format!("--customize-hook={install} install -t {BACKPORTS} {KERNEL}"));
    bootstrap.arg(SUITE).arg(root).args([source(SUITE), source(BACKPORTS)]);
    let status = bootstrap
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(log)?)
        .status()
        .context("cannot run mmdebstrap")?;
    ensure!(status.success(), "mmdebstrap: {status}\n{}", command::tail(log)?);
    Ok(())
}

fn configure(root: &Path, rootfs: &Rootfs) -> Result<()> {
    for (path, text) in FILES {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a path without a directory")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    fs::create_dir_all(root.join(MOUNT_POINT))?;
    command::output(
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(rootfs.key()),
    )?;
    let ssh = root.join("root/.ssh");
    fs::create_dir_all(&ssh)?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700))?;
    fs::copy(rootfs.key().with_extension("pub"), ssh.join("authorized_keys"))?;
    let systemctl = |verb: &str, units: &[&str]| {
        let root = format!("--root={}", root.display());
        command::output(Command::new("systemctl").args([&root, "--quiet", verb]).args(units))
    };
    systemctl("enable", &["systemd-networkd", "ssh"])?;
    systemctl("mask", &TIMERS_OFF)?;
    Ok(())
}

/// The older one is Debian stable's, the newer one that of backports.
fn copy_kernels(root: &Path, rootfs: &Rootfs) -> Result<()> {
    let boot = root.join("boot");
    let mut versions = vec![];
    for entry in fs::read_dir(&boot)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        versions.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
    }
    versions.sort_by_key(|version| numbers(version));
    let [stable, backports] = &versions[..] else { anyhow::bail!("two kernels were expected: {versions:?}") };
    for (kernel, version) in [("stable", stable), ("backports", backports)] {
        fs::copy(boot.join(format!("vmlinuz-{version}")), rootfs.boot_file(kernel, "vmlinuz"))?;
        fs::copy(boot.join(format!("initrd.img-{version}")), rootfs.boot_file(kernel, "initrd"))?;
    }
    Ok(())
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_ordered_by_number() {
        assert!(numbers("6.12.117+deb13-cloud-amd64") < numbers("7.3.4+deb13-cloud-amd64"));
        assert!(numbers("6.9.1-cloud") < numbers("6.12.0-cloud"));
    }
}
