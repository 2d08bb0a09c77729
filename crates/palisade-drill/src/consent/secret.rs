//! The secret of the one that runs a drill.

use super::error::ConsentError;
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// The bytes of a secret, and of its hash.
pub(super) const BYTES: usize = 32;

/// The secret that belongs to a [`ConsentLine`](super::ConsentLine): 32 random bytes, written as 64
/// hexadecimal digits in lower case. `Debug` does not show it; `Display` does.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; BYTES]);

impl Secret {
    /// Returns a new secret, from the random numbers of the system.
    ///
    /// # Errors
    ///
    /// [`ConsentError::Random`] if the system has none.
    pub fn random() -> Result<Self, ConsentError> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).map_err(|_| ConsentError::Random)?;
        Ok(Self(bytes))
    }

    /// Returns the SHA-256 of the secret as it is written: that of 64 ASCII characters.
    pub(super) fn hash(&self) -> [u8; BYTES] {
        Sha256::digest(self.to_string()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// Reads what `Display` writes. White space around it is ignored, as a file ends with some.
impl FromStr for Secret {
    type Err = ConsentError;

    fn from_str(text: &str) -> Result<Self, ConsentError> {
        parse_hex(text.trim())
            .map(Self)
            .ok_or(ConsentError::NoSecret)
    }
}

/// Writes `bytes` as hexadecimal digits in lower case.
pub(super) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads 64 hexadecimal digits in lower case, and nothing else.
pub(super) fn parse_hex(text: &str) -> Option<[u8; BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; BYTES];
    if text.len() != 2 * BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00000000000000000000000000000000000000000000000000000000000000af";

    #[test]
    fn a_secret_is_read_as_it_is_written_and_never_shown_by_debug() {
        let secret: Secret = format!(" {TEXT}\r\n").parse().unwrap();
        assert_eq!(secret.to_string(), TEXT);
        assert_eq!(format!("{secret:?}"), "Secret");
        for text in [
            "",
            &TEXT[1..],
            &format!("{TEXT}0"),
            &TEXT.to_uppercase(),
            &TEXT.replace("af", "ag"),
            &TEXT.replace("00af", "éé"),
        ] {
            assert!(text.parse::<Secret>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_text() {
        // By another program: printf %064d 0 | sha256sum.
        let secret: Secret = "0".repeat(64).parse().unwrap();
        let expected = "60e05bd1b195af2f94112fa7197a5c88289058840ce7c6df9693756bc6250f55";
        assert_eq!(Some(secret.hash()), parse_hex(expected));
    }

    #[test]
    fn no_two_random_secrets_are_alike() {
        let secrets = [0; 8].map(|_| Secret::random().unwrap());
        for (at, secret) in secrets.iter().enumerate() {
            assert!(!secrets[..at].contains(secret));
            assert_ne!(secret.to_string(), "0".repeat(64));
        }
    }
}
