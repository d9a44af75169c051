//! What is generated from the code is what is committed.

use std::path::Path;

#[test]
fn the_chart_s_crd_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sandbox-health/generated/crd.yaml");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == sandbox_health::crd_yaml().unwrap(),
        "run `cargo generate` and commit what it writes"
    );
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
