//! The released binary of the operator on each platform, emulated by QEMU if it is not the host's: it is static, prints the same as on the
//! other platform, and its agent works with an API server over TLS and a /proc that is a directory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::oci::{Platform, revision};
use e2e::build::operator;
use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use pid1_harness::eventually;
use tempfile::TempDir;

use crate::made;
use crate::tls_api::{NODE, POD_UID, TlsApi};

type Test = fn(Platform) -> Result<()>;

pub(crate) const EACH: [(&str, Test); 5] = [
    ("operator_binary_is_static_and_names_no_path", operator_binary_is_static_and_names_no_path),
    ("operator_prints_its_version", operator_prints_its_version),
    ("operator_prints_crd_of_chart", operator_prints_crd_of_chart),
    ("agent_reports_pod_over_tls_and_exports_metrics", agent_reports_pod_over_tls_and_exports_metrics),
    ("agent_sends_nothing_to_server_of_other_ca", agent_sends_nothing_to_server_of_other_ca),
];

/// In the long run only: builds everything again, in a clone of the last commit at another path.
pub(crate) fn operator_of_clone_is_identical(platform: Platform) -> Result<()> {
    let project = made::project();
    let revision = revision(&project).context("no repository")?;
    ensure!(!revision.contains("dirty"), "the checkout has uncommitted changes, which a clone does not have");
    let directory = tempfile::tempdir()?;
    let (clone, environment) = made::clone_into(&directory.path().join("a directory/with a longer name"))?;
    let cloned = fs::read(operator::build_released(&clone, platform, &environment)?)?;
    let released = fs::read(binary(platform)?)?;
    ensure!(released == cloned, "binaries of {} and {} bytes differ", released.len(), cloned.len());
    Ok(())
}

/// The emulator of this platform; `None` if it is the host's.
pub(crate) fn emulator(platform: Platform) -> Option<&'static str> {
    if Platform::host() == Some(platform) {
        return None;
    }
    Some(match platform {
        Platform::Amd64 => "qemu-x86_64-static",
        Platform::Arm64 => "qemu-aarch64-static",
    })
}

fn binary(platform: Platform) -> Result<PathBuf> {
    operator::build_released(&made::project(), platform, &[])
}

fn command(platform: Platform) -> Result<Command> {
    let binary = binary(platform)?;
    Ok(match emulator(platform) {
        None => Command::new(binary),
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.arg(binary);
            command
        }
    })
}

fn output(platform: Platform, arguments: &[&str]) -> Result<String> {
    let ran = command(platform)?.args(arguments).output()?;
    ensure!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?)
}

fn operator_binary_is_static_and_names_no_path(platform: Platform) -> Result<()> {
    let content = fs::read(binary(platform)?)?;
    let program = ElfFile64::<LittleEndian>::parse(&*content)?;
    let machine = match platform {
        Platform::Amd64 => elf::EM_X86_64,
        Platform::Arm64 => elf::EM_AARCH64,
    };
    ensure!(program.elf_header().e_machine.get(LittleEndian) == machine, "the binary is for another machine");
    let headers = program.elf_program_headers();
    ensure!(
        headers.iter().all(|header| header.p_type(LittleEndian) != elf::PT_INTERP),
        "the binary is dynamically linked"
    );
    for place in [env!("CARGO_MANIFEST_DIR").trim_end_matches("e2e"), "/.cargo/", "/home/", "/toolchains/"] {
        let is_named = content.windows(place.len()).any(|part| part == place.as_bytes());
        ensure!(!is_named, "the binary has the path {place}");
    }
    Ok(())
}

fn operator_prints_its_version(platform: Platform) -> Result<()> {
    let version = output(platform, &["--version"])?;
    ensure!(
        version == concat!("sandbox-health ", env!("CARGO_PKG_VERSION"), "\n"),
        "the binary prints {version:?}"
    );
    Ok(())
}

/// The output equals the chart's CRD, so both platforms print the same bytes.
fn operator_prints_crd_of_chart(platform: Platform) -> Result<()> {
    let committed = made::project().join("charts/sandbox-health/generated/crd.yaml");
    ensure!(
        output(platform, &["crd"])? == fs::read_to_string(committed)?,
        "the binary prints another CRD than the chart has"
    );
    Ok(())
}

