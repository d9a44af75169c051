//! Writes what is generated, for `cargo generate`: the chart's copy of the CRD from the code, and the table of its README from
//! its values.

mod chart_readme;

use std::path::Path;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sandbox-health");
    let read =
        |file: &str| std::fs::read_to_string(chart.join(file)).with_context(|| format!("reading {file}"));
    let write = |file: &str, text: String| {
        println!("wrote {}", chart.join(file).display());
        std::fs::write(chart.join(file), text)
    };
    write("generated/crd.yaml", sandbox_health::crd_yaml()?)?;
    let table = chart_readme::table(&read("values.yaml")?, &read("values.schema.json")?)?;
    write("README.md", chart_readme::with_table(&read("README.md")?, &table)?)?;
    Ok(())
}
