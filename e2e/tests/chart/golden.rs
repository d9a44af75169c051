//! What Helm makes of the default values and of values that change every one of them, beside what is committed: a change of a
//! template is seen in review as what it changes for users. `UPDATE_GOLDEN=1 cargo e2e renders` writes both anew.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::helm::{Helm, NAMESPACE, RELEASE};

/// Values that change every default.
pub(super) const EVERYTHING: &str = include_str!("golden/everything.values.yaml");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart/golden")
}

pub(super) fn renders_are_those_that_are_committed(helm: &Helm) -> Result<()> {
    let everything = format!("--values={}", folder().join("everything.values.yaml").display());
    let update = env::var_os("UPDATE_GOLDEN").is_some();
    for (name, values) in [("default", None), ("everything", Some(everything.as_str()))] {
        let mut args = vec!["template", RELEASE, "--namespace", NAMESPACE];
        args.extend(values);
        let rendered = helm.succeed(&args, &[])?;
        let rendered = without_the_crd(&rendered);
        let file = folder().join(format!("{name}.yaml"));
        if update {
            fs::write(&file, rendered)?;
            continue;
        }
        let committed = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        if let Some((line, (expected, found))) = (1..)
            .zip(committed.lines().zip(rendered.lines()))
            .find(|(_, (expected, found))| expected != found)
        {
            bail!(
                "golden/{name}.yaml, line {line} is {expected:?}, and was rendered as {found:?} (UPDATE_GOLDEN=1 takes it over)"
            );
        }
        if committed != rendered {
            bail!(
                "golden/{name}.yaml is longer or shorter than what is rendered (UPDATE_GOLDEN=1 takes it over)"
            );
        }
    }
    Ok(())
}

/// The CRD is committed already, as generated; another test compares it.
fn without_the_crd(rendered: &str) -> String {
    let documents = rendered.split_inclusive("\n---\n");
    documents.filter(|document| !document.contains("kind: CustomResourceDefinition\n")).collect()
}
