//! What docs/metrics.md says is what agent and controller show.

use std::path::Path;

#[test]
fn the_page_has_the_generated_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    assert!(
        page.contains(&sandbox_health::metrics_table::markdown().unwrap()),
        "run `cargo generate` and commit what it writes"
    );
}
