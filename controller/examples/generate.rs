//! Writes what is generated from the code, for `cargo generate`: the chart's copy of the CRD.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sandbox-health/generated/crd.yaml");
    std::fs::write(&path, sandbox_health::crd_yaml()?)?;
    println!("wrote {}", path.display());
    Ok(())
}
