use super::*;

const IMAGE: &str = "registry.example/pause:0.1.0";

/// containerd 1.7 of Debian 13, as its package installs it.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"#;

/// A part of `containerd config default` of 1.7.
const DEFAULT_1_7: &str = r#"disabled_plugins = []
imports = []
oom_score = 0
plugin_dir = ""
required_plugins = []
root = "/var/lib/containerd"
state = "/run/containerd"
temp = ""
version = 2

[cgroup]
  path = ""

[plugins]

  [plugins."io.containerd.gc.v1.scheduler"]
    deletion_threshold = 0

  [plugins."io.containerd.grpc.v1.cri"]
    cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
    restrict_oom_score_adj = false
    sandbox_image = "registry.k8s.io/pause:3.8"
    selinux_category_range = 1024

    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/opt/cni/bin"
"#;

/// A part of `containerd config default` of 2.2, which has the import.
const DEFAULT_2_2: &str = r#"version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
temp = ''
disabled_plugins = []
required_plugins = []
oom_score = 0
imports = ['/etc/containerd/conf.d/*.toml']

[grpc]
  address = '/run/containerd/containerd.sock'
"#;

/// A part of `containerd config default` of 2.0.
const DEFAULT_2_0: &str = r#"version = 3
root = '/var/lib/containerd'
imports = []

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'

    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.k8s.io/pause:3.10'
"#;

const WITHOUT_IMPORTS: &str =
    "# Written by the image builder.\nversion = 3 # since 2.0\n\n# The only table.\n[grpc]\n  uid = 0\n";

const WITH_IMPORTS: &str = "version = 3\nimports = [\n  \"/etc/containerd/certs.toml\", # Ansible\n  '/etc/containerd/runtimes.d/*.toml',\n]\n\n[grpc]\n  uid = 0\n";

fn edited(text: &str, setting: Setting) -> String {
    edit(Some(text), setting).unwrap()
}

/// Lines that are in one text only.
fn difference(before: &str, after: &str) -> Vec<String> {
    let missing = |from: &str, within: &str| -> Vec<String> {
        let lines: Vec<_> = within.split_inclusive('\n').collect();
        from.split_inclusive('\n').filter(|line| !lines.contains(line)).map(str::to_owned).collect()
    };
    [missing(before, after), missing(after, before)].concat()
}

#[test]
fn import_changes_one_line() {
    for (text, expected) in [
        (WITHOUT_IMPORTS, vec!["imports = [\"/etc/containerd/conf.d/*.toml\"]\n"]),
        (DEFAULT_2_0, vec!["imports = []\n", "imports = [\"/etc/containerd/conf.d/*.toml\"]\n"]),
        (
            WITH_IMPORTS,
            vec![
                "  '/etc/containerd/runtimes.d/*.toml',\n",
                "  '/etc/containerd/runtimes.d/*.toml', \"/etc/containerd/conf.d/*.toml\",\n",
            ],
        ),
        (DEFAULT_2_2, vec![]),
        (DEBIAN, vec!["imports = [\"/etc/containerd/conf.d/*.toml\"]\n"]),
    ] {
        let edited = edited(text, Setting::Import);
        assert_eq!(difference(text, &edited), expected, "{edited}");
        assert_eq!(edit(Some(&edited), Setting::Import).unwrap(), edited);
    }
}

#[test]
fn sandbox_image_changes_one_line() {
    let line = "  sandbox_image = \"registry.example/pause:0.1.0\"\n";
    let indented = "    sandbox_image = \"registry.example/pause:0.1.0\"\n";
    let image = Setting::SandboxImage(IMAGE);
    let edited_debian = edited(DEBIAN, image);
    assert_eq!(difference(DEBIAN, &edited_debian), [line]);
    let default = edited(DEFAULT_1_7, image);
    assert_eq!(
        difference(DEFAULT_1_7, &default),
        ["    sandbox_image = \"registry.k8s.io/pause:3.8\"\n", indented]
    );
    for (text, end) in [
        ("version = 2", "\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n"),
        // The table is there by its subtable only.
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"b\"\n",
            "\n[plugins.\"io.containerd.grpc.v1.cri\"]\n",
        ),
    ] {
        assert_eq!(edited(text, image), format!("{text}{end}{line}"));
    }
}

