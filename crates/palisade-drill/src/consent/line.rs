//! The line that a server publishes. Pure.

use super::{
    MAX_TIME,
    error::ConsentError,
    secret::{BYTES, Secret, parse_hex, write_hex},
    time::{Clock, Timestamp},
};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const HASH: &str = "palisade-drill v1 sha256=";
const UNTIL: &str = " until=";
/// The longest text that is read as a line. A line has 116 characters, and a line ending.
pub(super) const MAX_BYTES: usize = 256;

/// The line that a server publishes at [`PATH`](super::PATH) while it consents to a drill:
///
/// ```text
/// palisade-drill v1 sha256=<64 hexadecimal digits> until=2027-01-31T23:59:59Z
/// ```
///
/// The hash is the SHA-256 of the [`Secret`] as it is written, and the end is a time in UTC
/// (RFC 3339). A line is read in exactly this form; one line ending may follow, because a file has
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsentLine {
    hash: [u8; BYTES],
    until: Timestamp,
}

impl ConsentLine {
    /// Returns the line for the holder of `secret`, which ends after `lasts`, a second earlier at
    /// most.
    ///
    /// # Errors
    ///
    /// [`ConsentError::Time`] if that is less than a second, or more than
    /// [`MAX_TIME`](super::MAX_TIME).
    pub fn new(secret: &Secret, lasts: Duration) -> Result<Self, ConsentError> {
        Self::from(secret, lasts, &Clock::System)
    }

    pub(super) fn from(
        secret: &Secret,
        lasts: Duration,
        clock: &Clock,
    ) -> Result<Self, ConsentError> {
        if lasts < Duration::from_secs(1) || lasts > MAX_TIME {
            return Err(ConsentError::Time);
        }
        Ok(Self {
            hash: secret.hash(),
            until: Timestamp::new(clock.now() + lasts).ok_or(ConsentError::Time)?,
        })
    }

    /// Returns whether this consents to the holder of `secret`.
    pub fn is_for(&self, secret: &Secret) -> bool {
        self.hash == secret.hash()
    }

    /// Returns the end.
    pub fn until(&self) -> SystemTime {
        UNIX_EPOCH + self.until.since_epoch()
    }

    /// Returns the end as a time since 1970.
    pub(super) fn ends(&self) -> Duration {
        self.until.since_epoch()
    }

    /// Returns the end as the line has it.
    pub(super) fn end(&self) -> String {
        self.until.to_string()
    }
}

impl fmt::Display for ConsentLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH)?;
        write_hex(&self.hash, f)?;
        write!(f, "{UNTIL}{}", self.until)
    }
}

impl FromStr for ConsentLine {
    type Err = ConsentError;

    fn from_str(text: &str) -> Result<Self, ConsentError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = match line.strip_suffix('\r') {
            Some(line) if text.ends_with('\n') => line,
            _ => line,
        };
        let parse = || {
            let (hash, until) = line.strip_prefix(HASH)?.split_once(UNTIL)?;
            let (hash, until) = (parse_hex(hash)?, until.parse().ok()?);
            Some(Self { hash, until })
        };
        parse().ok_or(ConsentError::NoLine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, proptest};

    const ZEROS: &str = "60e05bd1b195af2f94112fa7197a5c88289058840ce7c6df9693756bc6250f55";

    fn zeros() -> Secret {
        "0".repeat(64).parse().unwrap()
    }

    fn line() -> String {
        format!("palisade-drill v1 sha256={ZEROS} until=2026-12-01T10:00:00Z")
    }

    #[test]
    fn a_line_has_the_hash_of_the_secret_and_the_end() {
        let clock = Clock::Set(std::sync::Arc::new(1_796_032_800.into()));
        let made = ConsentLine::from(&zeros(), Duration::from_secs(86_400), &clock).unwrap();
        assert_eq!(made.to_string(), line());
        assert_eq!(made.to_string().len(), 116);
        assert_eq!(line().parse(), Ok(made.clone()));
        assert!(made.is_for(&zeros()) && !made.is_for(&Secret::random().unwrap()));
        let until = made.until().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(until.as_secs(), 1_796_119_200);
    }

