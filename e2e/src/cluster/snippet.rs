//! The snippets of docs/nodes/settings.md for containerd and CRI-O, as an administrator would copy them. The nodes are configured with
//! them, so the tests verify the page. A snippet is a fenced block below a comment that names it.

use anyhow::{Context as _, Result, ensure};

const PAGE: &str = include_str!("../../../docs/nodes/settings.md");
/// The page's placeholder for the name of the image.
const IMAGE: &str = "REGISTRY/pause:0.1.0";
/// The page's directory of drop-in files.
const DIRECTORY: &str = "/etc/containerd/conf.d";

/// The line of containerd's own configuration that imports the drop-in files of `directory`.
pub(crate) fn imports(directory: &str) -> Result<String> {
    replace_once(block("containerd 2: imports")?, DIRECTORY, directory)
}

/// The drop-in file that makes `image` the sandbox image.
pub(crate) fn sandbox_image(image: &str) -> Result<String> {
    replace_once(block("containerd 2: drop-in")?, IMAGE, image)
}

/// The table of containerd 1.7's configuration that makes `image` the sandbox image.
pub(crate) fn sandbox_image_1_7(image: &str) -> Result<String> {
    replace_once(block("containerd 1.7")?, IMAGE, image)
}

/// CRI-O's drop-in file that makes `image` the sandbox image.
pub(crate) fn pause_image_of_crio(image: &str) -> Result<String> {
    replace_once(block("CRI-O")?, IMAGE, image)
}

/// The fenced block that follows the comment with this name.
fn block(name: &str) -> Result<&'static str> {
    let comment = format!("<!-- used by the e2e node: {name} -->\n```toml\n");
    let (_, rest) =
        PAGE.split_once(&comment).with_context(|| format!("docs/nodes/settings.md has no {name:?}"))?;
    let (block, rest) = rest.split_once("```\n").with_context(|| format!("{name:?} does not end"))?;
    ensure!(!rest.contains(&comment), "docs/nodes/settings.md has {name:?} twice");
    Ok(block)
}

/// Replaces `what`, which must occur exactly once.
fn replace_once(text: &str, what: &str, replacement: &str) -> Result<String> {
    let times = text.matches(what).count();
    ensure!(times == 1, "{what} occurs {times} times in the snippet:\n{text}");
    Ok(text.replace(what, replacement))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_in_gets_sandbox_image() {
        let text = sandbox_image("localhost/x:1").unwrap();
        assert!(text.starts_with("version = 3\n"), "{text}");
        let settings: Vec<_> = text.lines().filter(|line| line.contains('=')).collect();
        assert_eq!(settings, ["version = 3", r#"sandbox = "localhost/x:1""#], "{text}");
        assert!(text.contains("[plugins.'io.containerd.cri.v1.images'.pinned_images]\n"), "{text}");
        assert!(!text.contains("REGISTRY"), "{text}");
    }

    #[test]
    fn imports_get_directory() {
        assert_eq!(imports("/run/x").unwrap(), "imports = [\"/run/x/*.toml\"]\n");
    }

    #[test]
    fn missing_snippet_is_error() {
        let error = block("nothing").unwrap_err();
        assert_eq!(error.to_string(), "docs/nodes/settings.md has no \"nothing\"");
    }

    #[test]
    fn placeholder_must_occur_once() {
        assert_eq!(replace_once("a b", "b", "c").unwrap(), "a c");
        assert!(replace_once("a", "b", "c").is_err());
        assert!(replace_once("b b", "b", "c").is_err());
    }
}
