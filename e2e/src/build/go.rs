//! The upstream programs, built once from the Go modules below `e2e/upstream/` into the cache. A warm start finds their
//! directories and does not call Go.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::host::lock::Lock;
use crate::host::{cache, command, debian};

/// Environment variable that selects another Kubernetes than the newest: 1.33 is that of `upstream/kubernetes-1.33`.
pub const KUBERNETES: &str = "SANDBOX_HEALTH_KUBERNETES";

/// Interval of progress messages during a build that takes minutes.
const PROGRESS: Duration = Duration::from_secs(15);

/// Programs that one Go module builds.
struct Group {
    name: &'static str,
    /// The module whose version the binaries report.
    module: &'static str,
    /// Duration of a cold build on 2 cores.
    minutes: &'static str,
}

const HELM: Group = Group { name: "helm", module: "helm.sh/helm/v4", minutes: "5" };

/// containerd is 2.3, the line with long-term support: 2.4 sometimes processes the exit of a sandbox a second late
/// (docs/development/benchmarks.md).
const GROUPS: [Group; 4] = [
    Group { name: "etcd", module: "go.etcd.io/etcd/server/v3", minutes: "1 to 2" },
    Group { name: "containerd", module: "github.com/containerd/containerd/v2", minutes: "3" },
    Group { name: "kubernetes", module: "k8s.io/kubernetes", minutes: "10" },
    HELM,
];

#[cfg(any(test, feature = "measure"))]
/// Simulates nodes and their pods. No node needs it, so it is built on demand.
const KWOK: Group = Group { name: "kwok", module: "sigs.k8s.io/kwok", minutes: "2 to 3" };

#[cfg(feature = "measure")]
/// The path of kwok. The first call builds it.
pub(crate) fn kwok() -> Result<PathBuf> {
    Ok(ensure(&KWOK)?.join("kwok"))
}

/// Checkers of the chart; no node needs them.
const HELM_UNITTEST: Group =
    Group { name: "helm-unittest", module: "github.com/helm-unittest/helm-unittest", minutes: "1" };
const KUBE_SCORE: Group = Group { name: "kube-score", module: "github.com/zegl/kube-score", minutes: "1" };

/// The administrator's client of a container runtime; commands in the docs use it.
const CRICTL: Group = Group { name: "crictl", module: "sigs.k8s.io/cri-tools", minutes: "1" };

/// The directory with crictl. The first call builds it.
///
/// # Errors
///
/// As [`helm_unittest`].
pub fn crictl_directory() -> Result<PathBuf> {
    ensure(&CRICTL)
}

/// A container runtime of virtual machines ([`crate::vm`]).
const CRIO: Group = Group { name: "crio", module: "github.com/cri-o/cri-o", minutes: "3" };
const CRIO_TAGS: &str = "containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper \
                         containers_image_ostree_stub seccomp";

/// The directory with `crio`, `pinns` and upstream's systemd unit of CRI-O. The first call builds them.
///
/// # Errors
///
/// As [`helm_unittest`].
pub(crate) fn crio_directory() -> Result<PathBuf> {
    ensure(&CRIO)
}

/// The path of helm-unittest. The first call builds it.
///
/// # Errors
///
/// When Go fails; the error has the end of its output.
pub fn helm_unittest() -> Result<PathBuf> {
    Ok(ensure(&HELM_UNITTEST)?.join("helm-unittest"))
}

/// The path of kube-score. The first call builds it.
///
/// # Errors
///
/// As [`helm_unittest`].
pub fn kube_score() -> Result<PathBuf> {
    Ok(ensure(&KUBE_SCORE)?.join("kube-score"))
}

/// The path of Helm. The first call builds it.
///
/// # Errors
///
/// As [`helm_unittest`].
pub fn helm() -> Result<PathBuf> {
    Ok(ensure(&HELM)?.join("helm"))
}

/// The minor version, such as 1.37, of the module that a directory below `e2e/upstream` builds.
///
/// # Errors
///
/// When its go.mod does not require the module.
pub fn minor_version(directory: &str, module: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream").join(directory).join("go.mod");
    let go_mod = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let version = required(&go_mod, module).with_context(|| format!("{} lacks {module}", path.display()))?;
    Ok(version.trim_start_matches('v').split('.').take(2).collect::<Vec<_>>().join("."))
}

