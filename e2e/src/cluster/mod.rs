//! A real one-node Kubernetes cluster, made of namespaces: [`Node`] is its handle. Three processes make it: the *owner* (a test, the demo)
//! starts a *guard*, the guard starts the node's *PID 1*, and the exit of each ends the next. All three run this binary with different
//! arguments, so each `main` that uses a node must first call [`run_if_node_process`].

mod api_proxy;
pub(crate) mod cgroups;
mod components;
mod configuration;
mod files;
mod guard;
mod init;
mod mounts;
mod network;
mod network_failure;
mod pki;
mod plan;
mod reaper;
pub(crate) mod snippet;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use api_proxy::ApiProxy;
pub use components::Component;
pub(crate) use guard::kill_inside;
pub(crate) use network::{ADDRESS, API_SERVER, KUBELET};
pub use network::{VM_NODES, VmNode};
use plan::{Layout, Plan, check_name};

use crate::build::go::Binaries;
use crate::build::{Image, Setup, images};
use crate::host::lock::Lock;
use crate::host::{cache, command, retry};

const GUARD: &str = "__node-guard";
const INIT: &str = "__node-init";
/// Timeout until a node has ended, and until containerd has started.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The kubelet caches the list of running pods for this long (its `runtimeCacheRefreshPeriod`), whether or not the runtime answers.
const RUNTIME_CACHE: Duration = Duration::from_secs(3);

/// The audit log of a cluster of this name that has ended.
///
/// # Errors
///
/// When there is no cache directory.
pub(crate) fn kept_audit_log(name: &str) -> Result<PathBuf> {
    let layout = Layout::new(&cache::root()?, name);
    let file = layout.audit_log();
    Ok(layout.kept_logs().join(file.file_name().unwrap_or_default()))
}

/// Runs as a guard or as a node's PID 1 if this process was started as one, and then never returns.
pub fn run_if_node_process() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(role) = arguments.next().filter(|role| role == GUARD || role == INIT) else {
        return;
    };
    let outcome = Plan::from_arguments(arguments)
        .and_then(|plan| if role == GUARD { guard::run(&plan, INIT) } else { init::run(&plan) });
    if let Err(error) = outcome {
        // The owner reads it from our stdout, line by line.
        println!("failed: {}", format!("{error:#}").replace('\n', "\nfailed: "));
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// A running node. It is stopped when this value is dropped, unless it was attached to.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    binaries: Binaries,
    init_pid: u32,
    guard: Option<Guard>,
    /// Started by the first read. It must end before the guard does.
    api_proxy: Mutex<Option<Arc<ApiProxy>>>,
}

