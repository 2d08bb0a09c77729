//! Test support for palisade's tests and examples. Never published.
//!
//! Everything here uses loopback only. Servers end when they are dropped, and every wait of a
//! client has a timeout.

pub mod alloc;
pub mod bodies;
pub mod clients;
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod demo;
pub mod echo;
mod journal;
pub mod line;
pub mod process;
pub mod servers;

pub use journal::Journal;
