//! Consent of a server that is not on loopback: a line that the server publishes, for the holder of
//! a secret alone.
//!
//! `palisade-drill consent` prints a random [`Secret`], and a [`ConsentLine`] with the SHA-256 of
//! it and an end at most 24 hours ahead. The server answers `GET /.well-known/palisade-drill` with
//! the line, from the address and the port under attack. [`Drill::with_consent`] takes the secret:
//! a reader of the page does not hold it, and gets no permission from the page.
//!
//! ```
//! use palisade_drill::consent::{ConsentLine, Secret};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), palisade_drill::consent::ConsentError> {
//! let secret = Secret::random()?;
//! let line = ConsentLine::new(&secret, Duration::from_secs(3_600))?;
//! assert!(line.to_string().starts_with("palisade-drill v1 sha256="));
//! # Ok(())
//! # }
//! ```
//!
//! A server on axum or hyper publishes the line with a [`ConsentService`], any other as a file.
//!
//! [`Drill::with_consent`]: crate::Drill::with_consent

mod error;
mod fetch;
mod line;
mod permission;
mod secret;
mod service;
mod time;

pub use error::ConsentError;
pub use line::ConsentLine;
pub(crate) use permission::Consent;
pub use secret::Secret;
pub use service::ConsentService;
pub(crate) use time::Clock;

use std::time::Duration;

/// The path at which a server publishes its line.
pub const PATH: &str = "/.well-known/palisade-drill";
/// The longest time from now to the end of a consent.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests;
