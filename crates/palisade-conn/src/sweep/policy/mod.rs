//! Connection policy: decides from a snapshot of a connection's counters whether it is kept,
//! closed or probed. Pure; the caller supplies the time.
//!
//! [`progress`] notes since when nothing has moved, [`rules`] compares that with the limits, and
//! [`quiet`] recognises in a few instructions the many connections that need neither.

pub(crate) mod progress;
pub(crate) mod quiet;
mod rules;
#[cfg(test)]
mod tests;

use super::state::SweepState;
use crate::{
    connection::{decision::CloseRequest, stats::ConnStats},
    guard::limits::{GOAWAY_GRACE_MILLIS, Limits},
};
use palisade_core::{Phase, Reason};

/// What the sweeper does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Keep,
    /// Let it take no more requests.
    BeginClosing(Reason),
    /// End the lingering.
    EndLingering,
    /// Check whether its client has hung up.
    Probe,
    /// Ask its writer whether it still writes.
    AskWriter,
    /// Ask its socket to look for bytes of the client.
    AskReader,
    /// Tell the client by GOAWAY to begin no more requests. The connection is closed for this
    /// reason, now or after a grace period.
    Announce(CloseRequest),
    /// Close it.
    Close(CloseRequest),
}

/// The times of one evaluation, in milliseconds of the guard, and what depends on them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweepTime {
    pub(crate) now: u64,
    /// The time since the previous sweep.
    pub(crate) passed: u64,
    /// When the connection was admitted.
    pub(crate) opened: u64,
    /// The age at which this connection is due to close.
    pub(crate) due_age: Option<u64>,
    /// How many idle connections one client may keep now.
    pub(crate) max_kept_idle: Option<u32>,
}

/// Returns what to do with a connection, and what to keep for the next sweep.
pub(crate) fn evaluate(
    limits: &Limits,
    time: SweepTime,
    stats: &ConnStats,
    closing: Option<Reason>,
    state: SweepState,
) -> (SweepState, Action) {
    let (mut state, phase, overhead) = progress::update(limits, time, stats, state);
    let action = rules::first_action(&rules::Subject {
        limits,
        time,
        phase,
        stats,
        closing,
        state: &state,
        overhead,
    });
    state.over_budget = limits
        .max_overhead
        .is_some_and(|max| overhead > u64::from(max));
    if stats.goaway && phase == Phase::Idle && matches!(action, Action::BeginClosing(_)) {
        // A connection that is idle already has its time from now on, to receive the GOAWAY.
        state.since = time.now as u32;
    }
    if action == Action::Keep && progress::is_stall_due_next(limits, time.now, stats, &state) {
        state.asked = true;
        return (state, Action::AskWriter);
    }
    (state, action)
}

/// Returns how long before the idle timeout GOAWAY is sent to an HTTP/2 client.
fn goaway_grace(idle: u64) -> u64 {
    GOAWAY_GRACE_MILLIS.min(idle / 2)
}
