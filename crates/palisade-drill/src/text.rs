//! Strings of the target in reports: escaped and cut.

use std::fmt::Write;

/// The largest number of characters of a foreign string.
const MAX_CHARACTERS: usize = 120;
/// The largest number of characters of a sentence in a report, in which foreign strings may be.
const MAX_SENTENCE: usize = 1_000;

/// Returns `text` with everything escaped that is not a printable character, and cut.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, MAX_CHARACTERS)
}

/// Returns a sentence of a report, which may be of a file, in the same way.
pub(crate) fn sentence(text: &str) -> String {
    escaped(text, MAX_SENTENCE)
}

fn escaped(text: &str, most: usize) -> String {
    let (mut out, mut length) = (String::new(), 0);
    for character in text.chars() {
        // Of what is shown, not of what was sent: an escape takes more.
        if length >= most {
            out.push('…');
            break;
        }
        // Letters of any script stay. Format characters, which turn or hide text, do not.
        // So does the mark of what was cut before.
        if character.is_ascii_graphic() || " …".contains(character) || character.is_alphanumeric()
        {
            out.push(character);
            length += 1;
        } else {
            let escape = character.escape_default();
            length += escape.len();
            let _ = write!(out, "{escape}");
        }
    }
    out
}

/// Returns received `bytes` as text, with everything escaped that is not printable, and cut.
pub(crate) fn printable_bytes(bytes: &[u8]) -> String {
    let cut = bytes.get(..4 * MAX_CHARACTERS).unwrap_or(bytes);
    printable(&String::from_utf8_lossy(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_format_characters_are_escaped() {
        assert_eq!(printable("a\x1b[31m\r\nb"), "a\\u{1b}[31m\\r\\nb");
        assert_eq!(printable("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(printable("Grüße <b>"), "Grüße <b>");
    }

    #[test]
    fn what_was_cut_is_marked_once() {
        let text = sentence(&format!("{}; more", printable(&"x".repeat(200))));
        assert!(text.ends_with("x…; more"), "{text}");
    }

    #[test]
    fn a_long_string_is_cut() {
        let text = printable(&"x".repeat(1_000_000));
        assert_eq!(text.chars().count(), MAX_CHARACTERS + 1);
        assert!(printable_bytes(&[0xff; 100_000]).len() < 2_000);
    }
}
