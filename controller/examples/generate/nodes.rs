//! The platforms of docs/nodes/README.md, and of docs/nodes/settings.md the setting of each, as `sandbox-health pause-config` prints it.

use std::fmt::Write as _;

use clap::ValueEnum as _;
use sandbox_health::pause_config::{Format, Image, Platform, Requirement, Snippet, snippet};

/// Replaced by the word that the documentation uses for the user's registry.
const REGISTRY: &str = "registry.example";

/// The name of the image, with [`REGISTRY`].
fn image() -> anyhow::Result<Image> {
    Ok(concat!("registry.example/pause:", env!("CARGO_PKG_VERSION")).parse()?)
}

/// A line for each platform.
pub(crate) fn table() -> anyhow::Result<String> {
    let image = image()?;
    let mut table =
        "| platform | `--for` | the setting goes | tested |\n| --- | --- | --- | --- |\n".to_owned();
    for platform in Platform::value_variants() {
        let title = platform.title();
        let name = platform.to_possible_value();
        let name = name.as_ref().map(clap::builder::PossibleValue::get_name).unwrap_or_default();
        if let Ok(snippet) = snippet(*platform, &image) {
            let tested = if platform.is_tested() { "end-to-end tests" } else { "not run here" };
            let (link, place) = (format!("settings.md#{}", anchor(title)), snippet.place);
            writeln!(table, "| [{title}]({link}) | `{name}` | {place} | {tested} |")?;
        } else {
            writeln!(table, "| {title} | `{name}` | nowhere: [reason](#managed-clouds) | |")?;
        }
    }
    Ok(table)
}

/// A chapter for each platform that can be configured.
pub(crate) fn settings() -> anyhow::Result<String> {
    let image = image()?;
    let mut chapters = String::new();
    for snippet in Platform::value_variants().iter().filter_map(|platform| snippet(*platform, &image).ok()) {
        chapter(&mut chapters, &snippet)?;
    }
    Ok(chapters.replace(REGISTRY, "REGISTRY"))
}

fn chapter(text: &mut String, snippet: &Snippet) -> std::fmt::Result {
    let Snippet { platform, place, format, content, requirement, commands, notes } = snippet;
    writeln!(text, "## {}\n\n{}:\n", platform.title(), capitalized(&place.to_string()))?;
    // The end-to-end tests find the settings of their nodes by these names.
    let mark = match platform {
        Platform::Containerd2 => Some("containerd 2: drop-in"),
        Platform::Containerd1 | Platform::Crio => Some(platform.title()),
        _ => None,
    };
    block(text, mark, *format, content)?;
    if let Some(Requirement { reason, line }) = requirement {
        writeln!(text, "{reason}\n")?;
        block(text, Some("containerd 2: imports"), Format::Toml, line)?;
    }
    let commands: Vec<_> = commands.iter().map(|command| format!("`{command}`")).collect();
    let then =
        if commands.is_empty() { String::new() } else { format!("Then run {}.", commands.join(" and ")) };
    let sentences: Vec<_> =
        [then.as_str()].into_iter().chain(notes.iter().copied()).filter(|it| !it.is_empty()).collect();
    writeln!(text, "{}\n", sentences.join("\n"))
}

fn block(text: &mut String, mark: Option<&str>, format: Format, content: &str) -> std::fmt::Result {
    if let Some(mark) = mark {
        writeln!(text, "<!-- used by the e2e node: {mark} -->")?;
    }
    let language = match format {
        Format::Toml => "toml",
        Format::Yaml => "yaml",
    };
    writeln!(text, "```{language}\n{content}```\n")
}

/// Of a heading, as GitHub makes it.
fn anchor(title: &str) -> String {
    let words = title.to_lowercase().replace(' ', "-");
    words.chars().filter(|it| it.is_alphanumeric() || *it == '-').collect()
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
