//! The tables in docs/reference/metrics.md are what agent and controller render.

use std::path::Path;

#[path = "../examples/generate/metrics_table.rs"]
mod metrics_table;

#[test]
fn page_has_the_generated_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let tables = metrics_table::markdown().unwrap();
    assert!(page.contains(tables.trim_end()), "run `cargo generate` and commit what it writes");
}
