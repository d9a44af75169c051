//! Pages of which a part is generated, and the rest is written by hand.

use anyhow::Context as _;

const BEGIN: &str = "<!-- What follows is written by `cargo generate`. -->\n";
const END: &str = "<!-- Up to here. -->\n";

/// The page with this text in place of the generated part.
pub(crate) fn with_generated(page: &str, text: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("it has no mark where the generated part begins")?;
    let (_, after) = rest.split_once(END).context("it has no mark where the generated part ends")?;
    Ok(format!("{before}{BEGIN}\n{}\n\n{END}{after}", text.trim_end()))
}
