//! The table of the chart's values: each with its default, from values.yaml, and its meaning, from the schema.

use anyhow::{Context as _, bail};
use serde_json::Value;

const BEGIN: &str = "<!-- What follows is written by `cargo generate`. -->\n";
const END: &str = "<!-- Up to here. -->\n";
/// A default that is longer is left to values.yaml.
const LONGEST: usize = 60;

/// The README with this table in the place of the one that it has.
pub(crate) fn with_table(readme: &str, table: &str) -> anyhow::Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("README.md has no place for the table")?;
    let (_, after) = rest.split_once(END).context("README.md has no end of the table")?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// The table, in the order of values.yaml.
pub(crate) fn table(values: &str, schema: &str) -> anyhow::Result<String> {
    let (defaults, schema): (Value, Value) = (serde_saphyr::from_str(values)?, serde_json::from_str(schema)?);
    let mut table = "| value | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for path in paths(values) {
        let Some(property) = find(&schema, &path, |schema| &schema["properties"]) else { continue };
        // A map whose keys have rows of their own.
        if property["properties"].is_object() {
            continue;
        }
        let name = path.join(".");
        let default = find(&defaults, &path, |value| value).with_context(|| name.clone())?;
        let Some(meaning) = property["description"].as_str() else { bail!("{name} has no description") };
        table.push_str(&format!("| `{name}` | {} | {meaning} |\n", shown(default)));
    }
    Ok(table)
}

fn shown(default: &Value) -> String {
    match default.to_string() {
        long if long.len() > LONGEST => "see values.yaml".to_owned(),
        short => format!("`{short}`"),
    }
}

fn find<'a>(root: &'a Value, path: &[&str], inside: fn(&Value) -> &Value) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, key| inside(value).get(key))
}

/// The keys of the file, each with those above it, in its order, which a parsed map does not keep. The file has a line a key.
fn paths(yaml: &str) -> Vec<Vec<&str>> {
    let mut open: Vec<(usize, &str)> = vec![];
    let mut paths = vec![];
    for line in yaml.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let Some((key, _)) = text.split_once(':').filter(|(key, _)| !key.starts_with(['#', '-'])) else {
            continue;
        };
        open.retain(|(other, _)| *other < indent);
        open.push((indent, key));
        paths.push(open.iter().map(|(_, key)| *key).collect());
    }
    paths
}
