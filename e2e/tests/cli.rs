//! `cargo demo` on a machine where it cannot run prints one line: what is missing and how to fix it. Tests that need root to set up such a
//! machine are reported as ignored elsewhere.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use e2e::build::cargo;
use e2e::trial::{nothing, root, trial};
use libtest_mimic::Arguments;
use tempfile::TempDir;

fn main() -> ExitCode {
    let tests = vec![
        trial("demo_without_root_asks_for_root", nothing, without_root),
        trial("demo_without_go_asks_for_go", root, without_go),
        trial("demo_on_full_disk_reports_free_and_needed_space", root, full_disk),
        trial("kubectl_without_cluster_names_the_start_command", root, kubectl_without_cluster),
        trial("cargo_passes_on_arguments_after_two_hyphens", root, cargo_passes_arguments),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// A machine with an empty cache. The binary is copied, because other users may not enter the directory where it was built.
struct Machine(TempDir);

impl Machine {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        fs::create_dir(directory.path().join("cache"))?;
        // cp copies it: a test in another thread that forks while this process writes would keep the file open for writing, and such a file
        // cannot be executed (ETXTBSY).
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_e2e")).arg(directory.path().join("e2e")).status()?;
        ensure!(copied.success(), "the binary cannot be copied");
        Ok(Self(directory))
    }

    fn binary(&self) -> PathBuf {
        self.0.path().join("e2e")
    }

    /// The one line that a failing command prints.
    fn complaint(&self, command: &mut Command) -> Result<String> {
        let ran = command.env("SANDBOX_HEALTH_CACHE", self.0.path().join("cache")).output()?;
        let output = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(!ran.status.success(), "it succeeded: {output}");
        ensure!(output.lines().count() == 1, "it printed more or less than one line: {output}");
        Ok(output)
    }
}

fn without_root() -> Result<()> {
    let machine = Machine::new()?;
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(machine.binary()).arg("demo");
        nobody
    } else {
        let mut command = Command::new(machine.binary());
        command.arg("demo");
        command
    };
    let output = machine.complaint(&mut command)?;
    ensure!(output.starts_with("demo: root is needed") && output.contains("sudo"), "{output}");
    Ok(())
}

fn without_go() -> Result<()> {
    let machine = Machine::new()?;
    let output = machine.complaint(Command::new(machine.binary()).arg("demo").env("PATH", "/nonexistent"))?;
    ensure!(output.starts_with("demo: Go 1.26 or later is needed in PATH"), "{output}");
    Ok(())
}

fn full_disk() -> Result<()> {
    let machine = Machine::new()?;
    let script = "mount -t tmpfs -o size=4m none \"$SANDBOX_HEALTH_CACHE\" && exec \"$0\" demo";
    let output = machine
        .complaint(Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(machine.binary()))?;
    ensure!(
        output.starts_with("demo: disk too full: 4 MiB free in ") && output.contains("SANDBOX_HEALTH_CACHE"),
        "{output}"
    );
    Ok(())
}

fn kubectl_without_cluster() -> Result<()> {
    let machine = Machine::new()?;
    let output =
        machine.complaint(Command::new(machine.binary()).args(["demo", "kubectl", "get", "pods"]))?;
    ensure!(output == "demo: there is no cluster; `cargo demo` starts one\n", "{output}");
    Ok(())
}

/// As in the README: an alias that ends in two hyphens would pass on those of the user as well.
fn cargo_passes_arguments() -> Result<()> {
    let machine = Machine::new()?;
    let mut cargo = cargo(Path::new(env!("CARGO_MANIFEST_DIR")));
    cargo.args(["--quiet", "demo", "--", "kubectl", "get", "pods"]);
    let output = machine.complaint(&mut cargo)?;
    ensure!(output == "demo: there is no cluster; `cargo demo` starts one\n", "{output}");
    Ok(())
}
