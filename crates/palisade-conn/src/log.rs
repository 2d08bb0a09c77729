//! What this crate logs by itself, with the feature `tracing`: each once.

use crate::{connection::ConnHandle, guard::limits::Limits};
use palisade_core::{Event, Recorder, Violation};
#[cfg(feature = "tracing")]
use palisade_core::{Guard, Reason};
#[cfg(feature = "tracing")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[cfg(feature = "tracing")]
pub(crate) fn cap(limits: &Limits) {
    let Limits {
        connections,
        connections_from,
        per_client,
        per_network,
        ..
    } = limits;
    tracing::info!(
        target: "palisade",
        connections,
        from = %connections_from,
        per_client,
        per_network,
        "how many connections there may be",
    );
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn cap(_: &Limits) {}

/// A client on this machine was refused for its share or its rate: perhaps a load test. Said once in
/// a process.
#[cfg(feature = "tracing")]
pub(crate) fn refused_locally(violation: &Violation, conn: &ConnHandle) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    let is_of_one = matches!(
        violation.reason,
        Reason::AcceptRate | Reason::ClientConnectionsFull | Reason::NetworkConnectionsFull
    );
    if is_of_one && conn.peer().ip().to_canonical().is_loopback() && !IS_SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: "palisade",
            guard = Guard::Connection.as_str(),
            reason = violation.reason.as_str(),
            "connections from this machine are refused for the share of one client: for a load test \
             set `no_accept_rate()` and `no_max_per_client()` on `ConnGuard::builder()`, or \
             `reserve` places for its address",
        );
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn refused_locally(_: &Violation, _: &ConnHandle) {}

/// Nobody tells of the requests on so many connections.
pub(crate) fn untracked(recorder: &Recorder, connections: usize) {
    recorder.record(|| Event::untracked(connections));
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "palisade",
        guard = Guard::Connection.as_str(),
        connections,
        "clients send and nobody tells of a request, so that no idle connection can be told from one \
         at work: serve `connected(app)`, or put `guard.track_requests()` around everything",
    );
}

/// So many of a hundred requests say that a proxy forwarded them.
pub(crate) fn forwarded(recorder: &Recorder, percent: u32) {
    recorder.record(|| Event::forwarded(percent));
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "palisade",
        guard = Guard::Connection.as_str(),
        percent,
        "most requests say that a proxy forwarded them: if those of `clients` in the snapshot are proxies of \
         yours, choose `Stack::behind_proxy()` and `ConnGuardBuilder::behind_proxy()`; if not, it is a flood \
         that says so",
    );
}
