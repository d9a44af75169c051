//! The snippets of docs/nodes/settings.md for containerd and CRI-O, as an administrator would copy them. The node is configured with them, so that
//! what the page says cannot rot. A snippet is a fenced block below a comment that names it.

use anyhow::{Context as _, Result, ensure};

const PAGE: &str = include_str!("../../../docs/nodes/settings.md");
/// Stands in the page for the name of the image.
const IMAGE: &str = "REGISTRY/pause:0.1.0";
/// The folder of drop-in files that the page names.
const FOLDER: &str = "/etc/containerd/conf.d";

/// The line of containerd's own configuration that takes in the drop-in files of `folder`.
pub(crate) fn imports(folder: &str) -> Result<String> {
    with(block("containerd 2: imports")?, FOLDER, folder)
}

/// The drop-in file that makes `image` the sandbox image.
pub(crate) fn sandbox_image(image: &str) -> Result<String> {
    with(block("containerd 2: drop-in")?, IMAGE, image)
}

/// The table of containerd 1.7's configuration that makes `image` the sandbox image.
pub(crate) fn sandbox_image_1_7(image: &str) -> Result<String> {
    with(block("containerd 1.7")?, IMAGE, image)
}

/// CRI-O's drop-in file that makes `image` the sandbox image.
pub(crate) fn pause_image_of_crio(image: &str) -> Result<String> {
    with(block("CRI-O")?, IMAGE, image)
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

/// The text with `what`, which must stand in it once, replaced.
fn with(text: &str, what: &str, replacement: &str) -> Result<String> {
    let times = text.matches(what).count();
    ensure!(times == 1, "{what} stands {times} times in the snippet:\n{text}");
    Ok(text.replace(what, replacement))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_names_one_image_and_it_is_replaced() {
        let text = sandbox_image("localhost/x:1").unwrap();
        assert!(text.starts_with("version = 3\n"), "{text}");
        let settings: Vec<_> = text.lines().filter(|line| line.contains('=')).collect();
        assert_eq!(settings, ["version = 3", r#"sandbox = "localhost/x:1""#], "{text}");
        assert!(text.contains("[plugins.'io.containerd.cri.v1.images'.pinned_images]\n"), "{text}");
        assert!(!text.contains("REGISTRY"), "{text}");
    }

    #[test]
    fn the_imports_name_one_folder_and_it_is_replaced() {
        assert_eq!(imports("/run/x").unwrap(), "imports = [\"/run/x/*.toml\"]\n");
    }

    #[test]
    fn a_snippet_that_the_page_lacks_is_an_error() {
        let error = block("nothing").unwrap_err();
        assert_eq!(error.to_string(), "docs/nodes/settings.md has no \"nothing\"");
    }

    #[test]
    fn what_is_replaced_must_stand_there_once() {
        assert_eq!(with("a b", "b", "c").unwrap(), "a c");
        assert!(with("a", "b", "c").is_err());
        assert!(with("b b", "b", "c").is_err());
    }
}
