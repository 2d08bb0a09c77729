//! What the tests, benches and examples of palisade share. Never published.
//!
//! Everything here talks to loopback only and ends by itself.

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
