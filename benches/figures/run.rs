//! What is measured.

/// Runs the given number of requests.
pub(crate) type Run = Box<dyn FnMut(usize)>;
