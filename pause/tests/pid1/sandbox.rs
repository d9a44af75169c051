//! A PID namespace with the program under test as PID 1, and commands run inside it.

use std::io::Read as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;
use pause_status::{ROOM_ARGUMENT, Refusal, Status};
use pid1_harness::{Namespace, eventually, only_child};

use crate::built::shipped;
use crate::helper::ROLE;

/// What runs as PID 1.
pub(crate) struct Pid1 {
    program: PathBuf,
    name: String,
    comm: String,
    /// Words of commands of which each executes the next, and the last one the program.
    wrappers: Vec<String>,
    arguments: Vec<String>,
}

impl Pid1 {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { program, comm: name.clone(), name, wrappers: vec![], arguments: vec![] }
    }

    /// Pause with the argument of its image's `Cmd`.
    pub(crate) fn pause() -> Result<Self> {
        Ok(Self::new(shipped()?).with_argument(ROOM_ARGUMENT))
    }

    /// The negative control: a PID 1 that does not reap its children, with which each check of pause must fail.
    pub(crate) fn never_waits() -> Result<Self> {
        Ok(Self::new("/bin/sleep").with_argument("infinity"))
    }

    pub(crate) fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
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

    fn wrapped_in<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.wrappers.extend(words.into_iter().map(Into::into));
        self
    }

    pub(crate) fn with_variable(self, name: &str, value: &str) -> Self {
        self.wrapped_in(["env", &format!("{name}={value}")])
    }

    /// As the kubelet does with a pod-level `runAsUser`.
    pub(crate) fn run_as(self, uid: u32) -> Self {
        let uid = uid.to_string();
        self.wrapped_in([
            "setpriv",
            "--reuid",
            &uid,
            "--regid",
            &uid,
            "--clear-groups",
            "--bounding-set=-all",
        ])
    }

    /// After this shell script, run inside of the new namespaces by the shell that then executes the program as `"$0"`.
    pub(crate) fn prepared_by(self, script: &str) -> Self {
        self.wrapped_in(["sh", "-e", "-c", &format!("{script}\nexec \"$0\" \"$@\"")])
    }

    /// Executed by a [`crate::helper`] of this role.
    pub(crate) fn executed_by(self, role: &str) -> Result<Self> {
        let helper = std::env::current_exe()?;
        Ok(self.wrapped_in([helper.to_str().context("a path in UTF-8")?, ROLE, role]))
    }

    pub(crate) fn start(self) -> Result<Sandbox> {
        // The name of the process is the name of the file; any uid may have to execute it.
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()?;
        let program = folder.path().join(&self.name);
        // By another process: a file that is open for writing cannot be executed, and a test that forks beside this one would keep it
        // open.
        let copied = Command::new("cp").arg(&self.program).arg(&program).status()?;
        ensure!(copied.success(), "{} cannot be copied", self.program.display());
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
        let program = program.to_str().context("a path in UTF-8")?.to_owned();
        let command = [self.wrappers, vec![program], self.arguments].concat();
        let namespace = Namespace::start(&command, |namespace| {
            let comm = std::fs::read_to_string(namespace.proc("comm"))?;
            ensure!(comm.trim_end() == self.comm, "{comm:?} runs, not yet {:?}", self.comm);
            Ok(())
        })?;
        Ok(Sandbox { namespace, folder })
    }
}

/// Fails unless a process blocks, catches or waits for the signal (proc_pid_status(5)): while rt_sigtimedwait(2) waits, the signals
/// that it waits for count as not blocked.
fn check_accepts(pid: Pid, signal: Signal) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut sets =
        status.lines().filter_map(|line| line.strip_prefix("SigBlk:").or(line.strip_prefix("SigCgt:")));
    let bit = 1_u64 << (signal as i32 - 1);
    let accepted = sets.any(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & bit != 0));
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let waits = call.split(' ').next() == Some(&nix::libc::SYS_rt_sigtimedwait.to_string());
    ensure!(accepted || waits, "PID 1 does not accept {signal} yet");
    Ok(())
}

