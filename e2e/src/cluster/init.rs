//! PID 1 of a node: prepares its namespaces, starts the components in order, reports when the node is ready, and then stops and starts
//! components on request. It exits when its stdin closes, and the kernel kills everything else with it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sethostname};

use super::components::Component;
use super::files::CONTAINERD_SOCKET;
use super::plan::{Layout, Plan};
use super::reaper::Reaper;
use super::{configuration, mounts, network, pki};
use crate::build::go::Binaries;
use crate::host::command::{self, tail};
use crate::host::retry;

/// Timeout until a component answers, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Time from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(20);

/// Runs the node. What it prints are the lines that the node's owner reads.
pub(super) fn run(plan: &Plan) -> Result<()> {
    exit_with_stdin();
    let reaper = Reaper::start();
    let layout = plan.layout();
    sethostname(&layout.name)?;
    pki::write(&layout)?;
    fs::create_dir_all(layout.run(""))?;
    configuration::write(&layout)?;
    mounts::set_up(&layout)?;
    network::set_up(&reaper)?;
    let path = Binaries::ensure()?.path();
    let mut node = Init { layout, reaper, path, running: HashMap::new() };
    if plan.has_components {
        node.start_all(&plan.images)?;
    }
    let socket = UnixListener::bind(node.layout.control()).with_context(|| {
        format!("listening on {} (a shorter SANDBOX_HEALTH_CACHE may help)", node.layout.control().display())
    })?;
    fs::write(node.layout.images(), super::image_list(&plan.images))?;
    File::create(node.layout.ready())?;
    println!("ready");
    node.serve(&socket)
}

fn exit_with_stdin() {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        std::process::exit(0);
    });
}

struct Init {
    layout: Layout,
    reaper: Arc<Reaper>,
    path: std::ffi::OsString,
    running: HashMap<Component, u32>,
}

impl Init {
    fn start_all(&mut self, images: &[PathBuf]) -> Result<()> {
        println!("starting etcd, containerd and the API server");
        for component in [Component::Etcd, Component::Containerd, Component::Apiserver] {
            self.start(component)?;
        }
        self.until("containerd answers", |node| node.ctr(&["version"]).map(drop))?;
        for image in images {
            self.ctr(&["-n", "k8s.io", "images", "import", "--local", &image.display().to_string()])?;
        }
        self.until("the API server is ready", |node| node.kubectl(&["get", "--raw", "/readyz"]).map(drop))?;
        println!("starting the controllers, the scheduler, the proxy and the kubelet");
        for component in
            [Component::ControllerManager, Component::Scheduler, Component::Proxy, Component::Kubelet]
        {
            self.start(component)?;
        }
        // Pods are refused before it exists.
        self.until("the default service account exists", |node| {
            node.kubectl(&["get", "serviceaccount", "default"]).map(drop)
        })?;
        self.until("the node is Ready", |node| {
            let condition = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
            let ready = node.kubectl(&["get", "nodes", "-o", condition])?;
            if ready == "True" { Ok(()) } else { bail!("the Ready condition is {ready:?}") }
        })
    }

    fn start(&mut self, component: Component) -> Result<()> {
        if self.running.contains_key(&component) {
            bail!("{} is running already", component.program());
        }
        let log = self.layout.log(component.program());
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("{}", log.display()))?;
        let mut command = self.command(component.program());
        command
            .args(component.arguments(&self.layout))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = self.reaper.spawn(&mut command)?;
        self.running.insert(component, child.id());
        Ok(())
    }

    fn stop(&mut self, component: Component) -> Result<()> {
        let pid = self
            .running
            .remove(&component)
            .with_context(|| format!("{} does not run", component.program()))?;
        // A component that has exited by itself counts as stopped.
        if self.reaper.ended(pid).is_some() {
            return Ok(());
        }
        let process = Pid::from_raw(pid.cast_signed());
        kill(process, Signal::SIGTERM)?;
        if self.reaper.wait(pid, GRACE).is_none() {
            kill(process, Signal::SIGKILL)?;
            self.reaper.wait(pid, GRACE).with_context(|| format!("{} does not exit", component.program()))?;
        }
        Ok(())
    }

    fn serve(&mut self, socket: &UnixListener) -> Result<()> {
        for stream in socket.incoming() {
            let stream = stream?;
            let answer = match self.handle(&stream) {
                Ok(()) => "ok".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            // The client may have exited.
            let _ = writeln!(&stream, "{answer}");
        }
        Ok(())
    }

    fn handle(&mut self, stream: &UnixStream) -> Result<()> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let (verb, program) =
            line.trim().split_once(' ').context("a request must be a verb and a component")?;
        let component =
            Component::of_program(program).with_context(|| format!("no component {program:?}"))?;
        match verb {
            "start" => self.start(component),
            "stop" => self.stop(component),
            _ => bail!("the request has an unknown verb {verb:?}"),
        }
    }

    fn until(&self, what: &str, attempt: impl Fn(&Self) -> Result<()>) -> Result<()> {
        retry::until(what, TIMEOUT, || match (attempt(self), self.ended()) {
            (Ok(()), _) => Ok(Ok(())),
            // A component that has exited never answers.
            (Err(_), Some(ended)) => Ok(Err(ended)),
            (Err(error), None) => Err(error),
        })?
    }

    /// The error of a component that has exited by itself, with the end of its log.
    fn ended(&self) -> Option<anyhow::Error> {
        self.running.iter().find_map(|(component, pid)| {
            let (status, program) = (self.reaper.ended(*pid)?, component.program());
            let output = tail(&self.layout.log(program)).unwrap_or_default();
            Some(anyhow!("{program} ended ({status}):\n{output}"))
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = self.command("kubectl");
        kubectl.env("KUBECONFIG", self.layout.kubeconfig("admin")).args(arguments);
        self.reaper.output(&mut kubectl)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.reaper.output(self.command("ctr").args(["--address", CONTAINERD_SOCKET]).args(arguments))
    }

    fn command(&self, program: &str) -> Command {
        let found = command::find(program, &self.path).unwrap_or_else(|| program.into());
        let mut command = Command::new(found);
        command.env("PATH", &self.path);
        command
    }
}