/// The directories with upstream's binaries, one per group.
#[derive(Debug, Clone)]
pub struct Binaries {
    directories: Vec<PathBuf>,
}

impl Binaries {
    /// Builds what is not in the cache, with progress on stderr.
    ///
    /// # Errors
    ///
    /// When Go fails; the error has the end of its output.
    pub fn ensure() -> Result<Self> {
        let directories = GROUPS.iter().map(ensure).collect::<Result<_>>()?;
        Ok(Self { directories })
    }

    /// A value for PATH: these binaries first, then the host's.
    pub(crate) fn path(&self) -> OsString {
        let mut path = OsString::new();
        for directory in &self.directories {
            path.push(directory);
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path.push(command::EXTRA_PATH);
        path
    }
}

/// Whether all binaries are in the cache.
pub(crate) fn is_all_cached() -> Result<bool> {
    for group in &GROUPS {
        if !group.directory()?.is_dir() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Group {
    fn source(&self) -> PathBuf {
        let directory = match std::env::var(KUBERNETES) {
            Ok(version) if self.name == "kubernetes" => format!("{}-{version}", self.name),
            _ => self.name.to_owned(),
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream").join(directory)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.source().join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// As go.mod pins it, with its `v`.
    fn version(&self) -> Result<String> {
        let go_mod = self.read("go.mod")?;
        required(&go_mod, self.module)
            .map(String::from)
            .with_context(|| format!("upstream/{}/go.mod does not require {}", self.name, self.module))
    }

    /// Without the version a kubelet reports v0.0.0, which clients refuse or warn about.
    fn ldflags(&self) -> Result<String> {
        let version = self.version()?;
        let stamp = match self.name {
            "kubernetes" => {
                let mut parts = version.trim_start_matches('v').split('.');
                let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
                let package = "k8s.io/component-base/version";
                format!(
                    " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
                )
            }
            "containerd" => format!(" -X {}/version.Version={version}", self.module),
            _ => String::new(),
        };
        Ok(format!("-s -w{stamp}"))
    }

    fn tags(&self) -> &'static str {
        if self.name == CRIO.name { CRIO_TAGS } else { "" }
    }

    /// The name identifies the inputs, so that another version gets another directory.
    fn directory(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for part in [self.read("go.mod")?, self.read("go.sum")?, self.ldflags()?, self.tags().to_owned()] {
            hash.update(part);
        }
        let hash = format!("{:x}", hash.finalize());
        Ok(cache::root()?.join("binaries").join(format!("{}-{}", self.name, &hash[..16])))
    }
}

/// The version of a module in the text of a go.mod.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next()? == module).then(|| words.next()).flatten().filter(|version| version.starts_with('v'))
    })
}

fn ensure(group: &Group) -> Result<PathBuf> {
    let directory = group.directory()?;
    if directory.is_dir() {
        return Ok(directory);
    }
    let _lock = Lock::wait(&directory.with_extension("lock"), &format!("it builds {}", group.name))?;
    if !directory.is_dir() {
        build(group, &directory)?;
    }
    Ok(directory)
}

fn build(group: &Group, directory: &Path) -> Result<()> {
    let partial = directory.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let version = group.version()?;
    eprintln!("building {} {version} (once, about {} min on 2 cores)", group.name, group.minutes);
    let started = Instant::now();
    let log = directory.with_extension("log");
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-trimpath", "-tags", group.tags()])
        .args(["-ldflags", &group.ldflags()?, "-o"])
        .arg(format!("{}/", partial.display()))
        .arg("tool")
        .current_dir(group.source())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    if group.name == CRIO.name {
        link_libseccomp(&mut go)?;
    }
    let mut go = go.spawn().context("cannot run go (Go 1.26 or later is needed in PATH)")?;
    let status = wait_with_progress(&mut go, || {
        eprintln!("building {}: {} s", group.name, started.elapsed().as_secs())
    })?;
    if !status.success() {
        let _ = fs::remove_dir_all(&partial);
        bail!(failure(group.name, &command::tail(&log)?));
    }
    // The Go package is called server, the binary etcd.
    if group.name == "etcd" {
        fs::rename(partial.join("server"), partial.join("etcd"))?;
    }
    if group.name == CRIO.name {
        add_files_of_crio(group, &partial)?;
    }
    fs::rename(&partial, directory)?;
    let _ = fs::remove_file(log);
    eprintln!("built {} {version} in {} s", group.name, started.elapsed().as_secs());
    Ok(())
}

/// Without libseccomp CRI-O gives containers no seccomp profile. It is linked statically: the package's shared library is a dangling link.
fn link_libseccomp(go: &mut Command) -> Result<()> {
    let package = debian::unpacked("libseccomp-dev")?.join("usr");
    let library = package.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
    go.env("CGO_ENABLED", "1")
        .env("CGO_CFLAGS", format!("-I{}", package.join("include").display()))
        .env("CGO_LDFLAGS", format!("-L{} -lseccomp", library.display()))
        // The package's pkg-config file has the paths of an installed one.
        .env("PKG_CONFIG", "true");
    Ok(())
}

/// Adds the parts of the module that are not Go: the C program by which CRI-O pins namespaces, and its systemd unit.
fn add_files_of_crio(group: &Group, directory: &Path) -> Result<()> {
    let mut go = Command::new("go");
    go.args(["list", "-m", "-f", "{{.Dir}}", group.module]).current_dir(group.source()).env_remove("GOFLAGS");
    let module = PathBuf::from(command::output(&mut go)?.trim());
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Os", "-static", &format!("-DVERSION=\"{}\"", group.version()?), "-o"]);
    cc.arg(directory.join("pinns"))
        .args(["pinns.c", "sysctl.c"].map(|file| module.join("pinns/src").join(file)));
    command::output(&mut cc)?;
    fs::copy(module.join("contrib/systemd/crio.service"), directory.join("crio.service"))?;
    Ok(())
}

