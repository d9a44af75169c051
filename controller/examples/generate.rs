//! Writes what is generated from the code, for `cargo generate`: the chart's copy of the CRD, and its reference in docs/.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (file, text) in [
        ("charts/sandbox-health/generated/crd.yaml", sandbox_health::crd_yaml()?),
        ("docs/api.md", sandbox_health::api_reference()),
    ] {
        std::fs::write(project.join(file), text)?;
        println!("wrote {file}");
    }
    Ok(())
}
