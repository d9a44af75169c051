//! A PID namespace of its own, with the program under test as PID 1, and commands run inside it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::{Refusal, Status};
use pid1_harness::{Namespace, eventually, only_child};

use crate::built::shipped;

/// What runs as PID 1.
pub(crate) struct Pid1 {
    program: PathBuf,
    name: String,
    comm: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    uid: Option<u32>,
    prepare: String,
    via: Vec<String>,
}

impl Pid1 {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (arguments, environment, via) = (vec![], vec![], vec![]);
        let comm = name.clone();
        Self { program, name, comm, arguments, environment, uid: None, prepare: String::new(), via }
    }

    pub(crate) fn pause() -> Result<Self> {
        Ok(Self::new(shipped()?))
    }

    /// The negative control: it never waits for a child, so whatever a test shows of pause must fail with it.
    pub(crate) fn never_waits() -> Result<Self> {
        Ok(Self::new("/bin/sleep").with_argument("infinity"))
    }

    pub(crate) fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn with_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Under another name than its file has.
    pub(crate) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self.comm.clone_from(&self.name);
        self
    }

    /// The name that the process will have, where that is not its file's.
    pub(crate) fn shown_as(mut self, comm: impl Into<String>) -> Self {
        self.comm = comm.into();
        self
    }

    /// As the kubelet does with a pod-level `runAsUser`.
    pub(crate) fn run_as(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// After this shell script, run as root inside of the new namespaces by the shell that then executes the program.
    pub(crate) fn prepared_by(mut self, script: impl Into<String>) -> Self {
        self.prepare = script.into();
        self
    }

    /// Executed by a [`crate::brood`] of this role.
    pub(crate) fn executed_by(mut self, role: &str) -> Result<Self> {
        let brood = std::env::current_exe()?.to_str().context("a path in UTF-8")?.to_owned();
        self.via = vec![brood, crate::brood::ROLE.into(), role.into()];
        Ok(self)
    }

    pub(crate) fn start(self) -> Result<Sandbox> {
        // The name of the process is the name of the file; any uid may have to execute it.
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()?;
        let program = folder.path().join(&self.name);
        // By another process: while we held it open for writing, a test beside this one might fork and keep it so, and what is
        // open for writing cannot be executed.
        let copied = Command::new("cp").arg(&self.program).arg(&program).status()?;
        ensure!(copied.success(), "{} cannot be copied", self.program.display());
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
        let mut unshare = Namespace::command();
        if !self.prepare.is_empty() {
            let script = format!("{}\nexec \"$0\" \"$@\"", self.prepare);
            unshare.args(["sh", "-e", "-c", &script]);
        }
        if let Some(uid) = self.uid {
            let uid = uid.to_string();
            unshare.args(["setpriv", "--reuid", &uid, "--regid", &uid]);
            unshare.args(["--clear-groups", "--bounding-set=-all"]);
        }
        unshare.args(&self.via).arg(program).args(&self.arguments).envs(self.environment);
        let namespace = Namespace::start(&mut unshare, |pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
            ensure!(comm.trim_end() == self.comm, "{comm:?} runs, not yet {:?}", self.comm);
            Ok(())
        })?;
        Ok(Sandbox { pid: namespace.pid, namespace, folder })
    }
}

/// Whether a process blocks, catches or waits for the signal (proc_pid_status(5)): while rt_sigtimedwait(2) waits, what it waits
/// for counts as not blocked.
pub(crate) fn takes(pid: Pid, signal: Signal) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut sets =
        status.lines().filter_map(|line| line.strip_prefix("SigBlk:").or(line.strip_prefix("SigCgt:")));
    let bit = 1_u64 << (signal as i32 - 1);
    let taken = sets.any(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & bit != 0));
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let waits = call.split(' ').next() == Some(&nix::libc::SYS_rt_sigtimedwait.to_string());
    ensure!(taken || waits, "it does not take {signal} yet");
    Ok(())
}

/// A process inside that stays until it is ended.
pub(crate) struct Staying {
    pid: Pid,
    nsenter: Child,
}

impl Staying {
    pub(crate) fn end(mut self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL)?;
        self.nsenter.wait()?;
        Ok(())
    }
}