/// A guard. It exits when the pipe closes.
#[derive(Debug)]
struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Node {
    /// Starts a node that ends when this process exits for any reason. Progress goes to stderr.
    ///
    /// # Errors
    ///
    /// When it does not become Ready; the error has the output of the failed component.
    pub fn start(name: &str, setup: &Setup) -> Result<Self> {
        Self::launch(name, setup, true, true)
    }

    /// Starts a node without Kubernetes: its processes, namespaces, mounts and cgroups exist within a second. It ends with this process.
    ///
    /// # Errors
    ///
    /// As [`Node::start`].
    pub fn start_bare(name: &str, setup: &Setup) -> Result<Self> {
        Self::launch(name, setup, true, false)
    }

    /// Starts a node that outlives this process; [`Node::remove`] ends it.
    ///
    /// # Errors
    ///
    /// As [`Node::start`].
    pub fn start_detached(name: &str, setup: &Setup) -> Result<Self> {
        Self::launch(name, setup, false, true)
    }

    /// The node of this name, if one is ready.
    ///
    /// # Errors
    ///
    /// When there is no cache directory.
    pub fn attach(name: &str) -> Result<Option<Self>> {
        check_name(name)?;
        let layout = Layout::new(&cache::root()?, name);
        if !layout.ready().exists() || Lock::attempt(&layout.lock())?.is_some() {
            return Ok(None);
        }
        let init_pid = init_pid(&layout)?;
        Ok(Some(Self {
            layout,
            binaries: Binaries::ensure()?,
            init_pid,
            guard: None,
            api_proxy: Mutex::default(),
        }))
    }

    /// Ends the node of this name, regardless of its owner, and waits until it is removed completely. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn remove(name: &str) -> Result<bool> {
        check_name(name)?;
        let layout = Layout::new(&cache::root()?, name);
        if Lock::attempt(&layout.lock())?.is_some() {
            return Ok(false);
        }
        let guard = read_pid(&layout.guard_pid())?;
        // Another guard may hold the lock while it removes leftovers, and the PID may have been reused.
        let command = fs::read(format!("/proc/{guard}/cmdline")).unwrap_or_default();
        let expected = format!("{GUARD}\0{name}\0");
        ensure!(
            command.windows(expected.len()).any(|part| part == expected.as_bytes()),
            "the node {name} is being started or removed; try again"
        );
        kill(Pid::from_raw(guard.cast_signed()), Signal::SIGTERM)
            .context("sending SIGTERM to the node's guard")?;
        retry::until("the node ends", TIMEOUT, || {
            ensure!(Lock::attempt(&layout.lock())?.is_some(), "its guard, process {guard}, is still running");
            Ok(true)
        })
    }

    fn launch(name: &str, setup: &Setup, tied: bool, has_components: bool) -> Result<Self> {
        check_name(name)?;
        let images = setup.images.clone();
        let plan = Plan { name: name.into(), tied, has_components, cache: cache::root()?, images };
        let layout = plan.layout();
        fs::create_dir_all(plan.nodes())?;
        eprintln!("starting a node");
        let begun = Instant::now();
        let mut process = Command::new(std::env::current_exe()?)
            .arg(GUARD)
            .args(plan.arguments())
            // Ctrl-C ends only this process; the guard cleans up afterwards.
            .process_group(0)
            .stdin(if tied { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the node's guard")?;
        let mut guard = Guard { pipe: process.stdin.take(), process };
        if let Err(error) = guard.until_ready() {
            guard.stop();
            return Err(error.context(format!("node {name} (its logs: {})", layout.kept_logs().display())));
        }
        eprintln!("the node is Ready after {} s", begun.elapsed().as_secs());
        let init_pid = init_pid(&layout)?;
        let guard = tied.then_some(guard);
        Ok(Self { layout, binaries: setup.binaries.clone(), init_pid, guard, api_proxy: Mutex::default() })
    }

    /// Ends the node and waits until it is removed completely.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(mut self) -> Result<()> {
        *self.api_proxy.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        match self.guard.take() {
            Some(mut guard) => {
                guard.stop();
                Ok(())
            }
            None => Self::remove(&self.layout.name).map(drop),
        }
    }

    /// A command that runs a program inside of the node's namespaces, as its administrator.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let path = self.binaries.path();
        let program = program.as_ref();
        let found = program.to_str().and_then(|name| command::find(name, &path));
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--net", "--uts", "--pid", "--target", &self.init_pid.to_string(), "--"])
            .arg(found.as_deref().map_or(program, Path::as_os_str))
            .env("PATH", path)
            .env("KUBECONFIG", self.layout.kubeconfig("admin"));
        // Helm's caches belong to the node.
        for (variable, directory) in [
            ("HELM_CACHE_HOME", "helm-cache"),
            ("HELM_CONFIG_HOME", "helm-config"),
            ("HELM_DATA_HOME", "helm-data"),
        ] {
            command.env(variable, self.layout.run(directory));
        }
        command
    }

    /// The administrator's kubeconfig, valid inside of the node's namespaces.
    #[cfg(feature = "measure")]
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }

    /// The administrator's certificate and key, which the kubelet accepts, too.
    pub(crate) fn admin_certificate(&self) -> (PathBuf, PathBuf) {
        (self.layout.pki("admin.crt"), self.layout.pki("admin.key"))
    }

    /// A file of the cluster's certificates.
    pub(crate) fn pki_file(&self, file: &str) -> PathBuf {
        self.layout.pki(file)
    }

    /// Options of kubectl with the address of the API server, instead of a kubeconfig.
    #[must_use]
    pub fn api_server_arguments(&self) -> [String; 2] {
        [
            format!("--server={API_SERVER}"),
            format!("--certificate-authority={}", self.layout.pki("ca.crt").display()),
        ]
    }

    /// The path of an upstream binary of the node.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        command::find(name, &self.binaries.path()).with_context(|| format!("no binary {name}"))
    }

    /// A directory for files that are removed with the node.
    pub(crate) fn scratch(&self) -> Result<PathBuf> {
        let directory = self.layout.run("scratch");
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// The output of `kubectl`.
    ///
    /// # Errors
    ///
    /// When it fails; the error has its stderr.
    pub fn kubectl<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<String> {
        command::output(self.command("kubectl").args(arguments))
    }

    /// The output of `kubectl get … -o json`.
    ///
    /// # Errors
    ///
    /// As [`Node::kubectl`], or when it is no JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = self.kubectl([&["get"], arguments, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&output)?)
    }

    /// The object or list at a path of the API, such as `/api/v1/nodes`. Much cheaper than [`Node::get`], so it is for polling.
    ///
    /// # Errors
    ///
    /// When the API server does not answer with a success.
    pub fn read(&self, path: &str) -> Result<serde_json::Value> {
        self.api_proxy()?.get(path)
    }

    fn api_proxy(&self) -> Result<Arc<ApiProxy>> {
        let mut started = self.api_proxy.lock().unwrap_or_else(PoisonError::into_inner);
        if started.is_none() {
            let proxy = ApiProxy::start(self.command("kubectl"), self.layout.run("api-proxy.sock"))?;
            *started = Some(Arc::new(proxy));
        }
        started.as_ref().map(Arc::clone).context("no proxy")
    }

    /// `kubectl apply` of a manifest.
    ///
    /// # Errors
    ///
    /// As [`Node::kubectl`].
    pub fn apply(&self, manifest: &serde_json::Value) -> Result<()> {
        self.apply_with(&[], manifest).map(drop)
    }

    /// Applies a manifest with options of kubectl; returns its output.
    ///
    /// # Errors
    ///
    /// As [`Node::kubectl`].
    pub fn apply_with(&self, options: &[&str], manifest: &serde_json::Value) -> Result<String> {
        let file = self.layout.run("applied.json");
        fs::write(&file, manifest.to_string())?;
        self.kubectl([&["apply", "-f", &file.display().to_string()], options].concat())
    }

    /// The output of `helm`.
    ///
    /// # Errors
    ///
    /// As [`Node::kubectl`].
    pub fn helm<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, arguments: I) -> Result<String> {
        command::output(self.command("helm").args(arguments))
    }

    /// Stops a component.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end.
    pub fn stop_component(&self, component: Component) -> Result<()> {
        self.request("stop", component)
    }

    /// Starts a component again.
    ///
    /// # Errors
    ///
    /// When it runs already.
    pub fn start_component(&self, component: Component) -> Result<()> {
        self.request("start", component)
    }

    /// Switches the node's sandbox image as an administrator does: in containerd's configuration, which is read at its start. Running
    /// sandboxes keep their image.
    ///
    /// # Errors
    ///
    /// When the image cannot be built or imported, or containerd does not come back.
    pub fn use_sandbox_image(&self, image: Image) -> Result<()> {
        self.use_sandbox_archive(&images::ensure(image)?, image.name())
    }

    /// The same, with an OCI archive that holds an image of this name.
    ///
    /// # Errors
    ///
    /// As [`Node::use_sandbox_image`].
    pub fn use_sandbox_archive(&self, archive: &Path, name: &str) -> Result<()> {
        command::output(self.ctr().args(["images", "import", "--local"]).arg(archive))?;
        configuration::write_sandbox_image(&self.layout, name)?;
        self.restart_containerd()
    }

    /// Makes the network plugin fail this many times when it is called to add a sandbox; after that it works.
    ///
    /// # Errors
    ///
    /// When containerd does not come back.
    pub fn break_network(&self, times: u32) -> Result<()> {
        let plugin = network_failure::write(&self.layout, times)?;
        configuration::write_network(&self.layout, plugin)?;
        self.restart_containerd()
    }

    /// How often the network plugin was called to add a sandbox since [`Node::break_network`].
    ///
    /// # Errors
    ///
    /// When the count cannot be read.
    pub fn network_additions(&self) -> Result<usize> {
        network_failure::additions(&self.layout)
    }

    /// Restores the network plugin after [`Node::break_network`].
    ///
    /// # Errors
    ///
    /// When containerd does not come back.
    pub fn restore_network(&self) -> Result<()> {
        configuration::write_network(&self.layout, network_failure::WORKING)?;
        self.restart_containerd()
    }

    fn restart_containerd(&self) -> Result<()> {
        self.stop_component(Component::Containerd)?;
        let stopped = Instant::now();
        self.start_component(Component::Containerd)?;
        retry::until("containerd answers again", TIMEOUT, || {
            command::output(self.ctr().arg("version")).map(drop)
        })?;
        // The kubelet reconnects with a delay, and until then `kubectl exec` fails with Unavailable.
        let asks_containerd = format!("/api/v1/nodes/{}/proxy/runningpods/", self.layout.name);
        retry::until("the kubelet reaches containerd again", TIMEOUT, || {
            self.read(&asks_containerd)?;
            ensure!(stopped.elapsed() > RUNTIME_CACHE, "this may have been the kubelet's cache");
            Ok(())
        })
    }

    fn ctr(&self) -> Command {
        let mut ctr = self.command("ctr");
        ctr.args(["--address", files::CONTAINERD_SOCKET, "-n", "k8s.io"]);
        ctr
    }

    /// The directory of static pods' manifests.
    #[must_use]
    pub fn static_pods(&self) -> PathBuf {
        files::static_pods(&self.layout)
    }

    /// The file that names the network plugin. containerd reads it again when it changes.
    #[must_use]
    pub fn network_configuration(&self) -> PathBuf {
        files::network(&self.layout)
    }

    /// Every write to the API so far, and every request of agent and controller: a JSON object a line (audit.k8s.io/v1
    /// Event).
    ///
    /// # Errors
    ///
    /// When the API server has written none.
    pub fn audit_log(&self) -> Result<String> {
        let path = self.layout.audit_log();
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The directory of the components' logs. When the node ends it is moved to `logs/<name>` in the cache.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.layout.logs()
    }

    /// The directory that the logs are moved to when the node ends.
    #[must_use]
    pub fn kept_log_dir(&self) -> PathBuf {
        self.layout.kept_logs()
    }

    /// Whether it was started from the images of this setup.
    #[must_use]
    pub fn is_made_of(&self, setup: &Setup) -> bool {
        fs::read(self.layout.images()).is_ok_and(|images| images == image_list(&setup.images))
    }

    /// The name of the cluster and of its node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// The node's PID 1, in the host's PID namespace.
    #[must_use]
    pub fn init_pid(&self) -> u32 {
        self.init_pid
    }

    fn request(&self, verb: &str, component: Component) -> Result<()> {
        let mut stream =
            UnixStream::connect(self.layout.control()).context("connecting to the node's PID 1")?;
        writeln!(stream, "{verb} {}", component.program())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match answer.trim() {
            "ok" => Ok(()),
            complaint => bail!("{verb} {}: {complaint}", component.program()),
        }
    }
}

