//! The kinds of the Prometheus Operator that the chart has objects of, as CRDs. Its Go module holds them as files; nothing of it
//! is built. Its version is pinned in `e2e/upstream/prometheus-operator`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;

const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";
const FOLDER: &str = "example/prometheus-operator-crd";
const FILES: [&str; 3] = [
    "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
    "monitoring.coreos.com_servicemonitors.yaml",
];

/// Their files, in the cache after the first time.
///
/// # Errors
///
/// When Go cannot download the module.
pub fn crds() -> Result<Vec<PathBuf>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream/prometheus-operator");
    let go_mod = fs::read_to_string(source.join("go.mod"))?;
    let version = go_mod.split(MODULE).nth(1).and_then(|rest| rest.split_whitespace().next());
    let folders = cache::root()?.join("unpacked");
    let folder = folders.join(format!("prometheus-operator_{}", version.context("go.mod names no version")?));
    let _one_at_a_time = Lock::wait(&folders.join("prometheus-operator.lock"), "CRDs are downloaded")?;
    if !FILES.iter().all(|file| folder.join(file).exists()) {
        eprintln!("downloading the Go module {MODULE}");
        let mut go = Command::new("go");
        go.args(["mod", "download", "-json", MODULE]).current_dir(&source);
        go.env("GOWORK", "off").env_remove("GOFLAGS");
        let module: Value = serde_json::from_str(&output(&mut go)?)?;
        let has = Path::new(module["Dir"].as_str().context("Go names no folder")?).join(FOLDER);
        let partial = folders.join("prometheus-operator.partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        for file in FILES {
            fs::write(partial.join(file), fs::read(has.join(file)).with_context(|| file.to_owned())?)?;
        }
        let _ = fs::remove_dir_all(&folder);
        fs::rename(partial, &folder)?;
    }
    Ok(FILES.map(|file| folder.join(file)).into())
}
