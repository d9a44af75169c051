//! `cargo demo`: starts a real cluster, installs the chart and runs the steps of the demo. The cluster keeps running, for the user to
//! explore.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::{Reporter, picture};
use crate::build::{Image, Setup};
use crate::cluster::{Node, VM_NODES};
use crate::host::cache;
use crate::kube;
use crate::names::PAUSE;
use crate::vm::{self, Kernel, Runtime, Vm};
use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

/// The name of the node. Each cache has one demo at a time.
const NAME: &str = "demo";
const IMAGES: [Image; 4] = [Image::Pause, Image::SandboxHealth, Image::Busybox, Image::Nginx];

/// Starts a Kubernetes cluster whose sandboxes run our pause, installs the chart and runs the steps of the demo. A second run
/// uses the same cluster.
#[derive(Parser)]
#[command(bin_name = "cargo demo --")]
pub struct CommandLine {
    /// Adds a second node: Debian with systemd and cgroup v2, in a virtual machine
    #[arg(long)]
    real_node: bool,
    /// Writes a picture of a terminal with the commands of the demo that matter most, as SVG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Runs kubectl on the cluster, as its administrator.
    #[command(disable_help_flag = true)]
    Kubectl(Passed),
    /// Runs helm on the cluster.
    #[command(disable_help_flag = true)]
    Helm(Passed),
    /// Runs containerd's ctr on the first node.
    #[command(disable_help_flag = true)]
    Ctr(Passed),
    /// Removes the cluster completely
    Down,
}

#[derive(clap::Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the selected subcommand.
///
/// # Errors
///
/// When a requirement is missing, or the cluster does not do what the demo shows.
pub fn run(CommandLine { real_node, picture, part }: CommandLine) -> Result<ExitCode> {
    match part {
        None => show(real_node, picture.as_deref()),
        Some(Part::Kubectl(passed)) => pass_on("kubectl", &passed.arguments),
        Some(Part::Helm(passed)) => pass_on("helm", &passed.arguments),
        Some(Part::Ctr(passed)) => pass_on("ctr", &passed.arguments),
        Some(Part::Down) => down(),
    }
}

fn show(real_node: bool, picture: Option<&Path>) -> Result<ExitCode> {
    let begun = Instant::now();
    if let Some(missing) = real_node.then(vm::missing).flatten() {
        bail!("--real-node: {missing}");
    }
    let setup = Setup::prepare(&IMAGES)?;
    let node = Arc::new(match Node::attach(NAME)? {
        Some(node) if node.is_made_of(&setup) => node,
        Some(node) => {
            eprintln!("images have changed since the cluster was started; recreating it");
            node.stop()?;
            Node::start_detached(NAME, &setup)?
        }
        None => Node::start_detached(NAME, &setup)?,
    });
    eprintln!("the cluster is ready after {} s", begun.elapsed().as_secs());
    let mut out = std::io::stdout().lock();
    let mut reporter = Reporter::new(&node, &mut out);
    super::show(&mut reporter)?;
    if let Some(file) = picture {
        let picture = picture::svg(&reporter.pictured);
        fs::write(file, picture).with_context(|| format!("writing {}", file.display()))?;
    }
    if real_node {
        show_real_node(&node, &setup, &mut out)?;
    }
    writeln!(
        out,
        "\nThe cluster stays up.\n  \
         look around: cargo demo -- kubectl get sandboxhealth -A\n  \
         remove it:   cargo demo -- down\n  \
         its logs:    {}",
        node.log_dir().display()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Joins the virtual machine unless it has joined before, runs a pod there, and shows both nodes.
fn show_real_node(node: &Arc<Node>, setup: &Setup, out: &mut dyn Write) -> Result<()> {
    let place = VM_NODES[0];
    if node.kubectl(["get", "node", place.name]).is_err() {
        Vm::start(node, place, Kernel::Stable, Runtime::Containerd1, setup, PAUSE)?.leave_running();
    }
    let mut pod = kube::pod("on-debian", &[]);
    pod["spec"]["nodeName"] = place.name.into();
    kube::create(node, &pod)?;
    kube::wait_for_health(node, "on-debian", "True", "SandboxHealthy")?;
    let mut reporter = Reporter::new(node, out);
    reporter.print("\nThe same on Debian with systemd and cgroup v2, a second node in a virtual machine:")?;
    reporter.kubectl(&["get", "nodes", "-o", "wide"])?;
    reporter.kubectl(&["get", "sandboxhealth", "-A", "-o", "wide"]).map(drop)
}

fn pass_on(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let Some(node) = Node::attach(NAME)? else { bail!("there is no cluster; `cargo demo` starts one") };
    // Entering the node's namespaces changes the working directory, and relative paths depend on it.
    let mut command = node.command("env");
    command.arg("-C").arg(std::env::current_dir()?).arg(program);
    let command = command.args(arguments).stdin(Stdio::inherit());
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn down() -> Result<ExitCode> {
    if Node::remove(NAME)? {
        println!("the cluster has been removed; builds are kept in {}", cache::root()?.display());
    } else {
        println!("there is no cluster");
    }
    Ok(ExitCode::SUCCESS)
}
