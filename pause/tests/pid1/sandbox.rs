//! A PID namespace of its own, with the program under test as PID 1, and commands run inside it.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pause_status::stat::Stat;
use pause_status::{Refusal, Status};

/// The pause program as it ships, built once for all tests.
pub(crate) fn shipped() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn build() -> Result<PathBuf> {
    let built = Command::new(env!("CARGO"))
        .args(["pause", "--quiet"])
        .args(["--message-format", "json"])
        .output()
        .context("running cargo")?;
    ensure!(built.status.success(), "cargo build: {}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout)?;
    let path = messages.split("\"executable\":\"").nth(1).and_then(|rest| rest.split('"').next());
    Ok(path.context("cargo named no executable")?.into())
}

/// What runs as PID 1.
pub(crate) struct Pid1 {
    program: PathBuf,
    arguments: Vec<String>,
    uid: Option<u32>,
}

impl Pid1 {
    pub(crate) fn pause() -> Result<Self> {
        Ok(Self { program: shipped()?.into(), arguments: vec![], uid: None })
    }

    /// The negative control: it never waits for a child, so whatever a test shows of pause must fail with it.
    pub(crate) fn never_waits() -> Result<Self> {
        Ok(Self { program: "/bin/sleep".into(), arguments: vec!["infinity".into()], uid: None })
    }

    pub(crate) fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// As the kubelet does with a pod-level `runAsUser`.
    pub(crate) fn run_as(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    pub(crate) fn start(self) -> Result<Sandbox> {
        // The name of the process is the name of the file; any uid may have to execute it.
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()?;
        let name = self.program.file_name().context("a program has a name")?;
        let program = folder.path().join(name);
        // By another process: while we held it open for writing, a test beside this one might fork and keep it so, and what is
        // open for writing cannot be executed.
        let copied = Command::new("cp").arg(&self.program).arg(&program).status()?;
        ensure!(copied.success(), "{} cannot be copied", self.program.display());
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--mount-proc", "--fork"]);
        if let Some(uid) = self.uid {
            let uid = uid.to_string();
            unshare.args([
                "setpriv",
                "--reuid",
                &uid,
                "--regid",
                &uid,
                "--clear-groups",
                "--bounding-set=-all",
            ]);
        }
        unshare.arg(program).args(&self.arguments);
        let starter = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut sandbox = Sandbox { pid: Pid::from_raw(0), starter, _folder: folder };
        let task = format!("/proc/{0}/task/{0}/children", sandbox.starter.id());
        let name = name.to_os_string();
        sandbox.pid = eventually(|| {
            let child = std::fs::read_to_string(&task)?;
            let child = child.trim();
            let comm = std::fs::read_to_string(format!("/proc/{child}/comm"))?;
            ensure!(OsStr::new(comm.trim_end()) == name, "{comm:?} runs, not yet {name:?}");
            Ok(Pid::from_raw(child.parse()?))
        })?;
        Ok(sandbox)
    }
}

/// A PID namespace; it ends with this value.
pub(crate) struct Sandbox {
    /// Of its PID 1, as seen from outside.
    pub(crate) pid: Pid,
    starter: Child,
    _folder: tempfile::TempDir,
}

impl Sandbox {
    /// Starts a shell script inside; its orphans become children of PID 1.
    pub(crate) fn spawn(&self, script: &str) -> Result<Child> {
        let target = self.pid.to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &target, "--pid", "--mount", "sh", "-c", script]);
        Ok(nsenter.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }

    /// Runs a shell script inside to its end, and returns what it printed.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        let Output { status, stdout, .. } = self.spawn(script)?.wait_with_output()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(String::from_utf8(stdout)?)
    }

    /// How many zombies the kernel shows inside.
    pub(crate) fn zombies(&self) -> Result<usize> {
        let lines = self.run("cat /proc/[0-9]*/stat 2>/dev/null || true")?;
        Ok(lines.lines().filter_map(|line| Stat::parse(line.as_bytes())).filter(Stat::is_zombie).count())
    }

    pub(crate) fn cmdline_path(&self) -> String {
        format!("/proc/{}/cmdline", self.pid)
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

    /// Sends PID 1 a signal and waits for its end; gives the exit code and what it wrote to stderr.
    pub(crate) fn end_by(mut self, signal: Signal) -> Result<(Option<i32>, String)> {
        kill(self.pid, signal)?;
        let code = self.starter.wait()?.code();
        let mut stderr = String::new();
        if let Some(mut pipe) = self.starter.stderr.take() {
            pipe.read_to_string(&mut stderr)?;
        }
        Ok((code, stderr))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Ok(None) = self.starter.try_wait() {
            if self.pid.as_raw() > 0 {
                let _ = kill(self.pid, Signal::SIGKILL);
            } else {
                let _ = self.starter.kill();
            }
            let _ = self.starter.wait();
        }
    }
}

/// Asks until the answer is good, for a minute at most.
pub(crate) fn eventually<T>(ask: impl FnMut() -> Result<T>) -> Result<T> {
    within(Duration::from_secs(60), ask)
}

/// Asks until the answer is good or the time is over, then gives the last answer.
pub(crate) fn within<T>(time: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + time;
    loop {
        match ask() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}
