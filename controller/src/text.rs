//! Text that others wrote, made fit for a line of ours: bounded, and without what breaks lines or terminals.

/// The beginning of a text, of so many bytes at most, that ends between two characters.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    let end = ends.take_while(|end| *end <= bytes).last().unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// A name that a process gave itself, fit for a line of text: what is no letter, digit, space or mark of ASCII becomes `?`.
#[must_use]
pub fn printable(comm: &[u8]) -> String {
    let plain =
        |character: char| character.is_alphanumeric() || character == ' ' || character.is_ascii_graphic();
    String::from_utf8_lossy(comm)
        .chars()
        .map(|character| if plain(character) { character } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("süß", 2), cut("süß", 3), cut("süß", 99), cut("", 1)), ("s", "sü", "süß", ""));
    }

    #[test]
    fn a_name_cannot_break_the_text() {
        assert_eq!(printable(b"nginx: worker"), "nginx: worker");
        assert_eq!(printable(b"a\nb\x1b[31m\"%s\""), "a?b?[31m\"%s\"");
        assert_eq!(printable("\u{202e}\u{200b}\u{fe0f}ü".as_bytes()), "???ü");
        assert_eq!(printable(&[0xff, 0xfe]), "??");
    }
}
