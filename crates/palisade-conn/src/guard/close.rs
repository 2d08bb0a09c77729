//! Closes connections and reports each close.

use super::{recent::ClosedConn, shared::Shared};
use crate::{
    connection::{ConnHandle, decision::CloseRequest},
    log,
};
use palisade_core::{Event, Mode, Phase, Reason, Violation};
use std::sync::atomic::Ordering::Relaxed;

/// Closes the connection, unless a close has been decided. Returns whether this was the first
/// decision. In shadow mode the close is only reported, once, unless the server itself shuts down.
pub(crate) fn close(shared: &Shared, conn: &ConnHandle, request: CloseRequest) -> bool {
    let reason = request.reason;
    let mode = match (shared.limits.mode, reason) {
        (Mode::Off, _) => return false,
        (_, Reason::Shutdown) => Mode::Enforce,
        (mode, _) => mode,
    };
    let state = conn.state();
    let is_first = if mode == Mode::Enforce {
        // Count before the decision: the socket uncounts the connection when it is dropped.
        if state.set_close_pending() {
            shared.close_pending.fetch_add(1, Relaxed);
        }
        let is_first = state.request_close(request.decision());
        if state.is_closed() && state.take_close_pending() {
            shared.close_pending.fetch_sub(1, Relaxed);
        }
        is_first
    } else {
        !state.swap_shadowed()
    };
    let was_announced = matches!(reason, Reason::Idle | Reason::CancelledRequests)
        && state.closing() == Some(reason);
    if is_first && !was_announced {
        report(shared, &request.violation(), mode, conn);
    }
    is_first
}

/// Lets the connection take no more requests, of which the server tells its client, and reports a
/// close for this reason.
pub(crate) fn announce(shared: &Shared, conn: &ConnHandle, request: CloseRequest) {
    let state = conn.state();
    let is_first = match shared.limits.mode {
        Mode::Off => false,
        Mode::Shadow => !state.swap_shadowed(),
        Mode::Enforce => state.begin_closing(request.reason),
    };
    if is_first {
        report(shared, &request.violation(), shared.limits.mode, conn);
    }
}

/// Reports a connection that is closed or refused, or would be in shadow mode.
pub(crate) fn report(shared: &Shared, violation: &Violation, mode: Mode, conn: &ConnHandle) {
    if violation.phase == Phase::Accept && mode == Mode::Enforce {
        shared.refused.fetch_add(1, Relaxed);
        log::refused_locally(violation, conn);
    }
    shared
        .recorder
        .record(|| Event::disconnected(violation, mode, conn));
    shared
        .recently_closed
        .add(ClosedConn::new(violation, mode, conn));
}
