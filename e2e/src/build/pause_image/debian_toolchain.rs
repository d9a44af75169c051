//! A compiler and a linker for a platform that the user's compiler has no library for: Debian's, unpacked into the cache
//! and called there. No root, no chroot and no installation: nothing of the host changes, and of the host's own Debian only
//! the mirror and the keys are used. Build scripts are compiled by it, too, and linked by the host's C compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::Platform;
use crate::host::apt::run_apt_get;
use crate::host::command::output;
use crate::host::lock::Lock;
use crate::host::{cache, debian};

/// Debian 13: the first whose Rust can build pause. Names of packages don't change within a release.
const RELEASE: &str = "trixie";
/// For the host: the compiler, the linker, the library for build scripts, and what they are linked against.
const HOST_PACKAGES: [&str; 18] = [
    "rustc",
    "libstd-rust-1.85",
    "libstd-rust-dev",
    "lld-19",
    "libllvm19",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libbsd0",
    "libedit2",
    "libffi8",
    "liblzma5",
    "libmd0",
    "libtinfo6",
    "libxml2",
    "libz3-4",
    "libzstd1",
    "zlib1g",
];
/// For the platform that is compiled for.
const PLATFORM_PACKAGE: &str = "libstd-rust-dev";
/// What a compiler is not asked for.
const LEFT_OUT: [&str; 5] =
    ["usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale", "usr/lib/rustlib/etc"];

/// Programs that run on the host as it is.
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    pub(super) linker: PathBuf,
}

/// Why it cannot be there; `None` when it is, or can be fetched.
pub(super) fn lacking(platform: Platform) -> Result<Option<String>> {
    if folder(host()?, platform)?.is_dir() {
        return Ok(None);
    }
    Ok(debian::mirror().err().map(|error| format!("there is no Rust for {platform}, and {error:#}")))
}

/// Fetches it the first time, with progress on stderr.
pub(super) fn ensure(platform: Platform) -> Result<Toolchain> {
    let host = host()?;
    let folder = folder(host, platform)?;
    let _lock = Lock::wait(&folder.with_extension("lock"), &format!("it fetches Rust for {platform}"))?;
    if !folder.is_dir() {
        eprintln!("fetching Debian's Rust for {platform} (once, about 140 MB)");
        let started = Instant::now();
        let partial = folder.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        make(host, platform, &partial).with_context(|| format!("Debian's Rust for {platform}"))?;
        fs::rename(&partial, &folder)?;
        eprintln!("fetched Debian's Rust for {platform} in {} s", started.elapsed().as_secs());
    }
    Ok(Toolchain { rustc: folder.join("rustc"), linker: folder.join("ld.lld") })
}

fn host() -> Result<Platform> {
    Platform::host().with_context(|| format!("no Debian toolchain for {}", std::env::consts::ARCH))
}

/// Named by what it is made of, so that another recipe is another folder.
fn folder(host: Platform, platform: Platform) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for part in HOST_PACKAGES.iter().chain([&PLATFORM_PACKAGE]).chain(&LEFT_OUT) {
        hash.update(part);
        hash.update("\n");
    }
    hash.update(wrapper(host, "rustc", "usr/bin/rustc"));
    hash.update(wrapper(host, "ld.lld", "usr/lib/llvm-19/bin/lld"));
    let hash = format!("{:x}", hash.finalize());
    let name = format!("{RELEASE}-{}-{}", platform.architecture(), &hash[..16]);
    Ok(cache::root()?.join("toolchains").join(name))
}

fn make(host: Platform, platform: Platform, root: &Path) -> Result<()> {
    let packages = root.join("packages");
    fs::create_dir_all(&packages)?;
    download(host, platform, &packages)?;
    for package in fs::read_dir(&packages)? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            debian::unpack(&package, root)?;
        }
    }
    fs::remove_dir_all(&packages)?;
    for folder in LEFT_OUT {
        let _ = fs::remove_dir_all(root.join(folder));
    }
    for (name, program) in [("rustc", "usr/bin/rustc"), ("ld.lld", "usr/lib/llvm-19/bin/lld")] {
        let path = root.join(name);
        fs::write(&path, wrapper(host, name, program))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        // Whatever is missing of its libraries is told now.
        output(Command::new(&path).arg("--version"))?;
    }
    Ok(())
}

/// Calls a program with its own C library and loader, not the host's. Programs that it calls get the host's again.
fn wrapper(host: Platform, name: &str, program: &str) -> String {
    let (loader, libraries) = match host {
        Platform::Amd64 => ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
        Platform::Arm64 => ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
    };
    // lld goes by the name that it is called by.
    format!(
        "#!/bin/sh\nhere=${{0%/*}}\nexec \"$here/{loader}\" --library-path \"$here/{libraries}\" --argv0 {name} \"$here/{program}\" \"$@\"\n"
    )
}

/// Into a folder, with lists, a status and a configuration of its own: the host's apt is left as it is.
fn download(host: Platform, platform: Platform, folder: &Path) -> Result<()> {
    for lists in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(folder.join(lists))?;
    }
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("sources.list"), source(&debian::mirror()?)?)?;
    fs::write(folder.join("apt.conf"), configuration(host, platform, folder)?)?;
    apt_get(folder, &["update"])?;
    let of = |package: &str, platform: Platform| format!("{package}:{}", platform.architecture());
    let mut packages = vec!["download".into(), of(PLATFORM_PACKAGE, platform)];
    packages.extend(HOST_PACKAGES.map(|package| of(package, host)));
    apt_get(folder, &packages.iter().map(String::as_str).collect::<Vec<_>>())
}

fn apt_get(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut apt_get = Command::new("apt-get");
    run_apt_get(apt_get.env("APT_CONFIG", folder.join("apt.conf")).current_dir(folder), arguments)
}

/// A line of sources.list(5). The packages must be signed by one of Debian's keys.
fn source(mirror: &str) -> Result<String> {
    let keys = debian::KEYS;
    ensure!(Path::new(keys).exists(), "{keys} is not here (apt-get install debian-archive-keyring)");
    Ok(format!("deb [signed-by={keys}] {mirror} {RELEASE} main\n"))
}

/// An apt.conf(5). Of the host's, which may have hooks that change the host, only what leads to the mirror is kept, and
/// nothing that trusts more than apt does by itself.
fn configuration(host: Platform, platform: Platform, folder: &Path) -> Result<String> {
    let mut text = debian::http_options()?.join("\n") + "\n";
    let place = folder.display();
    // The default sandbox user could not write to a folder of ours.
    text += &format!(
        "Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::sourcelist \"{place}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::State::lists \"{place}/lists\";\n\
         Dir::State::status \"{place}/status\";\n\
         Dir::Cache \"{place}\";\n\
         Dir::Cache::archives \"{place}/archives\";\n\
         APT::Architecture \"{0}\";\n\
         APT::Architectures {{ \"{0}\"; \"{1}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n",
        host.architecture(),
        platform.architecture()
    );
    Ok(text)
}
