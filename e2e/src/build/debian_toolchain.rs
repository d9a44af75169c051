//! Debian's Rust, clang and lld, unpacked into the cache and run there: one toolchain that builds static binaries for both platforms. It
//! needs no root, no chroot and no installation: the host is not changed, and only the mirror and the keys of the host's Debian are used.
//! It also compiles build scripts, which the host's C compiler links.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::build::cargo::directories;
use crate::build::oci::Platform;
use crate::host::apt::run_apt_get;
use crate::host::command::output;
use crate::host::lock::Lock;
use crate::host::{cache, debian};

const RELEASE: &str = "trixie";
/// The standard library of the newest Rust in a Debian release, the one that browsers are built with. Its dependencies name the versions of
/// Rust and LLVM, which change within a release.
pub(crate) const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";
/// Host packages: the compiler and its libraries. Packages with a version in their names are in [`versioned`].
const HOST_PACKAGES: [&str; 14] = [
    "rustc-web",
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
/// Packages for each target platform, and for build scripts.
pub(crate) const PLATFORM_PACKAGES: [&str; 3] = [STANDARD_LIBRARY, "libc6-dev", "libgcc-14-dev"];
/// The kernel's headers, for all architectures.
const KERNEL_HEADERS: &str = "linux-libc-dev";
/// Directories that no build reads.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/lib/rustlib/etc",
    "usr/include/llvm",
];
/// Names and checksums of the packages, as sha256sum(1) prints them.
const CHECKSUMS: &str = "packages.sha256";

/// A Debian package.
pub(crate) struct Package {
    pub(crate) sha256: String,
    /// As apt-get names it: NAME_VERSION_ARCHITECTURE.deb
    pub(crate) file: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
}

impl Package {
    /// From a line of sha256sum(1).
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (sha256, file) = line.split_once("  ")?;
        let (name, rest) = file.strip_suffix(".deb")?.split_once('_')?;
        let (version, architecture) = rest.rsplit_once('_')?;
        Some(Self {
            sha256: sha256.into(),
            file: file.into(),
            name: name.into(),
            version: version.replace("%3a", ":"),
            architecture: architecture.into(),
        })
    }
}

/// The unpacked toolchain.
pub(crate) struct Toolchain {
    directory: PathBuf,
}

