//! `sandbox-health pause-config` as users run it, and the pages that have what it prints.

use std::path::Path;
use std::process::{Command, Output};

#[path = "../examples/generate/nodes.rs"]
mod nodes;

fn pause_config(platform: &str, image: &str) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox-health"));
    command.args(["pause-config", "--for", platform, "--image", image]).output()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn setting_is_printed_to_stdout() {
    let output = pause_config("k3s", "registry.example/pause:0.1.0").unwrap();
    let printed = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(printed.starts_with("# k3s: the file `/etc/rancher/k3s/config.yaml.d/"), "{printed}");
    assert!(printed.ends_with("\npause-image: \"registry.example/pause:0.1.0\"\n"), "{printed}");
}

#[test]
fn managed_cloud_is_exit_status_1_and_a_reason() {
    for platform in ["gke", "aks"] {
        let output = pause_config(platform, "registry.example/pause:0.1.0").unwrap();
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{output:?}");
        let reason = text(&output.stderr);
        assert!(
            reason.contains("manages containerd's configuration") && reason.contains("the agent counts"),
            "{reason}"
        );
    }
}

#[test]
fn image_without_a_tag_is_a_usage_error() {
    let output = pause_config("k3s", "registry.example/pause").unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("a tag or a digest is required"), "{output:?}");
}

#[test]
fn pages_have_the_generated_text() {
    for (page, generated) in [
        ("docs/nodes/README.md", nodes::table().unwrap()),
        ("docs/nodes/settings.md", nodes::settings().unwrap()),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed.contains(generated.trim_end()),
            "{page}: run `cargo generate` and commit what it writes"
        );
    }
}
