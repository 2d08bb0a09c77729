//! Accepting connections.

pub(crate) mod admission;
pub(crate) mod bind;
pub(crate) mod listener;
