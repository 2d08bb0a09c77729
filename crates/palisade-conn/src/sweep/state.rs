//! What the sweeper remembers of a connection.

use palisade_core::Phase;

/// What the sweeper keeps of a connection from one sweep to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SweepState {
    /// The number of the phase whose deadline runs; see [`encode_phase`].
    pub(crate) phase: u8,
    /// Whether the writer was asked whether it still writes the bytes that wait.
    pub(crate) asked: bool,
    /// Whether there are overhead bytes that are not paid for yet.
    pub(crate) in_debt: bool,
    /// Whether they exceed the limit.
    pub(crate) over_budget: bool,
    /// When the latest progress was: the low half of the guard's milliseconds, which is enough for
    /// 24 days.
    pub(crate) since: u32,
    /// What must not change for the phase to be the same.
    pub(crate) seen: u32,
    /// The low half of the number of bytes read by then.
    pub(crate) read: u32,
    /// The low half of the number of bytes written by then.
    pub(crate) written: u32,
    /// When a byte of those that wait was last taken, plus one millisecond; 0 if none wait.
    pub(crate) blocked_since: u32,
    /// The low half of the number of bytes written by then.
    pub(crate) written_blocked: u32,
    /// How many seconds ago that was, at most 255; 0 if none wait.
    pub(crate) stalled: u8,
    /// Where the budget of overhead bytes begins.
    pub(crate) mark: u32,
}

/// The phase number of a connection that was asked to close and is still open.
pub(crate) const CLOSE_PENDING_PHASE: u8 = 0x1f;

/// Returns the number of a phase. Numbers begin at 1: 0 is a connection that has not been swept.
pub(crate) fn encode_phase(phase: Phase) -> u8 {
    const { assert!(Phase::ALL.len() < CLOSE_PENDING_PHASE as usize) };
    phase as u8 + 1
}

/// Returns the milliseconds from `then` to `now`. Exact within 24 days: no deadline is longer.
pub(crate) fn millis_since(then: u32, now: u64) -> u64 {
    ((now as u32).wrapping_sub(then) as i32).max(0) as u64
}
