//! The log lines of this crate, with the feature `tracing`. Each is logged at most once.

use crate::{
    connection::ConnHandle,
    guard::{bound::MemoryBound, limits::Limits},
};
use palisade_client_ip::ProxyHeaderError;
use palisade_core::{Event, Mode, Recorder, Violation};
#[cfg(feature = "tracing")]
use palisade_core::{Guard, Reason};
#[cfg(feature = "tracing")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Logs the cap and its origin when a guard is created.
#[cfg(feature = "tracing")]
pub(crate) fn connection_cap(limits: &Limits) {
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
        "connection limits of a guard",
    );
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn connection_cap(_: &Limits) {}

/// Logs the bound of the memory when a guard is created that enforces it.
#[cfg(feature = "tracing")]
pub(crate) fn memory_bound(mode: Mode, bound: &MemoryBound) {
    if mode == Mode::Enforce {
        tracing::info!(target: "palisade", %bound, "memory of a server behind a guard");
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn memory_bound(_: Mode, _: &MemoryBound) {}

/// Warns once per process that a client on this machine was refused for its share or its rate: it
/// may be a load test.
#[cfg(feature = "tracing")]
pub(crate) fn refused_locally(violation: &Violation, conn: &ConnHandle) {
    static IS_LOGGED: AtomicBool = AtomicBool::new(false);
    let is_limit_per_client = matches!(
        violation.reason,
        Reason::AcceptRate | Reason::ClientConnectionsFull | Reason::NetworkConnectionsFull
    );
    if is_limit_per_client
        && conn.peer().ip().to_canonical().is_loopback()
        && !IS_LOGGED.swap(true, Relaxed)
    {
        tracing::warn!(
            target: "palisade",
            guard = Guard::Connection.as_str(),
            reason = violation.reason.as_str(),
            "connections from this machine are refused, because they exceed the share or the rate \
             of one client: for a load test set `accept_rate(None)` and `max_per_client(None)` on \
             `ConnGuard::builder()`, or `reserve` places for its address",
        );
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn refused_locally(_: &Violation, _: &ConnHandle) {}

/// Warns once per process that a proxy sent no valid PROXY header.
#[cfg(feature = "tracing")]
pub(crate) fn proxy_header(error: ProxyHeaderError, conn: &ConnHandle) {
    static IS_LOGGED: AtomicBool = AtomicBool::new(false);
    if !IS_LOGGED.swap(true, Relaxed) {
        tracing::warn!(
            target: "palisade",
            guard = Guard::Connection.as_str(),
            peer = %conn.peer(),
            %error,
            "a proxy did not begin its connection with a valid header of the PROXY protocol, so \
             the connection was reset: let the proxy send the header, or take it out of the \
             networks of `ConnGuard::builder().proxy_protocol(networks)`",
        );
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn proxy_header(_: ProxyHeaderError, _: &ConnHandle) {}

/// Reports that the requests of this many connections are not reported to the guard.
pub(crate) fn untracked(recorder: &Recorder, connections: usize) {
    recorder.record(|| Event::untracked(connections));
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "palisade",
        guard = Guard::Connection.as_str(),
        connections,
        "clients send data but no request is reported, so idle connections cannot be told from \
         working ones: serve `connected(app)`, or put the layer of `guard.track_requests()` around \
         the whole service",
    );
}

/// Reports that this percentage of the requests have the headers of a proxy.
pub(crate) fn forwarded(recorder: &Recorder, percent: u32) {
    recorder.record(|| Event::forwarded(percent));
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "palisade",
        guard = Guard::Connection.as_str(),
        percent,
        "most requests have the headers of a proxy: if `clients` in the snapshot are proxies of \
         yours, use `Stack::behind_proxy()`, and `ConnGuard::builder().behind_proxy()` with \
         `.trust(Trust::networks(..))`, without which no client is limited; if not, a flood sends \
         these headers",
    );
}
