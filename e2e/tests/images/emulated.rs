//! The program for arm64 under QEMU, as PID 1 of a PID namespace of its own. QEMU's own command line is what can be seen from
//! outside, and the second execution fails without binfmt_misc: the status is read from `--status-file`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::build::oci::Platform;
use e2e::host::retry::until;
use nix::sys::signal::{Signal, kill};
use pause_status::Separator;
use pid1_harness::Namespace;
use tempfile::TempDir;

use crate::layout::Image;

pub(crate) const QEMU: &str = "qemu-aarch64-static";
const ORPHANS: u64 = 100;
/// Of whoever waits for what comes about on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Test = fn() -> Result<()>;

pub(crate) const TESTS: [(&str, Test); 5] = [
    ("emulated_it_prints_its_version", it_prints_its_version),
    ("emulated_100_orphans_are_reaped_and_counted", orphans_are_reaped_and_counted),
    ("emulated_control_a_pid_1_that_never_waits_reaps_none", control),
    ("emulated_sigterm_ends_it_with_0", || it_ends_with_0(Signal::SIGTERM, "Terminated")),
    ("emulated_sigint_ends_it_with_0", || it_ends_with_0(Signal::SIGINT, "Interrupt")),
];

/// A PID namespace, and the directory of the program that is its PID 1.
struct Emulated {
    namespace: Namespace,
    folder: TempDir,
}

/// A folder with the program, as it is in the image.
fn folder() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let pause = folder.path().join("pause");
    fs::write(&pause, &Image::shipped(Platform::Arm64)?.pause()?.content)?;
    fs::set_permissions(&pause, fs::Permissions::from_mode(0o555))?;
    Ok(folder)
}

impl Emulated {
    fn of_pause() -> Result<Self> {
        let folder = folder()?;
        let (pause, status) = (folder.path().join("pause"), folder.path().join("status"));
        let namespace = Self::start(folder, Command::new(QEMU).arg(pause).arg("--status-file").arg(status))?;
        // Then it has blocked its signals, and is about to wait for them.
        until("it has a status", PATIENCE, || namespace.reaped())?;
        Ok(namespace)
    }

    /// The negative control: whatever a test shows of pause must fail with it.
    fn of_one_that_never_waits() -> Result<Self> {
        Self::start(tempfile::tempdir()?, Command::new("sleep").arg("infinity"))
    }

    fn start(folder: TempDir, program: &Command) -> Result<Self> {
        let mut unshare = Namespace::command();
        unshare.arg(program.get_program()).args(program.get_args());
        let namespace = Namespace::start(&mut unshare, |pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline"))?;
            // Where the kernel knows QEMU (binfmt_misc), pause has executed itself again, and has another name.
            ensure!(!line.is_empty() && !line.starts_with(b"unshare"), "unshare runs, not yet its program");
            Ok(())
        })?;
        Ok(Self { namespace, folder })
    }

    /// Runs a shell script inside, and returns what it printed.
    fn run(&self, script: &str) -> Result<String> {
        let mut shell = self.namespace.enter();
        let ran = shell.args(["sh", "-c", script]).stderr(Stdio::inherit()).output()?;
        ensure!(ran.status.success(), "{script}: {}", ran.status);
        Ok(String::from_utf8(ran.stdout)?)
    }

    fn leave_orphans(&self) -> Result<()> {
        let script = format!("i=0; while [ $i -lt {ORPHANS} ]; do ( true & ); i=$((i + 1)); done");
        self.run(&script).map(drop)
    }

    fn no_zombies(&self) -> Result<()> {
        // Long enough for any machine to reap, short enough for the control, which waits it out.
        until("there is no zombie", Duration::from_secs(10), || {
            let zombies = self.namespace.zombies()?;
            ensure!(zombies == 0, "{zombies} zombies remain");
            Ok(())
        })
    }

    /// As the status file has it.
    fn reaped(&self) -> Result<u64> {
        let text = fs::read(self.folder.path().join("status"))?;
        let status = pause_status::Status::decode(Separator::Newline, &text)?;
        ensure!(status.init && status.counted(), "{status:?}");
        Ok(status.reaped)
    }
}

fn it_prints_its_version() -> Result<()> {
    let folder = folder()?;
    let printed = Command::new(QEMU).arg(folder.path().join("pause")).arg("--version").output()?;
    let text = String::from_utf8_lossy(&printed.stdout);
    ensure!(printed.status.success(), "{}", printed.status);
    ensure!(text == concat!("pause ", env!("CARGO_PKG_VERSION"), "\n"), "it prints {text:?}");
    Ok(())
}

fn orphans_are_reaped_and_counted() -> Result<()> {
    let namespace = Emulated::of_pause()?;
    namespace.leave_orphans()?;
    namespace.no_zombies()?;
    until("all are counted", PATIENCE, || {
        let reaped = namespace.reaped()?;
        ensure!(reaped == ORPHANS, "{reaped} reaped");
        Ok(())
    })
}

fn control() -> Result<()> {
    let namespace = Emulated::of_one_that_never_waits()?;
    namespace.leave_orphans()?;
    match namespace.no_zombies() {
        Ok(()) => bail!("the check passes with a PID 1 that never waits: it shows nothing"),
        Err(error) if error.root_cause().to_string() == format!("{ORPHANS} zombies remain") => Ok(()),
        Err(error) => Err(error).context("the control failed, but for another reason"),
    }
}

fn it_ends_with_0(signal: Signal, name: &str) -> Result<()> {
    let namespace = Emulated::of_pause()?.namespace;
    kill(namespace.pid, signal)?;
    let (code, said) = namespace.ended()?;
    ensure!(code == Some(0), "it ended with {code:?}");
    // Unless the machine hands arm64 programs to QEMU by itself (binfmt_misc), it cannot execute itself again, and says so first.
    let (before, last) = said.trim_end().rsplit_once('\n').unwrap_or(("", said.trim_end()));
    ensure!(last == format!("Shutting down, got signal: {name}"), "it wrote {said:?}");
    ensure!(before.is_empty() || before.starts_with("pause: no room for a status;"), "it wrote {said:?}");
    Ok(())
}
