//! TLS between a socket and what is sent on it, with the feature `rustls`.
//!
//! No certificate is verified, and no signature. The drill attacks loopback, where nothing comes
//! between it and the server; it sends nothing that is secret there; and the certificate of a
//! server under test is commonly self-signed, expired, or of another name. Each handshake is a
//! whole one: no session is resumed, so that each costs the server the same.

#[cfg(not(feature = "rustls"))]
mod absent;
#[cfg(feature = "rustls")]
mod client;

#[cfg(not(feature = "rustls"))]
pub(crate) use absent::{Tls, TlsStream, hint, is_name, socket};
#[cfg(feature = "rustls")]
pub(crate) use client::{Tls, TlsStream, hint, is_name, socket};

#[cfg(test)]
#[cfg(feature = "rustls")]
pub(crate) mod tests;