/// A PID namespace; it ends with this value.
pub(crate) struct Sandbox {
    /// Of its PID 1, as seen from outside.
    pub(crate) pid: Pid,
    namespace: Namespace,
    folder: tempfile::TempDir,
}

impl Sandbox {
    fn enter(&self) -> Command {
        let mut nsenter = self.namespace.enter();
        nsenter.stdin(Stdio::null()).stdout(Stdio::piped());
        nsenter
    }

    /// Starts a shell script inside; its orphans become children of PID 1.
    pub(crate) fn spawn(&self, script: &str) -> Result<Child> {
        Ok(self.enter().args(["sh", "-c", script]).spawn()?)
    }

    /// Runs a shell script inside to its end, and returns what it printed.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        let Output { status, stdout, .. } = self.spawn(script)?.wait_with_output()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(String::from_utf8(stdout)?)
    }

    /// Starts a [`crate::brood`] inside.
    pub(crate) fn brood(&self, words: &[&str]) -> Result<Child> {
        Ok(self.enter().arg(std::env::current_exe()?).arg(crate::brood::ROLE).args(words).spawn()?)
    }

    /// Starts one that stays, and returns when it has made its processes.
    pub(crate) fn brood_that_stays(&self, words: &[&str]) -> Result<Staying> {
        let mut nsenter = self.brood(words)?;
        let mut said = [0; 5];
        let read = nsenter.stdout.take().context("no stdout")?.read_exact(&mut said);
        ensure!(read.is_ok() && said == *b"made\n", "{words:?} did not make its processes");
        Ok(Staying { pid: only_child(nsenter.id())?, nsenter })
    }

    /// Runs one to its end.
    pub(crate) fn run_brood(&self, words: &[&str]) -> Result<()> {
        let status = self.brood(words)?.wait()?;
        ensure!(status.success(), "{words:?}: {status}");
        Ok(())
    }

    /// How many zombies the kernel shows inside.
    pub(crate) fn zombies(&self) -> Result<usize> {
        self.namespace.zombies()
    }

    pub(crate) fn cmdline_path(&self) -> String {
        format!("/proc/{}/cmdline", self.pid)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Calls `look` with the status at this moment, read again while it is torn or not written yet.
    pub(crate) fn status<T>(&self, look: impl FnOnce(Status<'_>) -> T) -> Result<T> {
        let cmdline = eventually(|| {
            let cmdline = std::fs::read(self.cmdline_path())?;
            match Status::from_cmdline(&cmdline) {
                Ok(_) => Ok(cmdline),
                Err(refusal @ Refusal::NoStatus) => {
                    bail!("{refusal} {:?}", cmdline.escape_ascii().to_string())
                }
                Err(refusal) => bail!(refusal),
            }
        })?;
        Ok(look(Status::from_cmdline(&cmdline)?))
    }

    /// Waits until the status shows what is asked for.
    pub(crate) fn shows<T: PartialEq + std::fmt::Debug>(
        &self,
        expected: T,
        look: impl Fn(Status<'_>) -> T,
    ) -> Result<()> {
        eventually(|| {
            let shown = self.status(&look)?;
            ensure!(shown == expected, "{shown:?}, not {expected:?}");
            Ok(())
        })
    }

    /// Sends PID 1 a signal and waits for its end; gives the exit code and what it wrote to stderr.
    pub(crate) fn end_by(self, signal: Signal) -> Result<(Option<i32>, String)> {
        if signal != Signal::SIGKILL {
            // The kernel drops what the PID 1 of a namespace has not asked for yet (pid_namespaces(7)).
            eventually(|| takes(self.pid, signal))?;
        }
        kill(self.pid, signal)?;
        self.ended()
    }

    /// Waits for PID 1's end, as [`Sandbox::end_by`] does.
    pub(crate) fn ended(self) -> Result<(Option<i32>, String)> {
        self.namespace.ended()
    }

    /// What PID 1 said on stderr, whose pipe ends with it.
    pub(crate) fn stderr(self) -> Result<String> {
        let (code, stderr) = self.end_by(Signal::SIGTERM)?;
        ensure!(code == Some(0), "it ended with {code:?} and said {stderr:?}");
        let last = "Shutting down, got signal: Terminated\n";
        Ok(stderr.strip_suffix(last).with_context(|| format!("it said {stderr:?}"))?.to_owned())
    }
}
