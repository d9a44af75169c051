//! The lifecycle of a node: however it ends, nothing of it is left on the machine. Other clusters may run at the same time, so only what
//! belongs to the node's name counts. The tests need root; elsewhere they are reported as ignored.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::{Setup, preflight};
use e2e::cluster::{self, Node};
use e2e::host::{cache, retry};
use e2e::trial::trial;
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Makes this process the owner of a node. The node's name and the words for [`own`] follow.
const OWNER: &str = "__owner";
const TIMEOUT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    cluster::run_if_node_process();
    if let Some(name) = std::env::args().skip_while(|argument| argument != OWNER).nth(1) {
        let Err(error) = own(&name, &std::env::args().collect::<Vec<_>>());
        eprintln!("the owner of {name}: {error:#}");
        return ExitCode::FAILURE;
    }
    let tests = [
        ("stopped_node_leaves_nothing", stopped_node_leaves_nothing as fn() -> Result<()>),
        ("killed_owner_leaves_nothing", killed_owner_leaves_nothing),
        ("interrupted_owner_leaves_nothing", interrupted_owner_leaves_nothing),
        ("panicking_owner_leaves_nothing", panicking_owner_leaves_nothing),
        ("next_start_removes_leftovers_of_killed_guard", next_start_removes_leftovers_of_killed_guard),
        ("second_node_of_same_name_is_refused", second_node_of_same_name_is_refused),
        ("failed_start_reports_reason", failed_start_reports_reason),
    ];
    let tests: Vec<Trial> =
        tests.into_iter().map(|(name, test)| trial(name, preflight::missing, test)).collect();
    // One after the other: a start removes the leftovers of all nodes whose guard was killed.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Starts a node and waits to be killed. The word `bare` is for a node without Kubernetes, `panic` ends this process by a panic.
fn own(name: &str, words: &[String]) -> Result<Infallible> {
    let has = |word: &str| words.iter().any(|argument| argument == word);
    let setup = Setup::prepare(&[])?;
    let node = if has("bare") { Node::start_bare(name, &setup) } else { Node::start(name, &setup) }?;
    // Like a virtual machine: a process in the node's namespaces, with a process group of its own.
    node.command("sleep")
        .arg("infinity")
        .process_group(0)
        .spawn()
        .context("starting a process of the node")?;
    assert!(!has("panic"), "the test requires a panic");
    println!("up");
    loop {
        std::thread::park();
    }
}

fn start_owner(name: &str, words: &[&str]) -> Result<Child> {
    // A background process of a shell ignores SIGINT, and so do its children (POSIX, 2.11 of its shell).
    let mut owner = Command::new("env");
    owner.arg("--default-signal=INT").arg(std::env::current_exe()?).args([OWNER, name]).args(words);
    owner.stdout(Stdio::piped()).spawn().context("starting an owner")
}

/// The exit status of an owner. One that does not end is killed.
fn wait_for_end(owner: &mut Child) -> Result<ExitStatus> {
    let status = retry::until("the owner exits", TIMEOUT, || owner.try_wait()?.context("it is running"));
    if status.is_err() {
        owner.kill()?;
        owner.wait()?;
    }
    status
}

/// Everything that a node of this name can leave on the machine.
#[derive(Debug)]
struct Census {
    name: String,
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    states: BTreeSet<String>,
}

impl Census {
    /// Before the node starts.
    fn take(name: &str) -> Result<Self> {
        Self::with_namespace(name, None)
    }

