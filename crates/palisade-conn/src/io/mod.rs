//! The guarded socket.

pub(crate) mod frames;
pub(crate) mod guarded;
pub(crate) mod transport;
