//! What the guards did.
#![forbid(unsafe_code)]

mod levels;
mod prometheus;
mod series;
mod snapshot;

pub use snapshot::Snapshot;
