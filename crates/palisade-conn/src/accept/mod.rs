//! Accepting connections.

pub(crate) mod admission;
pub(crate) mod bind;
pub(crate) mod listener;
pub(crate) mod proxied;
