//! The life of a node: whatever ends it, nothing of it is left. The tests start real nodes, so they need root; elsewhere they
//! are reported as ignored.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::{Setup, preflight};
use e2e::cluster::{self, Node};
use e2e::host::{cache, retry};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Makes this program the owner of a node that it leaves to us: what it is to do then follows.
const OWNER: &str = "__owner";
const PATIENCE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    cluster::run_if_node_process();
    if let Some(name) = std::env::args().skip_while(|argument| argument != OWNER).nth(1) {
        let Err(error) = own(&name, std::env::args().any(|argument| argument == "panic"));
        eprintln!("the owner of {name}: {error:#}");
        return ExitCode::FAILURE;
    }
    let tests = vec![
        trial("stop_leaves_nothing_behind", stop_leaves_nothing_behind),
        trial("a_killed_owner_leaves_nothing_behind", || {
            an_ended_owner_leaves_nothing("killed", Signal::SIGKILL)
        }),
        trial("an_interrupted_owner_leaves_nothing_behind", || {
            an_ended_owner_leaves_nothing("interrupted", Signal::SIGINT)
        }),
        trial("a_panicking_owner_leaves_nothing_behind", a_panicking_owner_leaves_nothing_behind),
        trial("leftovers_of_a_killed_guard_are_gone_after_the_next_start", leftovers_are_swept),
        trial("a_second_node_of_the_name_is_refused", a_second_node_is_refused),
        trial("a_node_that_cannot_start_says_why", a_node_that_cannot_start_says_why),
    ];
    // One node at a time: what is left of one must not be taken for another's.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match preflight::missing() {
        Some(lack) => Ok(Completion::ignored_with(lack)),
        None => test().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}"))),
    })
}

/// Starts a node and waits for its own end.
fn own(name: &str, panics: bool) -> Result<Infallible> {
    let _node = Node::start(name, &Setup::prepare(&[])?)?;
    assert!(!panics, "a test asked for it");
    println!("up");
    loop {
        std::thread::park();
    }
}

fn start_owner(name: &str, then: &str) -> Result<Child> {
    // Where we run in the background SIGINT is ignored, and who starts another hands that on (POSIX, 2.11 of its shell).
    let mut owner = Command::new("env");
    owner.arg("--default-signal=INT").arg(std::env::current_exe()?).args([OWNER, name, then]);
    owner.stdout(Stdio::piped()).spawn().context("starting an owner")
}

/// How an owner ended. One that doesn't is killed: no test waits for ever.
fn ended(owner: &mut Child) -> Result<ExitStatus> {
    let status = retry::until("the owner ends", PATIENCE, || owner.try_wait()?.context("it runs"));
    if status.is_err() {
        owner.kill()?;
        owner.wait()?;
    }
    status
}

/// Everything on the machine that a node could leave behind.
#[derive(Debug)]
struct Census {
    node_processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    states: BTreeSet<String>,
}

impl Census {
    fn take() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let states = names(&cache::root()?.join("nodes")).unwrap_or_default();
        let mut cgroups = BTreeSet::new();
        for hierarchy in names(Path::new("/sys/fs/cgroup"))? {
            let below = names(&Path::new("/sys/fs/cgroup").join(&hierarchy)).unwrap_or_default();
            cgroups.extend(below.into_iter().map(|group| format!("{hierarchy}/{group}")));
            cgroups.insert(hierarchy);
        }
        Ok(Self {
            node_processes: node_processes()?,
            mounts: mounts.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect(),
            interfaces: names(Path::new("/sys/class/net"))?,
            cgroups: cgroups.into_iter().filter(|path| path.contains("sandbox-health")).collect(),
            states: states.into_iter().filter(|name| !name.contains(".lock")).collect(),
        })
    }
}

