//! Makes text from tenants and other programs safe for one line: bounded, and without characters that break lines, quotes or terminals.

use std::time::Duration;

/// The longest prefix of at most `max` bytes that ends between two characters.
pub fn cut(text: &str, max: usize) -> &str {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    let end = ends.take_while(|end| *end <= max).last().unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// A name that a tenant chose, with `?` for the double quote and for all but letters, digits, spaces and ASCII punctuation.
pub fn printable(name: &[u8]) -> String {
    let is_safe = |it: char| it.is_alphanumeric() || it == ' ' || (it.is_ascii_graphic() && it != '"');
    String::from_utf8_lossy(name).chars().map(|it| if is_safe(it) { it } else { '?' }).collect()
}

/// Parses a duration on the command line, such as `5s` or `1m 30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be longer than 0 s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_has_a_unit_and_is_positive() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["5", "", "0s", "-5s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!((cut("süß", 2), cut("süß", 3), cut("süß", 99), cut("", 1)), ("s", "sü", "süß", ""));
    }

    #[test]
    fn tenant_name_cannot_break_the_line() {
        assert_eq!(printable(b"nginx: worker"), "nginx: worker");
        assert_eq!(printable(b"a\nb\x1b[31m\"%s\""), "a?b?[31m?%s?");
        assert_eq!(printable("\u{202e}\u{200b}\u{fe0f}ü".as_bytes()), "???ü");
        assert_eq!(printable(&[0xff, 0xfe]), "??");
    }
}
