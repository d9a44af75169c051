//! The CRDs of the Prometheus Operator whose kinds the chart uses. They are files of its Go module; nothing is built. The version is pinned
//! in `e2e/upstream/prometheus-operator`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::host::cache;
use crate::host::command::output;
use crate::host::lock::Lock;

const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";
const DIRECTORY: &str = "example/prometheus-operator-crd";
const FILES: [&str; 3] = [
    "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
    "monitoring.coreos.com_servicemonitors.yaml",
];

/// The files of the CRDs. The first call copies them into the cache.
///
/// # Errors
///
/// When Go cannot download the module.
pub fn crds() -> Result<Vec<PathBuf>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream/prometheus-operator");
    let go_mod = fs::read_to_string(source.join("go.mod"))?;
    let version = go_mod.split(MODULE).nth(1).and_then(|rest| rest.split_whitespace().next());
    let directories = cache::root()?.join("unpacked");
    let directory = directories
        .join(format!("prometheus-operator_{}", version.context("go.mod does not require the module")?));
    let _one_at_a_time = Lock::wait(&directories.join("prometheus-operator.lock"), "CRDs are downloaded")?;
    if !FILES.iter().all(|file| directory.join(file).exists()) {
        eprintln!("downloading the Go module {MODULE}");
        let mut go = Command::new("go");
        go.args(["mod", "download", "-json", MODULE]).current_dir(&source);
        go.env("GOWORK", "off").env_remove("GOFLAGS");
        let module: Value = serde_json::from_str(&output(&mut go)?)?;
        let has = Path::new(module["Dir"].as_str().context("Go names no directory")?).join(DIRECTORY);
        let partial = directories.join("prometheus-operator.partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        for file in FILES {
            fs::write(partial.join(file), fs::read(has.join(file)).with_context(|| file.to_owned())?)?;
        }
        let _ = fs::remove_dir_all(&directory);
        fs::rename(partial, &directory)?;
    }
    Ok(FILES.map(|file| directory.join(file)).into())
}
