//! Commands with their output as a picture of a terminal, in SVG.

/// Of a line, in characters: 800 pixels wide, the picture is still legible.
const COLUMNS: usize = 100;
/// Of the lines that continue one.
const INDENT: &str = "    ";
/// A font's size and what a character takes: viewers have different fonts, and `textLength` gives them the same width.
const FONT: f32 = 13.0;
const CHARACTER: f32 = 7.8;
const LINE: f32 = 19.0;
const MARGIN: f32 = 18.0;
/// Of the bar with the three dots.
const BAR: f32 = 34.0;

/// A command and its output.
pub(super) struct Shown {
    pub(super) command: String,
    pub(super) output: String,
}

/// The picture of these commands, one below the other.
pub(super) fn svg(transcript: &[Shown]) -> String {
    let mut lines = vec![];
    for shown in transcript {
        if !lines.is_empty() {
            lines.push((String::new(), "output"));
        }
        let command = wrapped(&format!("$ {}", shown.command));
        lines.extend(command.into_iter().map(|line| (line, "command")));
        let output = shown.output.lines().flat_map(wrapped);
        lines.extend(output.map(|line| (line, "output")));
    }
    let texts = lines.iter().zip(0_u16..).map(|((line, class), number)| text(line, class, number));
    let texts: String = texts.collect();
    let width = columns_wide(COLUMNS) + 2.0 * MARGIN;
    let height = BAR + top(u16::try_from(lines.len()).unwrap_or(u16::MAX)) + MARGIN - LINE / 2.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<style>
text {{ font: {FONT}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }}
.command {{ fill: #7ee787 }}
.output {{ fill: #e6edf3 }}
</style>
<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>
<circle cx="22" cy="18" r="6" fill="#ff5f56"/><circle cx="42" cy="18" r="6" fill="#ffbd2e"/><circle cx="62" cy="18" r="6" fill="#27c93f"/>
{texts}</svg>
"##
    )
}

fn text(line: &str, class: &str, number: u16) -> String {
    if line.is_empty() {
        return String::new();
    }
    let (y, length) = (BAR + top(number) + LINE / 2.0, columns_wide(line.chars().count()));
    let line = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        r#"<text class="{class}" x="{MARGIN}" y="{y}" textLength="{length:.1}" xml:space="preserve">{line}</text>
"#
    )
}

fn top(line: u16) -> f32 {
    f32::from(line) * LINE
}

fn columns_wide(columns: usize) -> f32 {
    f32::from(u16::try_from(columns).unwrap_or(u16::MAX)) * CHARACTER
}

/// A line as lines that fit, broken at a space where there is one.
fn wrapped(line: &str) -> Vec<String> {
    let mut rest = line.trim_end().to_owned();
    let mut lines = vec![];
    while let Some((end, next)) = rest.char_indices().nth(COLUMNS) {
        let start = rest.len() - rest.trim_start().len();
        // A space right behind a full line breaks it, too.
        let space = rest[..end + next.len_utf8()].rfind(' ').filter(|space| *space > start);
        let tail = rest.split_off(space.unwrap_or(end));
        lines.push(rest.trim_end().to_owned());
        rest = format!("{INDENT}{}", tail.trim_start());
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_is_as_high_as_its_lines_and_escapes_text() {
        let shown = |command: &str, output: &str| Shown { command: command.into(), output: output.into() };
        let one = svg(&[shown("a", "")]);
        assert!(one.contains(r#"width="816" height="61.5""#), "{one}");
        let two = svg(&[shown("a <b>", "x  & y\nz\n"), shown("c", "")]);
        assert!(two.contains(r#"height="137.5""#), "{two}");
        assert!(two.contains(
            r#"class="command" x="18" y="43.5" textLength="54.6" xml:space="preserve">$ a &lt;b&gt;<"#
        ));
        assert!(two.contains(
            r#"class="output" x="18" y="62.5" textLength="46.8" xml:space="preserve">x  &amp; y<"#
        ));
        assert_eq!(two.matches("<text").count(), 4);
    }

    #[test]
    fn long_line_is_broken_at_spaces() {
        assert_eq!(wrapped(""), [""]);
        let full = "x".repeat(COLUMNS);
        assert_eq!(wrapped(&full), std::slice::from_ref(&full));
        assert_eq!(wrapped(&format!("{full} y")), [full.clone(), "    y".to_owned()]);
        assert_eq!(
            wrapped(&format!("a {full}")),
            ["a".to_owned(), format!("    {}", &full[4..]), "    xxxx".into()]
        );
        assert_eq!(wrapped(&format!("{full}é")), [full, "    é".to_owned()]);
    }
}