impl Census {
    /// What is there that was not there before. Others come and go on a machine: what they took with them is not ours.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let pairs = [
            (&self.node_processes, &before.node_processes),
            (&self.mounts, &before.mounts),
            (&self.interfaces, &before.interfaces),
            (&self.cgroups, &before.cgroups),
            (&self.states, &before.states),
        ];
        pairs.into_iter().flat_map(|(now, before)| now.difference(before).cloned()).collect()
    }
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Programs of ours from the cache, guards, and processes in a PID namespace of their own.
fn node_processes() -> Result<BTreeSet<String>> {
    let cache = cache::root()?.display().to_string();
    let own = fs::read_link("/proc/self/ns/pid")?;
    let mut found = BTreeSet::new();
    for name in names(Path::new("/proc"))?.into_iter().filter(|name| name.parse::<u32>().is_ok()) {
        let folder = Path::new("/proc").join(&name);
        let Ok(command) = fs::read(folder.join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let elsewhere = fs::read_link(folder.join("ns/pid")).is_ok_and(|namespace| namespace != own);
        if elsewhere || command.contains(&cache) || command.contains("__node-") {
            found.insert(format!("{name} {command}"));
        }
    }
    Ok(found)
}

/// The kernel needs a moment to tear namespaces down.
fn nothing_is_left(before: &Census) -> Result<()> {
    retry::until("nothing is left", PATIENCE, || {
        let left = Census::take()?.beyond(before);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn stop_leaves_nothing_behind() -> Result<()> {
    let setup = Setup::prepare(&[])?;
    let before = Census::take()?;
    let node = Node::start("stopped", &setup)?;
    let during = Census::take()?;
    // Or the census would find nothing whatever there is. What was there before may have ended meanwhile.
    ensure!(during.node_processes.difference(&before.node_processes).count() >= 8, "{during:?}");
    ensure!(!during.cgroups.is_subset(&before.cgroups) && during.states.contains("stopped"), "{during:?}");
    ensure!(node.kubectl(["get", "nodes", "-o", "name"])?.trim() == "node/stopped");
    node.stop()?;
    nothing_is_left(&before)
}

fn an_ended_owner_leaves_nothing(name: &str, signal: Signal) -> Result<()> {
    let before = Census::take()?;
    let mut owner = start_owner(name, "wait")?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "up\n" && Census::take()?.beyond(&before).len() > 8, "the owner said {line:?}");
    kill(Pid::from_raw(owner.id().cast_signed()), signal)?;
    ended(&mut owner)?;
    nothing_is_left(&before)
}

fn a_panicking_owner_leaves_nothing_behind() -> Result<()> {
    let before = Census::take()?;
    let status = ended(&mut start_owner("panicking", "panic")?)?;
    // What a Rust program ends with that panicked; a node that did not start is told with 1.
    ensure!(status.code() == Some(101), "it ended with {status}");
    nothing_is_left(&before)
}

fn leftovers_are_swept() -> Result<()> {
    let setup = Setup::prepare(&[])?;
    let before = Census::take()?;
    let node = Node::start("swept", &setup)?;
    let guard = fs::read_to_string(cache::root()?.join("nodes/swept/guard.pid"))?.trim().parse()?;
    kill(Pid::from_raw(guard), Signal::SIGKILL)?;
    drop(node);
    retry::until("the node's processes have ended", PATIENCE, || {
        ensure!(node_processes()?.is_subset(&before.node_processes));
        Ok(())
    })?;
    let left = Census::take()?;
    ensure!(
        left.states.contains("swept") && !left.cgroups.is_subset(&before.cgroups),
        "nothing was left to sweep: {left:?}"
    );
    Node::start("sweeping", &setup)?.stop()?;
    nothing_is_left(&before)
}

fn a_second_node_is_refused() -> Result<()> {
    let setup = Setup::prepare(&[])?;
    let first = Node::start("twice", &setup)?;
    let Err(error) = Node::start("twice", &setup) else { anyhow::bail!("it started") };
    let error = format!("{error:#}");
    ensure!(error.contains("a node named twice is running already"), "{error}");
    first.kubectl(["get", "nodes"])?;
    first.stop()
}

fn a_node_that_cannot_start_says_why() -> Result<()> {
    let before = Census::take()?;
    let setup = Setup::prepare(&[])?.with_archive("/no/such/image.tar".into());
    let Err(error) = Node::start("broken", &setup) else { anyhow::bail!("it started") };
    let error = format!("{error:#}");
    ensure!(error.contains("/no/such/image.tar: no such file"), "{error}");
    nothing_is_left(&before)
}
