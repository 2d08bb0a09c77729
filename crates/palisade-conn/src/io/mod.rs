//! The guarded socket and what it runs over.

pub(crate) mod frames;
pub(crate) mod guarded;
pub(crate) mod transport;
