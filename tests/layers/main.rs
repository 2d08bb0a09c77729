//! The layers in stacks, on real servers and in memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod browsers;
mod buffering;
mod compositions;
mod concurrency_limit;
mod load_shed;
mod stack;
mod stacked_guards;
mod timeouts;
