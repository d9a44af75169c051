//! Writes what is generated, for `cargo generate`: from the code the chart's copy of the CRD, its reference and the table of
//! metrics, and from the chart's values the table of its README.

mod chart_readme;
mod page;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use page::with_generated;

fn main() -> anyhow::Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| fs::read_to_string(project.join(file)).with_context(|| format!("reading {file}"));
    let write = |file: &str, text: String| {
        println!("wrote {file}");
        fs::write(project.join(file), text)
    };
    let chart = |file: &str| format!("charts/sandbox-health/{file}");
    write(&chart("generated/crd.yaml"), sandbox_health::crd_yaml()?)?;
    write("docs/api.md", sandbox_health::api_reference())?;
    let values = chart_readme::table(&read(&chart("values.yaml"))?, &read(&chart("values.schema.json"))?)?;
    for (page, generated) in [
        (chart("README.md"), values),
        ("docs/metrics.md".to_owned(), sandbox_health::metrics_table::markdown()?),
    ] {
        write(&page, with_generated(&read(&page)?, &generated).with_context(|| page.clone())?)?;
    }
    Ok(())
}
