//! The arm64 binary under QEMU as PID 1 of a PID namespace. From outside only QEMU's own command line is visible, so the tests read the
//! status from `--status-file`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::build::oci::Platform;
use nix::sys::signal::{Signal, kill};
use pause_status::{Separator, Status};
use pid1_harness::{Namespace, eventually, within};
use tempfile::TempDir;

use crate::layout::Image;

pub(crate) const QEMU: &str = "qemu-aarch64-static";
const ORPHANS: u64 = 100;

type Test = fn() -> Result<()>;

pub(crate) const TESTS: [(&str, Test); 5] = [
    ("emulated_pause_prints_its_version", emulated_pause_prints_its_version),
    ("emulated_pause_reaps_and_counts_100_orphans", emulated_pause_reaps_and_counts_orphans),
    ("emulated_control_that_never_waits_reaps_no_orphan", emulated_control_reaps_no_orphan),
    ("emulated_pause_exits_with_0_on_sigterm", || emulated_pause_exits_with_0(Signal::SIGTERM, "Terminated")),
    ("emulated_pause_exits_with_0_on_sigint", || emulated_pause_exits_with_0(Signal::SIGINT, "Interrupt")),
];

/// A directory with the binary of the image.
fn directory() -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let pause = directory.path().join("pause");
    fs::write(&pause, &Image::shipped(Platform::Arm64)?.pause()?.content)?;
    fs::set_permissions(&pause, fs::Permissions::from_mode(0o555))?;
    Ok(directory)
}

/// Starts pause and waits until it has written a status: then its signals are blocked, and it waits for them.
fn start_pause(directory: &TempDir) -> Result<Namespace> {
    let (pause, status) = (directory.path().join("pause"), directory.path().join("status"));
    let command = [QEMU.as_ref(), pause.as_os_str(), "--status-file".as_ref(), status.as_os_str()];
    Namespace::start(&command, |_| reaped(directory).map(drop))
}

fn leave_orphans(namespace: &Namespace) -> Result<()> {
    let script = format!("i=0; while [ $i -lt {ORPHANS} ]; do ( true & ); i=$((i + 1)); done");
    namespace.run(&script).map(drop)
}

fn check_no_zombies(namespace: &Namespace) -> Result<()> {
    // Sufficient to reap on any machine, and short for the control, which waits for all of it.
    within(Duration::from_secs(10), || {
        let zombies = namespace.zombies()?;
        ensure!(zombies == 0, "{zombies} zombies remain");
        Ok(())
    })
}

/// The number of reaped processes in the status file.
fn reaped(directory: &TempDir) -> Result<u64> {
    let text = fs::read(directory.path().join("status"))?;
    let status = Status::decode(Separator::Newline, &text)?;
    ensure!(status.is_counted(), "{status:?}");
    Ok(status.reaped)
}

fn emulated_pause_prints_its_version() -> Result<()> {
    let directory = directory()?;
    let printed = Command::new(QEMU).arg(directory.path().join("pause")).arg("--version").output()?;
    let text = String::from_utf8_lossy(&printed.stdout);
    ensure!(printed.status.success(), "{}", printed.status);
    ensure!(text == concat!("pause ", env!("CARGO_PKG_VERSION"), "\n"), "it prints {text:?}");
    Ok(())
}

fn emulated_pause_reaps_and_counts_orphans() -> Result<()> {
    let directory = directory()?;
    let namespace = start_pause(&directory)?;
    leave_orphans(&namespace)?;
    check_no_zombies(&namespace)?;
    eventually(|| {
        let reaped = reaped(&directory)?;
        ensure!(reaped == ORPHANS, "{reaped} reaped");
        Ok(())
    })
}

/// The negative control: the check must fail with a PID 1 that does not reap its children.
fn emulated_control_reaps_no_orphan() -> Result<()> {
    let namespace = Namespace::start(&["sleep", "infinity"], |_| Ok(()))?;
    leave_orphans(&namespace)?;
    match check_no_zombies(&namespace) {
        Ok(()) => bail!("the check passes with a PID 1 that never waits: it proves nothing"),
        Err(error) if error.to_string() == format!("{ORPHANS} zombies remain") => Ok(()),
        Err(error) => Err(error).context("the control failed for another reason"),
    }
}

fn emulated_pause_exits_with_0(signal: Signal, name: &str) -> Result<()> {
    let directory = directory()?;
    let namespace = start_pause(&directory)?;
    kill(namespace.pid, signal)?;
    let (code, stderr) = namespace.wait()?;
    ensure!(code == Some(0), "exit code {code:?}");
    ensure!(stderr == format!("Shutting down, got signal: {name}\n"), "stderr {stderr:?}");
    Ok(())
}
