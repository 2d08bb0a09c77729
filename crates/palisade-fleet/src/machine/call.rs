//! Calls of the store.

use super::request::Micros;
use crate::store::{Answers, Ask};

/// A batch to be sent.
#[derive(Debug)]
pub(crate) struct Flush {
    pub(crate) call: u64,
    pub(crate) shard: u32,
    pub(crate) asks: Vec<Ask>,
    /// Whether nodes are to be counted.
    pub(crate) counts_nodes: bool,
}

/// How a call has ended.
#[derive(Debug)]
pub(crate) enum Reply {
    Answers(Answers),
    /// It was not sent.
    Unsent,
    /// It has failed, and may have been charged.
    Failed,
    /// It took too long, and may be charged yet.
    TimedOut,
}

/// A call that is in flight.
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) items: Vec<Item>,
}

/// An account of a call.
pub(super) struct Item {
    pub(super) slot: u32,
    pub(super) admitted: u32,
    pub(super) asked: u32,
    /// The fewest cells that are of use.
    pub(super) fewest: u32,
    /// How many of them requests wait for.
    pub(super) needed: u32,
    /// When the debt is paid, if some of the cells were admitted alone, and else 0.
    pub(super) paid: Micros,
}
