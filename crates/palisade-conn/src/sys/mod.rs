//! Figures that the operating system provides.

#[cfg(target_os = "linux")]
pub(crate) mod accept_queue;