impl Toolchain {
    /// Downloads it on the first call, with progress on stderr.
    pub(crate) fn ensure() -> Result<Self> {
        let host = host()?;
        let directory = directory(host)?;
        let _lock = Lock::wait(&directory.with_extension("lock"), "it fetches Debian's Rust")?;
        if !directory.is_dir() {
            eprintln!("fetching Debian's Rust and clang (once, about 190 MB)");
            let started = Instant::now();
            let partial = directory.with_extension("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            unpack_all(host, &partial).context("Debian's Rust and clang")?;
            fs::rename(&partial, &directory)?;
            eprintln!("fetched Debian's Rust and clang in {} s", started.elapsed().as_secs());
        }
        Ok(Self { directory })
    }

    /// The packages that it consists of.
    pub(crate) fn packages(&self) -> Result<Vec<Package>> {
        let checksums = fs::read_to_string(self.directory.join(CHECKSUMS))?;
        checksums.lines().map(|line| Package::parse(line).with_context(|| line.to_owned())).collect()
    }

    /// `rustc --version`.
    pub(crate) fn version(&self) -> Result<String> {
        output(Command::new(self.program("rustc")).arg("--version"))
    }

    fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Configures a Cargo build for a platform: Debian's toolchain, additional flags of rustc, and a separate target directory. In a shared one
/// the user's compiler would write another binary to the same path if the host has the same triple.
pub(crate) fn configure(
    build: &mut Command,
    platform: Platform,
    project: &Path,
    environment: &[(&'static str, OsString)],
    flags: &[&str],
) -> Result<()> {
    let toolchain = Toolchain::ensure()?;
    let clang = |platform: Platform| toolchain.program(&format!("clang-{}", platform.architecture()));
    let directories = directories(project, environment)?;
    let [_, _, (target, _)] = &directories;
    build.arg("--target-dir").arg(target.join("debian"));
    let mut flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    // Cargo's own variable would also set the linker of build scripts if the host has the same triple.
    flags.push(format!("-Clinker={}", clang(platform).display()));
    let mut c_flags = vec![];
    for (directory, name) in &directories {
        flags.push(format!("--remap-path-prefix={}={name}", directory.display()));
        c_flags.push(quoted(&format!("-ffile-prefix-map={}={name}", directory.display())));
    }
    let triple = platform.triple();
    // A list of strings has the same syntax in JSON and TOML.
    let flags = format!("target.{triple}.rustflags={}", serde_json::to_string(&flags)?);
    build.args(["--target", triple, "--config", &flags]).env("RUSTC", toolchain.program("rustc"));
    // For all platforms: macros have C code as well, and would be rebuilt for each platform if the variables differed.
    for platform in Platform::ALL {
        let variable = platform.triple().replace('-', "_");
        build
            .env(format!("CC_{variable}"), clang(platform))
            .env(format!("AR_{variable}"), toolchain.program("llvm-ar"))
            .env(format!("CFLAGS_{variable}"), c_flags.join(" "));
    }
    build.env("CC_SHELL_ESCAPED_FLAGS", "1");
    Ok(())
}

/// Why the toolchain is not available; `None` if it is cached or can be downloaded.
pub(crate) fn missing() -> Result<Option<String>> {
    if directory(host()?)?.is_dir() {
        return Ok(None);
    }
    Ok(debian::mirror()
        .err()
        .map(|error| format!("Debian's Rust is not in the cache and cannot be downloaded: {error:#}")))
}

/// Quotes a word for a shell: paths may have spaces.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn host() -> Result<Platform> {
    Platform::host().with_context(|| format!("no Debian toolchain for {}", std::env::consts::ARCH))
}

/// The name has a hash of the recipe, so that a changed recipe gets another directory.
fn directory(host: Platform) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    let versioned = versioned("RUST", "LLVM");
    let lists = [&HOST_PACKAGES[..], &PLATFORM_PACKAGES, &[KERNEL_HEADERS], &LEFT_OUT].concat();
    for part in lists
        .into_iter()
        .map(str::to_owned)
        .chain(versioned)
        .chain(wrappers(host, "LLVM").into_iter().map(|(_, text)| text))
    {
        hash.update(part);
        hash.update("\n");
    }
    let hash = format!("{:x}", hash.finalize());
    Ok(cache::root()?.join("toolchains").join(format!("{RELEASE}-{}", &hash[..16])))
}

fn unpack_all(host: Platform, root: &Path) -> Result<()> {
    let packages = root.join("packages");
    fs::create_dir_all(&packages)?;
    let llvm = download(host, &packages)?;
    let mut archives = vec![];
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            archives.push(path);
        }
    }
    archives.sort();
    let mut checksums = String::new();
    for archive in &archives {
        let name = archive.file_name().unwrap_or_default().display();
        writeln!(checksums, "{:x}  {name}", Sha256::digest(fs::read(archive)?))?;
        debian::unpack(archive, root)?;
    }
    fs::write(root.join(CHECKSUMS), checksums)?;
    fs::remove_dir_all(&packages)?;
    for directory in LEFT_OUT {
        let _ = fs::remove_dir_all(root.join(directory));
    }
    for (name, text) in wrappers(host, &llvm) {
        let path = root.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        // A missing library is reported now.
        output(Command::new(&path).arg("--version"))?;
    }
    Ok(())
}

/// Scripts that run a program with its own C library and loader instead of the host's. Its child processes use the host's again.
fn wrappers(host: Platform, llvm: &str) -> Vec<(String, String)> {
    let (loader, libraries) = match host {
        Platform::Amd64 => ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
        Platform::Arm64 => ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
    };
    let wrapper = |name: &str, argv0: &str, program: &str, arguments: &str| {
        let script = format!(
            "#!/bin/sh\nhere=${{0%/*}}\nexec \"$here/{loader}\" --library-path \"$here/{libraries}\" --argv0 {argv0} \"$here/{program}\" {arguments}\"$@\"\n"
        );
        (name.to_owned(), script)
    };
    let bin = format!("usr/lib/llvm-{llvm}/bin");
    // lld and llvm-ar choose their mode by argv[0].
    let mut wrappers = vec![
        wrapper("rustc", "rustc", "usr/bin/rustc", ""),
        wrapper("ld.lld", "ld.lld", &format!("{bin}/lld"), ""),
        wrapper("llvm-ar", "llvm-ar", &format!("{bin}/llvm-ar"), ""),
        wrapper("clang", "\"$here/clang\"", &format!("{bin}/clang"), ""),
    ];
    // For assembler with a preprocessor (.S), clang executes itself: /proc/self/exe, which is the loader, or, with
    // -no-canonical-prefixes, argv[0], which must be a wrapper that adds no argument.
    for platform in Platform::ALL {
        let triple = platform.triple().replace("-unknown", "");
        let arguments = format!(
            "-no-canonical-prefixes --no-default-config --target={triple} --sysroot=\"$here\" -resource-dir \"$here/usr/lib/llvm-{llvm}/lib/clang/{llvm}\" --ld-path=\"$here/ld.lld\" -Wno-unused-command-line-argument "
        );
        let name = format!("clang-{}", platform.architecture());
        wrappers.push(wrapper(&name, "\"$here/clang\"", &format!("{bin}/clang"), &arguments));
    }
    wrappers
}