/// A [`crate::helper`] inside that has created its processes, and runs until it is killed.
pub(crate) struct BackgroundHelper {
    pid: Pid,
    nsenter: Child,
}

impl BackgroundHelper {
    pub(crate) fn kill(mut self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL)?;
        self.nsenter.wait()?;
        Ok(())
    }
}

/// A PID namespace with its PID 1. Dropping it ends both.
pub(crate) struct Sandbox {
    namespace: Namespace,
    folder: tempfile::TempDir,
}

impl Deref for Sandbox {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Sandbox {
    /// Starts a [`crate::helper`] inside.
    pub(crate) fn spawn_helper(&self, words: &[&str]) -> Result<Child> {
        let mut helper = self.enter();
        helper.arg(std::env::current_exe()?).arg(ROLE).args(words);
        Ok(helper.stdout(Stdio::piped()).spawn()?)
    }

    /// Starts one that runs until it is killed, and waits until it has created its processes.
    pub(crate) fn start_helper(&self, words: &[&str]) -> Result<BackgroundHelper> {
        let mut nsenter = self.spawn_helper(words)?;
        let mut line = [0; 6];
        let read = nsenter.stdout.take().context("no stdout")?.read_exact(&mut line);
        ensure!(read.is_ok() && line == *b"ready\n", "{words:?} did not create its processes");
        Ok(BackgroundHelper { pid: only_child(nsenter.id())?, nsenter })
    }

    /// Runs one until it and its orphans have ended.
    pub(crate) fn run_helper(&self, words: &[&str]) -> Result<()> {
        let status = self.spawn_helper(words)?.wait()?;
        ensure!(status.success(), "{words:?}: {status}");
        self.wait_for_orphans(std::fs::read("/proc/self/comm")?.trim_ascii_end())
    }

    /// Waits until all children of PID 1 of this name have exited: a check for zombies would pass before.
    pub(crate) fn wait_for_orphans(&self, name: &[u8]) -> Result<()> {
        eventually(|| {
            let children = std::fs::read_to_string(self.proc(&format!("task/{}/children", self.pid)))?;
            for child in children.split_whitespace() {
                let line = std::fs::read(format!("/proc/{child}/stat")).unwrap_or_default();
                let stat = Stat::parse(&line).filter(|stat| stat.comm == name);
                ensure!(stat.is_none_or(|stat| stat.is_zombie()), "orphan {child} still runs");
            }
            Ok(())
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Calls `look` with the status at this moment, read again while it is torn or not written yet.
    pub(crate) fn status<T>(&self, look: impl FnOnce(Status<'_>) -> T) -> Result<T> {
        let cmdline = eventually(|| {
            let cmdline = std::fs::read(self.proc("cmdline"))?;
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

    /// Waits until the status shows the expected values.
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

    /// Sends PID 1 a signal, waits until it ends and returns its exit code and stderr.
    pub(crate) fn end_by(self, signal: Signal) -> Result<(Option<i32>, String)> {
        if signal != Signal::SIGKILL {
            // The kernel drops signals for which the PID 1 of a namespace has no handler yet (pid_namespaces(7)).
            eventually(|| check_accepts(self.pid, signal))?;
        }
        kill(self.pid, signal)?;
        self.wait()
    }

    /// Waits until PID 1 ends and returns its exit code and stderr.
    pub(crate) fn wait(self) -> Result<(Option<i32>, String)> {
        self.namespace.wait()
    }

    /// Ends PID 1 by SIGTERM and returns its stderr but for the last line.
    pub(crate) fn stderr(self) -> Result<String> {
        let (code, stderr) = self.end_by(Signal::SIGTERM)?;
        ensure!(code == Some(0), "exit code {code:?}, stderr {stderr:?}");
        let last = "Shutting down, got signal: Terminated\n";
        Ok(stderr.strip_suffix(last).with_context(|| format!("stderr {stderr:?}"))?.to_owned())
    }
}
