//! What `cargo demo` says on a machine where it cannot run: one line with what is missing and what to do about it. The tests
//! that need root to make such a machine are reported as ignored elsewhere.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

fn main() -> ExitCode {
    let tests = vec![
        Trial::test("without_root_root_is_asked_for", || without_root().map_err(failed)),
        with_root("without_go_go_is_asked_for", without_go),
        with_root("on_a_full_disk_what_is_free_and_needed_is_told", full_disk),
        with_root("kubectl_without_a_cluster_says_how_to_start_one", kubectl_without_a_cluster),
        with_root("cargo_hands_on_what_follows_two_hyphens", cargo_hands_on),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn with_root(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        if nix::unistd::geteuid().is_root() {
            test().map(|()| Completion::Completed).map_err(failed)
        } else {
            Ok(Completion::ignored_with("root is needed"))
        }
    })
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// A machine with an empty cache. The demo is copied: where it was built, not everybody may enter.
struct Machine(TempDir);

impl Machine {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        fs::create_dir(folder.path().join("cache"))?;
        // By another process: a test beside this one that forks while we hold the copy open for writing would keep it so, and
        // what is open for writing cannot be executed.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_e2e")).arg(folder.path().join("e2e")).status()?;
        ensure!(copied.success(), "the binary cannot be copied");
        Ok(Self(folder))
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("e2e")
    }

    /// The one line that a command says when it fails.
    fn complaint(&self, command: &mut Command) -> Result<String> {
        let ran = command.env("SANDBOX_HEALTH_CACHE", self.0.path().join("cache")).output()?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(!ran.status.success(), "it succeeded: {said}");
        ensure!(said.lines().count() == 1, "not one line: {said}");
        Ok(said)
    }
}

fn without_root() -> Result<()> {
    let machine = Machine::new()?;
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(machine.program()).arg("demo");
        nobody
    } else {
        let mut command = Command::new(machine.program());
        command.arg("demo");
        command
    };
    let said = machine.complaint(&mut command)?;
    ensure!(said.starts_with("demo: root is needed") && said.contains("sudo"), "{said}");
    Ok(())
}

fn without_go() -> Result<()> {
    let machine = Machine::new()?;
    let said = machine.complaint(Command::new(machine.program()).arg("demo").env("PATH", "/nonexistent"))?;
    ensure!(said.starts_with("demo: Go 1.26 or later is needed in PATH"), "{said}");
    Ok(())
}

fn full_disk() -> Result<()> {
    let machine = Machine::new()?;
    let script = "mount -t tmpfs -o size=4m none \"$SANDBOX_HEALTH_CACHE\" && exec \"$0\" demo";
    let said = machine
        .complaint(Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(machine.program()))?;
    ensure!(
        said.starts_with("demo: disk too full: 4 MiB free in ") && said.contains("SANDBOX_HEALTH_CACHE"),
        "{said}"
    );
    Ok(())
}

fn kubectl_without_a_cluster() -> Result<()> {
    let machine = Machine::new()?;
    let said = machine.complaint(Command::new(machine.program()).args(["demo", "kubectl", "get", "pods"]))?;
    ensure!(said == "demo: there is no cluster; `cargo demo` starts one\n", "{said}");
    Ok(())
}

/// As the README has it: an alias that ends in two hyphens of its own would hand on the user's, too.
fn cargo_hands_on() -> Result<()> {
    let machine = Machine::new()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["--quiet", "demo", "--", "kubectl", "get", "pods"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let said = machine.complaint(&mut cargo)?;
    ensure!(said == "demo: there is no cluster; `cargo demo` starts one\n", "{said}");
    Ok(())
}
