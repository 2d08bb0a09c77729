//! Strings of the target in reports: escaped and cut.

use std::fmt::Write;

/// The largest number of characters of a foreign string in a report.
const MAX_CHARACTERS: usize = 120;

/// Returns `text` with everything escaped that is not a printable character, and cut.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (at, character) in text.chars().enumerate() {
        if at == MAX_CHARACTERS {
            out.push('…');
            break;
        }
        // Letters of any script stay. Format characters, which turn or hide text, do not.
        if character.is_ascii_graphic() || character == ' ' || character.is_alphanumeric() {
            out.push(character);
        } else {
            let _ = write!(out, "{}", character.escape_default());
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
    fn a_long_string_is_cut() {
        let text = printable(&"x".repeat(1_000_000));
        assert_eq!(text.chars().count(), MAX_CHARACTERS + 1);
        assert!(printable_bytes(&[0xff; 100_000]).len() < 2_000);
    }
}