fn wait_with_progress(child: &mut Child, progress: impl Fn()) -> Result<ExitStatus> {
    let mut last_progress = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if last_progress.elapsed() >= PROGRESS {
            last_progress = Instant::now();
            progress();
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A full disk and a missing network are failures of the machine, not of the build.
fn failure(group: &str, output: &str) -> String {
    let network = ["dial tcp", "no such host", "i/o timeout", "connection refused", "TLS handshake"];
    let reason = if output.contains("no space left on device") {
        "the disk is full: free some, or set SANDBOX_HEALTH_CACHE and GOCACHE to a larger one"
    } else if network.iter().any(|sign| output.contains(sign)) {
        "no network: Go modules could not be downloaded (see `go env GOPROXY`)"
    } else {
        "go build failed"
    };
    format!("building {group}: {reason}\n{output}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_go_mod() {
        let go_mod = "module x\n\nreplace a.b/c => a.b/c v9.0.0\nrequire (\n\ta.b/c/d v0.1.0 // indirect\n\ta.b/c v1.2.3\n)";
        assert_eq!(required(go_mod, "a.b/c"), Some("v1.2.3"));
        assert_eq!(required("require a.b/c v1.0.0", "a.b/c"), Some("v1.0.0"));
        assert_eq!(required(go_mod, "a.b"), None);
    }

    #[test]
    fn every_group_has_version_and_kubernetes_reports_it() {
        for group in GROUPS.iter().chain([&KWOK, &HELM_UNITTEST, &KUBE_SCORE, &CRIO]) {
            assert!(group.version().unwrap().starts_with('v'), "{}", group.name);
        }
        // The directory has the version as the command line names it.
        assert_eq!(minor_version("kubernetes-1.33", "k8s.io/kubernetes").unwrap(), "1.33");
        let kubernetes = GROUPS.iter().find(|group| group.name == "kubernetes").unwrap();
        let (version, flags) = (kubernetes.version().unwrap(), kubernetes.ldflags().unwrap());
        assert!(flags.contains(&format!("gitVersion={version} ")), "{flags}");
        assert!(flags.contains("gitMajor=1 "), "{flags}");
    }

    #[test]
    fn full_disk_and_missing_network_are_recognized() {
        let full = failure("etcd", "write /x: no space left on device");
        assert!(full.starts_with("building etcd: the disk is full"), "{full}");
        let offline = failure("etcd", "Get \"https://x\": dial tcp: lookup x: no such host");
        assert!(offline.starts_with("building etcd: no network"), "{offline}");
        assert!(
            failure("etcd", "x.go:1: undefined: y").starts_with("building etcd: go build failed\nx.go:1")
        );
    }
}
