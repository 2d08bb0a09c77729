//! What is wrong with a secret or a line.

use std::{error::Error, fmt};

/// What is wrong with a secret or a line.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsentError {
    /// The text is no line of consent.
    NoLine,
    /// The text is no secret.
    NoSecret,
    /// The consent would last for no time, or for longer than [`MAX_TIME`](super::MAX_TIME).
    Time,
    /// The system has no random numbers.
    Random,
}

impl fmt::Display for ConsentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLine => {
                "it is no line of consent: copy the whole line of `palisade-drill consent`"
            }
            Self::NoSecret => {
                "it is no secret of a drill: copy the 64 digits of `palisade-drill consent`"
            }
            Self::Time => "a consent lasts for at most 24 hours, and for a second at least",
            Self::Random => "the system has no random numbers: run it on another one",
        })
    }
}

impl Error for ConsentError {}