    #[test]
    fn a_consent_of_no_time_or_of_more_than_a_day_is_not_made() {
        let made = |milliseconds| {
            ConsentLine::new(&zeros(), Duration::from_millis(milliseconds)).map(|_| ())
        };
        assert_eq!(made(0), Err(ConsentError::Time));
        assert_eq!(made(999), Err(ConsentError::Time));
        assert_eq!(made(1_000), Ok(()));
        assert_eq!(made(86_400_000), Ok(()));
        assert_eq!(made(86_400_001), Err(ConsentError::Time));
    }

    #[test]
    fn one_line_ending_may_follow() {
        for ending in ["", "\n", "\r\n"] {
            assert!((line() + ending).parse::<ConsentLine>().is_ok());
        }
        for ending in [
            "\r", "\n\n", "\r\n\r\n", "\n\r", "\r\r\n", " ", "\0", "\u{85}", "x",
        ] {
            let text = line() + ending;
            assert!(text.parse::<ConsentLine>().is_err(), "{ending:?}");
        }
    }

    #[test]
    fn no_other_form_is_read() {
        let line = line();
        let until = " until=2026-12-01T10:00:00Z";
        for text in [
            String::new(),
            format!(" {line}"),
            format!("\u{feff}{line}"),
            format!("{line}\n{line}"),
            format!("{line}{until}"),
            line.to_uppercase(),
            line.replace(ZEROS, &ZEROS.to_uppercase()),
            line.replace(ZEROS, &ZEROS[1..]),
            line.replace(ZEROS, &format!("{ZEROS}00")),
            line.replace(ZEROS, &format!("{ZEROS},{ZEROS}")),
            line.replace("60e", "６0e"),
            line.replace("60e05b", "é0e05"),
            line.replace("v1", "v2"),
            line.replace("v1 ", ""),
            line.replace("sha256=", "sha256:"),
            line.replace("sha256=", &format!("sha256={ZEROS} sha256=")),
            line.replace("sha256", "sha512"),
            line.replace(' ', "  "),
            line.replace(' ', "\u{a0}"),
            line.replace(" until", "\tuntil"),
            line.replace(until, ""),
            line.replace("until", "Until"),
            line.replace("10:00:00Z", "10:00:00+00:00"),
            line.replace("2026-12-01", "2026-12-32"),
            format!("<pre>{line}</pre>"),
        ] {
            assert_ne!(text, line);
            assert_eq!(
                text.parse::<ConsentLine>(),
                Err(ConsentError::NoLine),
                "{text}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_written_is_read(hash in any::<[u8; BYTES]>(), seconds in 0..253_402_300_799_u64) {
            let until = Timestamp::new(Duration::from_secs(seconds)).unwrap();
            let line = ConsentLine { hash, until };
            assert!(line.to_string().len() < MAX_BYTES);
            assert_eq!(line.to_string().parse(), Ok(line));
        }

        #[test]
        fn a_changed_character_is_another_line_or_none(at in 0..116_usize, with in any::<char>()) {
            let line = line();
            let mut characters: Vec<_> = line.chars().collect();
            characters[at] = with;
            let text: String = characters.into_iter().collect();
            if let Ok(read) = text.parse::<ConsentLine>() {
                assert_eq!(read.to_string(), text);
                assert!(text == line || read != line.parse().unwrap());
            }
        }

        #[test]
        fn no_text_panics(text in "(palisade-drill v1 sha256=)?.{0,80}( until=)?.{0,30}") {
            if let Ok(line) = text.parse::<ConsentLine>() {
                assert_eq!(line.to_string(), text.trim_end_matches(['\r', '\n']));
            }
        }
    }
}
