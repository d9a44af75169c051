//! What is generated from the code is what is committed.

use std::path::Path;

fn is_committed(file: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == generated, "{file}: run `cargo generate` and commit what it writes");
}

#[test]
fn the_chart_s_crd_is_the_generated_one() {
    is_committed("charts/sandbox-health/generated/crd.yaml", &sandbox_health::crd_yaml().unwrap());
}

#[test]
fn the_api_reference_is_the_generated_one() {
    is_committed("docs/api.md", &sandbox_health::api_reference());
}

/// What the schema says of a field is all that the reference and `kubectl explain` have.
#[test]
fn each_field_has_a_sentence() {
    let reference = sandbox_health::api_reference();
    let rows: Vec<_> = reference.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 30, "{reference}");
    for row in rows {
        assert!(row.ends_with(". |"), "no sentence: {row}");
    }
}

#[test]
fn the_program_prints_it() {
    let printed =
        std::process::Command::new(env!("CARGO_BIN_EXE_sandbox-health")).arg("crd").output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), sandbox_health::crd_yaml().unwrap());
}

/// schemars' unsigned formats (`uint32`, …) are none that Kubernetes knows: the API server warns about each.
#[test]
fn the_schema_has_no_format_that_the_api_server_warns_about() {
    assert!(!sandbox_health::crd_yaml().unwrap().contains("format: uint"));
}

#[test]
fn no_description_is_broken_where_the_source_is() {
    let crd = sandbox_health::crd_yaml().unwrap();
    // YAML keeps the breaks of such a block, and folds those of another.
    assert!(!crd.contains("description: |"), "{crd}");
}
