//! The chart's files, and Helm, which runs on them without a cluster and without the user's configuration.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use e2e::build::go::Binaries;
use e2e::host::cache;
use serde_json::Value;

use crate::rendered::Rendered;

/// Not the chart's name, so that tests notice a name without the release's.
pub(super) const RELEASE: &str = "blue";
pub(super) const NAMESPACE: &str = "watch";
pub(super) const FULLNAME: &str = "blue-sandbox-health";

/// The chart's directory.
pub(super) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sandbox-health")
}

pub(super) fn read(file: &str) -> Result<String> {
    fs::read_to_string(chart().join(file)).with_context(|| format!("reading {file}"))
}

pub(super) fn yaml(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// The path of Helm.
pub(super) struct Helm(PathBuf);

impl Helm {
    /// The Helm in the cache. If there is none, all upstream binaries are built, which `Binaries` does once.
    pub(super) fn find() -> Result<Option<Self>> {
        static BUILDING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helm) = cached()? {
            return Ok(Some(Self(helm)));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        if !env::split_paths(&path).any(|directory| directory.join("go").is_file()) {
            return Ok(None);
        }
        Binaries::ensure()?;
        cached()?.context("Helm was built, but is not in the cache").map(|helm| Some(Self(helm)))
    }

    /// Runs Helm without the user's configuration and cluster. The chart requires an image.
    fn run(&self, args: &[&str], chart: &Path, set: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.0);
        command.args(args).arg(chart);
        for value in ["image.preloaded=true"].iter().chain(set) {
            command.args(["--set", value]);
        }
        let nowhere = "/nonexistent";
        command.env("KUBECONFIG", nowhere).env("HELM_CONFIG_HOME", nowhere).env("HELM_PLUGINS", nowhere);
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", self.0.display()))
    }

    pub(super) fn succeed(&self, args: &[&str], set: &[&str]) -> Result<String> {
        self.succeed_with(args, &chart(), set)
    }

    /// As [`Helm::succeed`], with another chart.
    pub(super) fn succeed_with(&self, args: &[&str], chart: &Path, set: &[&str]) -> Result<String> {
        let ran = self.run(args, chart, set)?;
        let (output, errors) = (text(&ran.stdout), text(&ran.stderr));
        ensure!(ran.status.success(), "helm {args:?} {set:?}: {}\n{output}{errors}", ran.status);
        Ok(output)
    }

    /// The error of Helm, which must fail.
    pub(super) fn refuse(&self, args: &[&str], set: &[&str]) -> Result<String> {
        let ran = self.run(args, &chart(), set)?;
        ensure!(!ran.status.success(), "helm {args:?} {set:?} succeeded");
        Ok(text(&ran.stderr))
    }

    pub(super) fn render(&self, set: &[&str]) -> Result<Rendered> {
        self.render_as(RELEASE, set)
    }

    pub(super) fn render_as(&self, release: &str, set: &[&str]) -> Result<Rendered> {
        let output = self.succeed(&["template", release, "--namespace", NAMESPACE], set)?;
        Ok(Rendered(serde_saphyr::from_multiple(&output).context("parsing what helm rendered")?))
    }

    /// The objects after an upgrade by the commands of a page.
    pub(super) fn render_upgrade(&self, commands: &str) -> Result<Rendered> {
        let upgrade = "helm upgrade sandbox-health charts/sandbox-health --namespace sandbox-health --reset-then-reuse-values";
        ensure!(commands.contains(upgrade), "the commands have no upgrade: {commands}");
        let template = format!(
            "\"$0\" template {RELEASE} --namespace {NAMESPACE} charts/sandbox-health --set image.preloaded=true"
        );
        let mut shell = Command::new("sh");
        shell.args(["-ec", &commands.replace(upgrade, &template)]).arg(&self.0);
        let ran = shell.current_dir(chart().join("../..")).output().context("cannot run sh")?;
        ensure!(ran.status.success(), "{commands}: {}", text(&ran.stderr));
        Ok(Rendered(serde_saphyr::from_multiple(&text(&ran.stdout)).context("parsing what helm rendered")?))
    }

    pub(super) fn notes(&self, set: &[&str]) -> Result<String> {
        let output =
            self.succeed(&["install", RELEASE, "--namespace", NAMESPACE, "--dry-run=client"], set)?;
        output.split_once("NOTES:").map(|(_, notes)| notes.into()).context("helm printed no notes")
    }
}

/// The newest Helm in the cache.
fn cached() -> Result<Option<PathBuf>> {
    let Ok(directories) = fs::read_dir(cache::root()?.join("binaries")) else {
        return Ok(None);
    };
    let helm = directories
        .filter_map(|directory| Some(directory.ok()?.path().join("helm")))
        .filter_map(|file| Some((file.metadata().ok().filter(|it| it.is_file())?.modified().ok()?, file)))
        .max();
    Ok(helm.map(|(_, file)| file))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
