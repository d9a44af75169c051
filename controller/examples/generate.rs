//! Writes what is generated from the code, for `cargo generate`: the chart's copy of the CRD, and the table of metrics.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = project.join("charts/sandbox-health/generated/crd.yaml");
    fs::write(&path, sandbox_health::crd_yaml()?)?;
    println!("wrote {}", path.display());
    let path = project.join("docs/metrics.md");
    let page = fs::read_to_string(&path)?;
    let (head, rest) = page.split_once(BEGIN).context(BEGIN)?;
    let (_, tail) = rest.split_once(END).context(END)?;
    fs::write(&path, format!("{head}{BEGIN}\n{}{END}{tail}", sandbox_health::metrics_table::markdown()?))?;
    println!("wrote the tables in {}", path.display());
    Ok(())
}

/// Between these lines of a page nobody writes by hand.
const BEGIN: &str = "<!-- Written by `cargo generate` from here on -->\n";
const END: &str = "\n<!-- to here -->\n";