/// Packages of the host whose names have a version.
fn versioned(standard_library: &str, llvm: &str) -> Vec<String> {
    let mut packages = vec![standard_library.to_owned()];
    packages
        .extend(["libllvm", "clang-", "libclang-cpp", "lld-", "llvm-"].map(|name| format!("{name}{llvm}")));
    packages.push(format!("libclang-common-{llvm}-dev"));
    packages
}

/// Downloads the packages into a directory, with its own apt lists, status and configuration: the host's apt is not changed. Returns the
/// version of LLVM.
fn download(host: Platform, directory: &Path) -> Result<String> {
    for lists in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(directory.join(lists))?;
    }
    fs::write(directory.join("status"), "")?;
    fs::write(directory.join("sources.list"), source(&debian::mirror()?)?)?;
    let configuration_file = directory.join("apt.conf");
    fs::write(&configuration_file, configuration(host, directory)?)?;
    let apt_get = |arguments: &[&str]| {
        let mut apt_get = Command::new("apt-get");
        run_apt_get(apt_get.env("APT_CONFIG", &configuration_file).current_dir(directory), arguments)
    };
    apt_get(&["update"])?;
    let depends = |package: &str, on: &str| {
        let mut apt_cache = Command::new("apt-cache");
        let text = output(apt_cache.env("APT_CONFIG", &configuration_file).args(["depends", package]))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let name = names.filter(|name| name.starts_with(on)).map(str::to_owned).next();
        name.with_context(|| format!("{package} does not depend on {on}*"))
    };
    let standard_library = depends(STANDARD_LIBRARY, "libstd-rust-web-")?;
    let llvm = depends(&standard_library, "libllvm")?.replace("libllvm", "");

    let mut packages = vec![KERNEL_HEADERS.to_owned()];
    let host_packages =
        HOST_PACKAGES.map(str::to_owned).into_iter().chain(versioned(&standard_library, &llvm));
    packages.extend(host_packages.map(|package| format!("{package}:{}", host.architecture())));
    for platform in Platform::ALL {
        let architecture = platform.architecture();
        packages.extend(PLATFORM_PACKAGES.map(|package| format!("{package}:{architecture}")));
    }
    let packages = packages.iter().map(String::as_str);
    apt_get(&["download"].into_iter().chain(packages).collect::<Vec<_>>())?;
    Ok(llvm)
}

/// A line of sources.list(5). The packages must be signed by one of Debian's keys.
fn source(mirror: &str) -> Result<String> {
    let keys = debian::KEYS;
    ensure!(Path::new(keys).exists(), "{keys} does not exist (apt-get install debian-archive-keyring)");
    Ok(format!("deb [signed-by={keys}] {mirror} {RELEASE} main\n"))
}

/// An apt.conf(5). Of the host's options, which may have hooks that change the host, only those for the mirror are kept, and none that
/// weakens apt's default checks.
fn configuration(host: Platform, directory: &Path) -> Result<String> {
    let mut text = debian::http_options()?.join("\n") + "\n";
    let place = directory.display();
    // apt's default sandbox user cannot write to this directory.
    text += &format!(
        "Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::sourcelist \"{place}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::State::lists \"{place}/lists\";\n\
         Dir::State::status \"{place}/status\";\n\
         Dir::Cache \"{place}\";\n\
         Dir::Cache::archives \"{place}/archives\";\n\
         APT::Architecture \"{}\";\n\
         APT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n",
        host.architecture(),
    );
    Ok(text)
}
