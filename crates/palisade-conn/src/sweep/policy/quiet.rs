//! Connections on which nothing happens, recognised in a few instructions.

use super::{
    super::state::{SweepState, encode_phase, millis_since},
    goaway_grace,
};
use crate::{
    connection::stats::IdleStats,
    guard::limits::{KEPT_IDLE_MILLIS, Limits},
};
use palisade_core::Phase;

/// One early cancellation is forgiven in this time: 20 a second.
const FORGIVEN_MILLIS: u64 = 50;

/// Returns whether nothing has happened on an idle connection since it became idle, and nothing is
/// due at its `age`. Then [`evaluate`](super::evaluate) would return
/// [`Action::Keep`](super::Action::Keep) and the same state.
#[inline]
pub(crate) fn is_quiet(
    limits: &Limits,
    now: u64,
    age: u64,
    stats: &IdleStats,
    state: &SweepState,
) -> bool {
    let is_unchanged = state.phase == encode_phase(Phase::Idle)
        && state.seen == stats.requests
        && state.read == stats.read as u32
        && state.written == stats.written as u32
        && state.blocked_since == 0;
    is_unchanged
        && !state.in_debt
        && millis_since(state.since, now) < limits.idle - goaway_grace(limits.idle)
        && limits.is_young(age)
}

/// Returns whether nothing has been in flight for a while on a connection that had a request: it
/// is one of those that its client keeps.
#[inline]
pub(crate) fn is_kept_idle(state: &SweepState, now: u64) -> bool {
    let idle = [Phase::Idle, Phase::NextHead].map(encode_phase);
    idle.contains(&state.phase) && millis_since(state.since, now) >= KEPT_IDLE_MILLIS
}

/// Returns how many early cancellations are forgiven between the previous sweep, `passed`
/// milliseconds ago, and now.
pub(crate) fn forgiven_cancellations(now: u64, passed: u64) -> u16 {
    let before = now.saturating_sub(passed);
    u16::try_from(now / FORGIVEN_MILLIS - before / FORGIVEN_MILLIS).unwrap_or(u16::MAX)
}