fn agent_reports_pod_over_tls_and_exports_metrics(platform: Platform) -> Result<()> {
    let api = TlsApi::start()?;
    let agent = Agent::start(platform, |directory| api.write_kubeconfig(directory))?;
    eventually(|| agent.expect("/readyz", "200 OK")).with_context(|| agent.log())?;
    let zombies = format!("pod_sandbox_zombie_processes{{namespace=\"shop\",pod=\"web\",node=\"{NODE}\"}} 2");
    eventually(|| agent.expect("/metrics", &zombies)).with_context(|| agent.log())?;
    eventually(|| {
        let status = api.status();
        ensure!(status["processes"]["zombies"] == 2, "the agent reported {status}");
        Ok(())
    })?;
    let requests = api.requests();
    for resource in ["/api/v1/pods?", "/apis/sandboxhealth.dev/v1alpha1/sandboxhealths?"] {
        let has_request = |watch: bool| {
            let call = format!("GET {resource}");
            requests
                .iter()
                .any(|request| request.starts_with(&call) && request.contains("watch=true") == watch)
        };
        ensure!(
            has_request(false) && has_request(true),
            "{resource} was not listed and watched: {requests:?}"
        );
    }
    Ok(())
}

fn agent_sends_nothing_to_server_of_other_ca(platform: Platform) -> Result<()> {
    let api = TlsApi::start()?;
    let agent = Agent::start(platform, |directory| api.write_kubeconfig_with_other_ca(directory))?;
    eventually(|| agent.expect("/readyz", "invalid peer certificate")).with_context(|| agent.log())?;
    ensure!(api.requests().is_empty(), "the server got {:?}", api.requests());
    Ok(())
}

/// An agent on a node with one pod.
struct Agent {
    directory: TempDir,
    address: SocketAddr,
    _agent: Running,
    _pause: Running,
}

impl Agent {
    fn start(platform: Platform, kubeconfig: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let kubeconfig = kubeconfig(directory.path())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut agent = command(platform)?;
        agent.args(["agent", "--node-name", NODE, "--listen", &address.to_string(), "--proc"]);
        agent.arg(directory.path().join("proc")).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
        agent.stderr(fs::File::create(directory.path().join("log"))?);
        // Only an existing process has a pidfd.
        let pause = Running(Command::new("sleep").arg("infinity").spawn()?);
        write_proc(&directory.path().join("proc"), pause.0.id())?;
        Ok(Self { address, _agent: Running(agent.spawn()?), _pause: pause, directory })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The response to a request has this text.
    fn expect(&self, path: &str, text: &str) -> Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        ensure!(response.contains(text), "{path}: {response}");
        Ok(())
    }
}

/// A process that ends when this value is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The files of proc(5) that the agent reads: an init, a third-party pause, and a parent in its pod with two zombies.
fn write_proc(proc: &Path, pause: u32) -> Result<()> {
    // Higher than every PID of Linux (2^22, `pid_max` of proc(5)).
    const PARENT: u32 = 5_000_000;
    let [sandbox, container] = ["5", "c"].map(|digit| format!("/kubepods/pod{POD_UID}/{}", digit.repeat(64)));
    fs::create_dir_all(proc.join("sys/kernel/random"))?;
    fs::write(proc.join("sys/kernel/random/boot_id"), "11111111-2222-4333-8444-555555555555\n")?;
    fs::write(proc.join("uptime"), "3600.00 7000.00\n")?;
    fs::write(proc.join("vmstat"), "oom_kill 0\n")?;
    for (pid, parent, state, pids, name, cgroup) in [
        (1, 0, 'S', "1", "init", "/"),
        (pause, 1, 'S', &*format!("{pause} 1"), "pause", &*sandbox),
        (PARENT, pause, 'S', &format!("{PARENT} 7"), "sh", &container),
        (PARENT + 1, PARENT, 'Z', &format!("{} 8", PARENT + 1), "sleep", &container),
        (PARENT + 2, PARENT, 'Z', &format!("{} 9", PARENT + 2), "sleep", &container),
    ] {
        let directory = proc.join(pid.to_string());
        fs::create_dir(&directory)?;
        let stat = format!("{pid} ({name}) {state} {parent} 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 1200 4096 0");
        fs::write(directory.join("stat"), stat)?;
        fs::write(directory.join("status"), format!("Name:\t{name}\nNSpid:\t{pids}\nThreads:\t1\n"))?;
        fs::write(directory.join("cgroup"), format!("0::{cgroup}\n"))?;
        fs::write(directory.join("cmdline"), format!("/{name}\0"))?;
    }
    Ok(())
}
