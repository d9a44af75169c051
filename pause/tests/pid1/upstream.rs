//! Upstream's pause and its test program, compiled from the Kubernetes module that the end-to-end tests build from. Shared with the
//! benchmark.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

/// Programs that it takes, and where to get them.
pub(crate) const TOOLS: [(&str, &str); 2] =
    [("go", "https://go.dev/dl"), ("cc", "Debian's packages gcc and libc6-dev")];

/// `pause` or `orphan`, compiled and stripped as upstream's Makefile does.
pub(crate) fn compiled(name: &str) -> Result<PathBuf> {
    let module = module()?;
    let source = Path::new(&module).join("build/pause/linux").join(name).with_extension("c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("upstream-{name}"));
    // Another test may execute the program at the same time.
    let id = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let new = program.with_extension(id);
    let version = module.rsplit('@').next().unwrap_or_default();
    let mut cc = Command::new("cc");
    cc.args(["-Os", "-Wall", "-Werror", "-static", "-s", &format!("-DVERSION={version}"), "-o"]);
    succeeded(cc.arg(&new).arg(&source))?;
    std::fs::rename(&new, &program)?;
    Ok(program)
}

/// The folder of the module's sources, in Go's cache.
fn module() -> Result<String> {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", "k8s.io/kubernetes"]);
    go.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/upstream/kubernetes"));
    let fields = String::from_utf8(succeeded(&mut go)?.stdout)?;
    let folder = fields.split("\"Dir\": \"").nth(1).and_then(|rest| rest.split('"').next());
    Ok(folder.context("go printed no Dir")?.to_owned())
}

fn succeeded(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// A program's path in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}
