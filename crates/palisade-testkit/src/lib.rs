//! Test support for palisade's tests and examples. Never published.
//!
//! Everything here uses loopback only. Servers end when they are dropped, and every wait of a
//! client has a timeout.

pub mod alloc;
pub mod bodies;
pub mod clients;
#[allow(clippy::unwrap_used, reason = "test support may panic")]
pub mod contract;
pub mod cpu;
pub mod cpu_group;
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod demo;
pub mod doc;
pub mod echo;
pub mod example;
#[allow(missing_docs, clippy::unwrap_used, reason = "test support may panic")]
pub mod guarded;
#[allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "names of RFC 9113; test support may panic"
)]
pub mod h2;
mod journal;
pub mod line;
pub mod memory_group;
#[allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "names of counts; test support may panic"
)]
pub mod open_loop;
pub mod process;
#[cfg(unix)]
#[allow(clippy::unwrap_used, reason = "test support may panic")]
pub mod redis;
#[allow(clippy::unwrap_used, reason = "test support may panic")]
pub mod server_process;
pub mod servers;

pub use journal::Journal;