    /// Once it runs or has run: processes in its PID namespace count, too.
    fn with_namespace(name: &str, namespace: Option<&Path>) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let mount_points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
        let of_node = format!("/nodes/{name}");
        let mounts = mount_points.filter(|point| is_node_mount(point) || point.contains(&of_node));
        // The network plugin creates this bridge before it creates anything else.
        let interfaces = names(Path::new("/sys/class/net"))?.into_iter().filter(|name| name == "cni0");
        let group = format!("sandbox-health-{name}-");
        let mut cgroups = BTreeSet::new();
        for hierarchy in names(Path::new("/sys/fs/cgroup"))? {
            let below = names(&Path::new("/sys/fs/cgroup").join(&hierarchy)).unwrap_or_default();
            cgroups.extend(below.into_iter().map(|group| format!("{hierarchy}/{group}")));
            cgroups.insert(hierarchy);
        }
        let states = names(&cache::root()?.join("nodes")).unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            processes: processes(name, namespace)?,
            mounts: mounts.map(str::to_owned).collect(),
            interfaces: interfaces.collect(),
            cgroups: cgroups.into_iter().filter(|path| path.contains(&group)).collect(),
            states: states.into_iter().filter(|state| state == name).collect(),
        })
    }

    /// Additional entries of a later census.
    fn missing_from(&self, later: &Self) -> Vec<String> {
        let pairs = [
            (&later.processes, &self.processes),
            (&later.mounts, &self.mounts),
            (&later.interfaces, &self.interfaces),
            (&later.cgroups, &self.cgroups),
            (&later.states, &self.states),
        ];
        pairs.into_iter().flat_map(|(now, before)| now.difference(before).cloned()).collect()
    }

    /// Waits until nothing of the node is left: the kernel needs a moment to remove namespaces.
    fn nothing_is_added(&self, namespace: Option<&Path>) -> Result<()> {
        retry::until("nothing is left", TIMEOUT, || {
            let left = self.missing_from(&Self::with_namespace(&self.name, namespace)?);
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    }
}

/// Whether a node mounts something there, in its own mount namespace.
fn is_node_mount(point: &str) -> bool {
    ["/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni"].contains(&point)
        || point.starts_with("/proc/sys/")
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// The PID namespace of a node that runs.
fn pid_namespace(name: &str) -> Result<PathBuf> {
    let init = fs::read_to_string(cache::root()?.join("nodes").join(name).join("init.pid"))?;
    fs::read_link(format!("/proc/{}/ns/pid", init.trim())).context("the node's PID namespace")
}

/// Processes whose arguments or cgroup name the node, and those in its PID namespace.
fn processes(name: &str, namespace: Option<&Path>) -> Result<BTreeSet<String>> {
    let state = format!("{}/", cache::root()?.join("nodes").join(name).display());
    let roles = ["__node-guard", "__node-init"].map(|role| format!("{role} {name} "));
    let group = format!("sandbox-health-{name}-");
    let mut found = BTreeSet::new();
    for pid in names(Path::new("/proc"))?.into_iter().filter(|pid| pid.parse::<u32>().is_ok()) {
        let directory = Path::new("/proc").join(&pid);
        let Ok(command) = fs::read(directory.join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        let is_inside = namespace.is_some_and(|namespace| {
            fs::read_link(directory.join("ns/pid")).is_ok_and(|link| link == namespace)
        });
        let is_named = command.contains(&state) || roles.iter().any(|role| command.contains(role));
        if is_inside || is_named || cgroup.contains(&group) {
            found.insert(format!("{pid} {command}"));
        }
    }
    Ok(found)
}

fn stopped_node_leaves_nothing() -> Result<()> {
    let (name, setup) = ("stopped", Setup::prepare(&[])?);
    let before = Census::take(name)?;
    let node = Node::start(name, &setup)?;
    let namespace = pid_namespace(name)?;
    let during = Census::with_namespace(name, Some(&namespace))?;
    // Guard, unshare, PID 1 and seven components. A census that misses them would find nothing at the end either.
    ensure!(during.processes.len() >= 10, "{during:?}");
    ensure!(!during.cgroups.is_empty() && during.states.contains(name), "{during:?}");
    ensure!(node.kubectl(["get", "nodes", "-o", "name"])?.trim() == "node/stopped");
    node.read("/api/v1/nodes/stopped").context("by kubectl proxy, which must not stay either")?;
    node.stop()?;
    before.nothing_is_added(Some(&namespace))
}

fn killed_owner_leaves_nothing() -> Result<()> {
    ended_owner_leaves_nothing("killed", &[], Signal::SIGKILL, 10)
}

fn interrupted_owner_leaves_nothing() -> Result<()> {
    ended_owner_leaves_nothing("interrupted", &["bare"], Signal::SIGINT, 3)
}

fn ended_owner_leaves_nothing(name: &str, words: &[&str], signal: Signal, processes: usize) -> Result<()> {
    let before = Census::take(name)?;
    let mut owner = start_owner(name, words)?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "up\n", "the owner printed {line:?}");
    let namespace = pid_namespace(name)?;
    let during = Census::with_namespace(name, Some(&namespace))?;
    ensure!(during.processes.len() >= processes && !during.cgroups.is_empty(), "{during:?}");
    kill(Pid::from_raw(owner.id().cast_signed()), signal)?;
    wait_for_end(&mut owner)?;
    before.nothing_is_added(Some(&namespace))
}

fn panicking_owner_leaves_nothing() -> Result<()> {
    let before = Census::take("panicking")?;
    let status = wait_for_end(&mut start_owner("panicking", &["bare", "panic"])?)?;
    // The exit code of a panic. After a failed start it is 1.
    ensure!(status.code() == Some(101), "it ended with {status}");
    before.nothing_is_added(None)
}

fn next_start_removes_leftovers_of_killed_guard() -> Result<()> {
    let (name, setup) = ("swept", Setup::prepare(&[])?);
    let before = Census::take(name)?;
    let node = Node::start(name, &setup)?;
    let namespace = pid_namespace(name)?;
    let guard = fs::read_to_string(cache::root()?.join("nodes/swept/guard.pid"))?.trim().parse()?;
    kill(Pid::from_raw(guard), Signal::SIGKILL)?;
    drop(node);
    retry::until("the node's processes have ended", TIMEOUT, || {
        let running = processes(name, Some(&namespace))?;
        ensure!(running.is_empty(), "{running:?}");
        Ok(())
    })?;
    let left = Census::take(name)?;
    ensure!(left.states.contains(name) && !left.cgroups.is_empty(), "there are no leftovers: {left:?}");
    Node::start_bare("sweeping", &setup)?.stop()?;
    before.nothing_is_added(Some(&namespace))
}

fn second_node_of_same_name_is_refused() -> Result<()> {
    let setup = Setup::prepare(&[])?;
    let first = Node::start_bare("twice", &setup)?;
    let Err(error) = Node::start_bare("twice", &setup) else { anyhow::bail!("it started") };
    let error = format!("{error:#}");
    ensure!(error.contains("a node named twice is running already"), "{error}");
    // The first one is not affected.
    let status = first.command("hostname").output()?;
    ensure!(status.stdout == b"twice\n", "{status:?}");
    first.stop()
}

fn failed_start_reports_reason() -> Result<()> {
    let before = Census::take("broken")?;
    let setup = Setup::prepare(&[])?.with_archive("/no/such/image.tar".into());
    let Err(error) = Node::start("broken", &setup) else { anyhow::bail!("it started") };
    let error = format!("{error:#}");
    ensure!(error.contains("/no/such/image.tar: no such file"), "{error}");
    before.nothing_is_added(None)
}
