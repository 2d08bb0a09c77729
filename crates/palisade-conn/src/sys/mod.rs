//! What the operating system tells.

#[cfg(target_os = "linux")]
pub(crate) mod accept_queue;
pub(crate) mod memory;
