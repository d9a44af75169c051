//! The committed files equal those that are generated from the CRD.

use std::path::Path;

#[path = "../examples/generate/reference.rs"]
mod reference;

fn assert_committed(file: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == generated, "{file}: run `cargo generate` and commit what it writes");
}

#[test]
fn chart_has_the_generated_crd() {
    assert_committed("charts/sandbox-health/generated/crd.yaml", &sandbox_health::crd_yaml().unwrap());
}

#[test]
fn api_reference_is_generated() {
    assert_committed("docs/reference/api.md", &reference::page(&sandbox_health::crd()));
}

/// The schema's description of a field is all that the reference and `kubectl explain` have.
#[test]
fn each_field_has_a_sentence() {
    let reference = reference::page(&sandbox_health::crd());
    let rows: Vec<_> = reference.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 30, "{reference}");
    for row in rows {
        assert!(row.ends_with(". |"), "no sentence: {row}");
    }
}

/// schemars' unsigned formats (`uint32`, …) are unknown to Kubernetes: the API server warns about each.
#[test]
fn schema_has_no_unknown_format() {
    assert!(!sandbox_health::crd_yaml().unwrap().contains("format: uint"));
}

#[test]
fn descriptions_have_no_line_breaks() {
    let crd = sandbox_health::crd_yaml().unwrap();
    // YAML keeps the breaks of such a block, and folds those of another.
    assert!(!crd.contains("description: |"), "{crd}");
}
