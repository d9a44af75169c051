//! Edits of containerd's `config.toml`, as text. toml_edit finds the places; every other byte stays as it is, line ends and comments
//! included, which toml_edit's own output does not promise. Each result is parsed again before it is returned.

use std::ops::Range;

use toml_edit::{Array, Document, Item, Table};

use super::files::HEADER;
use crate::pause_config::{CONTAINERD_IMPORTS, containerd_1_table};

/// Directory of containerd's configuration, to which relative imports refer.
const DIRECTORY: &str = "/etc/containerd";
const DROP_INS: &str = "/etc/containerd/conf.d";
const DROP_IN: &str = "50-sandbox-health.toml";
const PATTERN: &str = "/etc/containerd/conf.d/*.toml";
/// The plugin that has the sandbox image in a configuration of version 2.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// What is edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting<'a> {
    /// The import of drop-ins (containerd 2).
    Import,
    /// The sandbox image (containerd 1.7).
    SandboxImage(&'a str),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    #[error("it is not valid TOML: {0}")]
    Invalid(String),
    #[error("it has version {0}")]
    Version(i64),
    #[error("its {0} is not in a form that can be edited")]
    Form(&'static str),
}

type Parsed<'a> = Document<&'a str>;

fn parse(text: &str) -> Result<Parsed<'_>, EditError> {
    Document::parse(text).map_err(|error| EditError::Invalid(error.message().to_owned()))
}

/// Whether the file has the setting, written by the installer or by an administrator.
pub(super) fn is_set(text: &str, setting: Setting) -> Result<bool, EditError> {
    let document = parse(text)?;
    Ok(match setting {
        Setting::Import => imports(&document).is_some_and(has_drop_in),
        Setting::SandboxImage(image) => sandbox_image(&document) == Some(image),
    })
}

/// The text with the setting; `None` is a file that does not exist.
pub(super) fn edit(text: Option<&str>, setting: Setting) -> Result<String, EditError> {
    let Some(text) = text else {
        return Ok(match setting {
            Setting::Import => format!("{HEADER}\nversion = 3\n{CONTAINERD_IMPORTS}"),
            Setting::SandboxImage(image) => format!("{HEADER}\nversion = 2\n\n{}", containerd_1_table(image)),
        });
    };
    let document = parse(text)?;
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(1);
    let is_known = match setting {
        Setting::Import => version >= 2,
        Setting::SandboxImage(_) => version == 2,
    };
    if !is_known {
        return Err(EditError::Version(version));
    }
    let edited = match setting {
        Setting::Import => add_import(text, &document)?,
        Setting::SandboxImage(image) => set_image(text, &document, image)?,
    };
    match is_set(&edited, setting) {
        Ok(true) => Ok(edited),
        Ok(false) | Err(_) => Err(EditError::Form(setting.key())),
    }
}

/// The current text without the installer's settings; `None` if the installer created the file. `original` is the text before the first
/// edit, empty if there was no file. Changes of other keys stay; `sandbox_image` gets its earlier value.
pub(super) fn undo(current: &str, original: &str) -> Result<Option<String>, EditError> {
    let before = (!original.is_empty()).then_some(original);
    let image = sandbox_image(&parse(current)?).map(str::to_owned);
    let settings = [Some(Setting::Import), image.as_deref().map(Setting::SandboxImage)];
    let is_only_change = |setting| edit(before, setting).is_ok_and(|edited| edited == current);
    if settings.into_iter().flatten().any(is_only_change) {
        return Ok(before.map(str::to_owned));
    }
    let mut text = current.strip_prefix(HEADER).map_or(current, str::trim_start).to_owned();
    if !is_set(original, Setting::Import)? {
        text = remove_import(&text)?;
    }
    restore_image(&text, original).map(Some)
}

impl Setting<'_> {
    fn key(self) -> &'static str {
        match self {
            Self::Import => "imports",
            Self::SandboxImage(_) => "sandbox_image",
        }
    }
}

fn imports<'a>(document: &'a Parsed) -> Option<&'a Array> {
    document.get("imports")?.as_array()
}

fn has_drop_in(imports: &Array) -> bool {
    imports.iter().filter_map(|import| import.as_str()).any(|import| {
        let path = if import.starts_with('/') { import.to_owned() } else { format!("{DIRECTORY}/{import}") };
        path.rsplit_once('/')
            .is_some_and(|(directory, pattern)| directory == DROP_INS && matches(pattern, DROP_IN))
    })
}

/// As Go's filepath.Glob, with one asterisk at most.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => pattern == name,
    }
}

fn cri<'a>(document: &'a Parsed) -> Option<&'a Item> {
    document.get("plugins")?.get(CRI)
}

fn sandbox_image<'a>(document: &'a Parsed) -> Option<&'a str> {
    cri(document)?.get("sandbox_image")?.as_str()
}

