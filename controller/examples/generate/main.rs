//! Generates files (`cargo generate`): from the code the chart's copy of the CRD, the API reference, the tables of metrics and the
//! settings of nodes; from the chart's values the table in its README.

mod chart_readme;
mod metrics_table;
mod nodes;
mod page;
mod reference;

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
    write("docs/reference/api.md", reference::page(&sandbox_health::crd()))?;
    let values = chart_readme::table(&read(&chart("values.yaml"))?, &read(&chart("values.schema.json"))?)?;
    let pages = [
        (chart("README.md"), values),
        ("docs/reference/metrics.md".to_owned(), metrics_table::markdown()?),
        ("docs/nodes/README.md".to_owned(), nodes::table()?),
        ("docs/nodes/settings.md".to_owned(), nodes::settings()?),
    ];
    for (page, generated) in pages {
        write(&page, with_generated(&read(&page)?, &generated).with_context(|| page.clone())?)?;
    }
    Ok(())
}
