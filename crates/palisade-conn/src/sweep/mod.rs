//! The sweeper: the one task that looks at every connection several times a second.

pub(crate) mod cut;
pub(crate) mod handle;
pub(crate) mod memory_growth;
pub(crate) mod policy;
pub(crate) mod scaled_timeouts;
pub(crate) mod state;
pub(crate) mod task;
pub(crate) mod untracked;
