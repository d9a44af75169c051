//! Helm's output for the default values and for values that change every default, compared with committed files: the review of a template
//! shows its effect for users. `UPDATE_GOLDEN=1 cargo e2e renders` rewrites both files.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::helm::{Helm, NAMESPACE, RELEASE};

/// Values that change every default.
pub(super) const EVERYTHING: &str = include_str!("golden/everything.values.yaml");

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart/golden")
}

pub(super) fn renders_match_golden_files(helm: &Helm) -> Result<()> {
    let everything = format!("--values={}", directory().join("everything.values.yaml").display());
    let update = env::var_os("UPDATE_GOLDEN").is_some();
    for (name, values) in [("default", None), ("everything", Some(everything.as_str()))] {
        let mut args = vec!["template", RELEASE, "--namespace", NAMESPACE];
        args.extend(values);
        let rendered = helm.succeed(&args, &[])?;
        let rendered = without_the_files(&rendered);
        let file = directory().join(format!("{name}.yaml"));
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
                "golden/{name}.yaml, line {line} is {expected:?}, and Helm rendered {found:?} (UPDATE_GOLDEN=1 updates the file)"
            );
        }
        if committed != rendered {
            bail!(
                "golden/{name}.yaml has another number of lines than Helm rendered (UPDATE_GOLDEN=1 updates the file)"
            );
        }
    }
    Ok(())
}

/// The CRD and the dashboard are files of the chart, and have tests of their own.
fn without_the_files(rendered: &str) -> String {
    let documents = rendered.split_inclusive("\n---\n");
    let is_file = |document: &str| {
        ["kind: CustomResourceDefinition\n", "kind: ConfigMap\n"].iter().any(|kind| document.contains(kind))
    };
    documents.filter(|document| !is_file(document)).collect()
}