fn add_import(text: &str, document: &Parsed) -> Result<String, EditError> {
    const FORM: EditError = EditError::Form("imports");
    if imports(document).is_some_and(has_drop_in) {
        return Ok(text.to_owned());
    }
    let Some(item) = document.get("imports") else {
        // Above the first table, below the version.
        let version = document.get("version").and_then(Item::span).ok_or(FORM)?;
        let line = CONTAINERD_IMPORTS.replace('\n', line_end(text));
        return Ok(insert_after_line(text, version.end, &line));
    };
    let array = item.as_array().ok_or(FORM)?;
    match array.iter().last().and_then(|last| last.span()) {
        Some(last) => Ok(splice(text, last.end..last.end, &format!(", \"{PATTERN}\""))),
        None => Ok(splice(text, item.span().ok_or(FORM)?, &format!("[\"{PATTERN}\"]"))),
    }
}

fn remove_import(text: &str) -> Result<String, EditError> {
    const FORM: EditError = EditError::Form("imports");
    let document = parse(text)?;
    let has_pattern = |array: &&Array| array.iter().any(|value| value.as_str() == Some(PATTERN));
    let Some(array) = imports(&document).filter(has_pattern) else {
        return Ok(text.to_owned());
    };
    let spans: Option<Vec<_>> = array.iter().map(|value| value.span()).collect();
    let spans = spans.ok_or(FORM)?;
    let index = array.iter().position(|value| value.as_str() == Some(PATTERN)).ok_or(FORM)?;
    let removed = match (index, spans.as_slice()) {
        (0, [_]) => return remove_line(text, document.as_table(), "imports"),
        (0, [first, second, ..]) => first.start..second.start,
        (at, spans) => match (spans.get(at - 1), spans.get(at)) {
            (Some(before), Some(own)) => before.end..own.end,
            _ => return Err(FORM),
        },
    };
    Ok(splice(text, removed, ""))
}

fn set_image(text: &str, document: &Parsed, image: &str) -> Result<String, EditError> {
    const FORM: EditError = EditError::Form("sandbox_image");
    let Some(item) = cri(document) else {
        return Ok(append(text, image));
    };
    if let Some(value) = item.get("sandbox_image") {
        return Ok(splice(text, value.span().ok_or(FORM)?, &format!("\"{image}\"")));
    }
    let cri = item.as_table().ok_or(FORM)?;
    if cri.is_implicit() {
        return Ok(append(text, image));
    }
    let head = cri.span().ok_or(FORM)?;
    let line = format!("  sandbox_image = \"{image}\"{}", line_end(text));
    Ok(insert_after_line(text, head.start, &line))
}

fn restore_image(text: &str, original: &str) -> Result<String, EditError> {
    const FORM: EditError = EditError::Form("sandbox_image");
    let (document, before) = (parse(text)?, parse(original)?);
    let value = cri(&document).and_then(|cri| cri.get("sandbox_image"));
    let value_before = cri(&before).and_then(|cri| cri.get("sandbox_image"));
    match (value, value_before) {
        (Some(value), Some(value_before)) => {
            let (span, span_before) = (value.span().ok_or(FORM)?, value_before.span().ok_or(FORM)?);
            Ok(splice(text, span, original.get(span_before).ok_or(FORM)?))
        }
        (Some(_), None) => {
            let table = cri(&document).and_then(Item::as_table).ok_or(FORM)?;
            remove_line(text, table, "sandbox_image")
        }
        (None, _) => Ok(text.to_owned()),
    }
}

fn append(text: &str, image: &str) -> String {
    let line_end = line_end(text);
    let last = if text.ends_with('\n') { "" } else { line_end };
    format!("{text}{last}{line_end}{}", containerd_1_table(image).replace('\n', line_end))
}

fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

fn splice(text: &str, range: Range<usize>, with: &str) -> String {
    let (start, end) = (text.get(..range.start), text.get(range.end..));
    [start.unwrap_or_default(), with, end.unwrap_or_default()].concat()
}

/// Inserts a line below the one that contains this place.
fn insert_after_line(text: &str, place: usize, line: &str) -> String {
    match text.get(place..).and_then(|rest| rest.find('\n')) {
        Some(length) => splice(text, place + length + 1..place + length + 1, line),
        None => [text, line_end(text), line].concat(),
    }
}

fn remove_line(text: &str, table: &Table, key: &'static str) -> Result<String, EditError> {
    let place = table.get_key_value(key).and_then(|(key, value)| Some(key.span()?.start..value.span()?.end));
    let Range { start, end } = place.ok_or(EditError::Form(key))?;
    let start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let end = text.get(end..).and_then(|rest| rest.find('\n')).map_or(text.len(), |length| end + length + 1);
    let removed = splice(text, start..end, "");
    parse(&removed).map(|_| removed.clone())
}

#[cfg(test)]
#[path = "config_toml_tests.rs"]
mod tests;