#[test]
fn relative_and_exact_imports_count() {
    for (imports, is_there) in [
        ("[\"conf.d/*.toml\"]", true),
        ("[\"/etc/containerd/conf.d/50-sandbox-health.toml\"]", true),
        ("[\"/etc/containerd/conf.d/*\"]", true),
        ("[\"/etc/containerd/conf.d/*.conf\"]", false),
        ("[\"/etc/containerd/*.toml\"]", false),
        ("[\"/etc/containerd/conf.d/00-*.toml\"]", false),
        ("[]", false),
    ] {
        let text = format!("version = 3\nimports = {imports}\n");
        assert_eq!(is_set(&text, Setting::Import).unwrap(), is_there, "{imports}");
    }
}

#[test]
fn undo_restores_each_byte() {
    let crlf = DEFAULT_1_7.replace('\n', "\r\n");
    let crlf_3 = WITHOUT_IMPORTS.replace('\n', "\r\n");
    let mixed = WITH_IMPORTS.replacen('\n', "\r\n", 1);
    for text in [DEBIAN, DEFAULT_1_7, &crlf, "version = 2", "version = 2\n[plugins]\n"] {
        let first = edited(text, Setting::SandboxImage(IMAGE));
        assert_eq!(first.contains("\r\n"), text.contains("\r\n"));
        assert_eq!(first.matches('\n').count() == first.matches("\r\n").count(), text.contains("\r\n"));
        assert_eq!(undo(&first, text).unwrap().as_deref(), Some(text));
        // An upgrade of the image.
        let second = edited(&first, Setting::SandboxImage("registry.example/pause:0.2.0"));
        assert_eq!(undo(&second, text).unwrap().as_deref(), Some(text));
    }
    for text in [WITHOUT_IMPORTS, WITH_IMPORTS, DEFAULT_2_0, DEBIAN, &crlf_3, &mixed] {
        let edited = edited(text, Setting::Import);
        assert_eq!(undo(&edited, text).unwrap().as_deref(), Some(text));
    }
}

#[test]
fn absent_file_is_created_and_removed() {
    for (setting, expected) in [
        (Setting::Import, "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
        (
            Setting::SandboxImage(IMAGE),
            "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"registry.example/pause:0.1.0\"\n",
        ),
    ] {
        let created = edit(None, setting).unwrap();
        assert_eq!(created, format!("{HEADER}\n{expected}"));
        assert_eq!(undo(&created, "").unwrap(), None);
        // Settings that were added meanwhile stay.
        let kept = undo(&format!("{created}\n[debug]\n  level = \"info\"\n"), "").unwrap().unwrap();
        assert!(kept.contains("level") && !kept.contains(HEADER), "{kept}");
        assert!(!is_set(&kept, setting).unwrap(), "{kept}");
    }
}

#[test]
fn undo_keeps_other_edits() {
    let debug = "\n[debug]\n  level = \"info\"\n";
    for (text, setting) in [
        (DEBIAN, Setting::SandboxImage(IMAGE)),
        (DEFAULT_1_7, Setting::SandboxImage(IMAGE)),
        (WITHOUT_IMPORTS, Setting::Import),
        (WITH_IMPORTS, Setting::Import),
    ] {
        let edited = format!("{}{debug}", edited(text, setting));
        assert_eq!(undo(&edited, text).unwrap(), Some(format!("{text}{debug}")));
    }
    // Another tool put its import first.
    let text = edited(WITHOUT_IMPORTS, Setting::Import).replace("imports = [", "imports = [\"/a.toml\", ");
    assert_eq!(
        undo(&text, WITHOUT_IMPORTS).unwrap(),
        Some(WITHOUT_IMPORTS.replacen("# since 2.0\n", "# since 2.0\nimports = [\"/a.toml\"]\n", 1))
    );
}

#[test]
fn file_that_cannot_be_edited_is_refused() {
    let image = Setting::SandboxImage(IMAGE);
    let inline = "version = 2\nplugins = {\"io.containerd.grpc.v1.cri\" = {}}\n";
    for (text, setting, expected) in [
        ("version = 2\n[plugins\n", image, "it is not valid TOML"),
        ("[plugins]\n", image, "it has version 1"),
        ("version = 3\n", image, "it has version 3"),
        ("version = 1\n", Setting::Import, "it has version 1"),
        ("version = 3\nimports = \"a\"\n", Setting::Import, "its imports is not in a form"),
        (inline, image, "its sandbox_image is not in a form"),
        // The array's place is not where it is read.
        (
            "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".x = 1\n",
            image,
            "its sandbox_image is not in a form",
        ),
    ] {
        let error = edit(Some(text), setting).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}