/// The node's PID 1. On a busy machine the node may be ready before the guard has written the PID.
fn init_pid(layout: &Layout) -> Result<u32> {
    retry::until("the guard has written the PID of the node's PID 1", TIMEOUT, || {
        read_pid(&layout.init_pid())
    })
}

impl Drop for Node {
    fn drop(&mut self) {
        *self.api_proxy.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(guard) = &mut self.guard {
            guard.stop();
        }
    }
}

impl Guard {
    /// Passes on its output until it is ready.
    fn until_ready(&mut self) -> Result<()> {
        let stdout = self.process.stdout.take().context("the guard has no stdout")?;
        let mut failures = vec![];
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if line == "ready" {
                return Ok(());
            }
            match line.strip_prefix("failed: ") {
                Some(failure) => failures.push(failure.to_owned()),
                None => eprintln!("  {line}"),
            }
        }
        bail!("it did not start: {}", failures.join("\n"))
    }

    /// Closing the pipe ends it, after it has removed everything.
    fn stop(&mut self) {
        drop(self.pipe.take());
        let _ = self.process.wait();
    }
}

/// Names of archives, which have the hash of their inputs.
fn image_list(images: &[PathBuf]) -> Vec<u8> {
    images.iter().flat_map(|image| [image.as_os_str().as_encoded_bytes(), b"\n"].concat()).collect()
}

fn read_pid(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} has no PID", file.display()))
}
