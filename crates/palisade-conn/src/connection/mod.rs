//! A connection: its identity, its state, and its place among the others.

pub(crate) mod decision;
pub(crate) mod in_flight;
#[cfg(all(test, palisade_loom))]
mod loom;
pub(crate) mod memory_gate;
pub(crate) mod permit;
pub(crate) mod registry;
pub(crate) mod state;
pub(crate) mod stats;
pub(crate) mod totals;
mod wakers;

use palisade_core::{ConnInfo, Prefix, Reason};
use state::ConnState;
use std::{
    fmt,
    net::SocketAddr,
    ops::Deref,
    sync::{Arc, Weak},
};
use totals::ConnTotals;

/// A guarded connection, for the server that serves it. Cheap to clone.
///
/// It dereferences to the [`ConnInfo`] that layers and handlers see. What it has beyond that is for
/// a server of your own: `palisade::serve`, `connected` and the tonic integration call it for you.
/// Only the guard closes a connection: see [`ConnGuard::close`](crate::ConnGuard::close).
#[derive(Clone)]
pub struct ConnHandle(Arc<ConnInfo<ConnState>>);

/// A handle that does not keep the connection's state in memory.
pub(crate) struct WeakConnHandle(Weak<ConnInfo<ConnState>>);

// === ConnHandle ===

impl ConnHandle {
    pub(crate) fn new(
        peer: SocketAddr,
        local: Option<SocketAddr>,
        prefix: Prefix,
        totals: Option<Arc<ConnTotals>>,
    ) -> Self {
        let state = ConnState::with_totals(totals);
        Self(Arc::new(ConnInfo::with_state(peer, local, prefix, state)))
    }

    /// Returns the `Arc` that belongs in the extensions of each request on the connection.
    /// [`RequestTracking`](crate::RequestTracking) inserts it.
    pub fn info(&self) -> Arc<ConnInfo> {
        self.0.clone()
    }

    /// Tells the guard that every request of the connection will be reported. Until the first one
    /// the [timeout of the first request](crate::ConnGuardBuilder::first_request_timeout) applies.
    pub fn set_tracked(&self) {
        self.state().set_tracked();
    }

    /// Tells the guard that the server sends GOAWAY once the connection is
    /// [closing](Self::closing).
    pub fn set_goaway(&self) {
        self.state().set_goaway();
    }

    /// Lets the client close its own direction and wait for the response. Without it a client that
    /// does so has hung up.
    pub fn allow_half_close(&self) {
        self.state().allow_half_close();
    }

    /// Reports that the connection carries one more tunnel: a WebSocket or CONNECT over HTTP/2.
    ///
    /// # Errors
    ///
    /// If more connections would be upgraded than
    /// [`max_upgraded`](crate::ConnGuardBuilder::max_upgraded) allows: the limit, and the number
    /// there would be.
    pub fn upgrade(&self) -> Result<(), (u64, u64)> {
        self.state().upgrade(self.known_client())
    }

    /// Reports that the last tunnel has ended.
    pub fn end_upgrade(&self) {
        self.state().end_upgrade(self.known_client());
    }

    /// Returns why the connection is to take no more requests, if it is not. The tasks that read
    /// and write the connection are woken when that changes.
    #[inline]
    pub fn closing(&self) -> Option<Reason> {
        self.state().closing()
    }

    /// Returns whether the client has sent anything.
    #[inline]
    pub fn has_read(&self) -> bool {
        self.state().has_read()
    }

    /// Returns whether the connection has become, or carries, something other than HTTP.
    pub fn is_upgraded(&self) -> bool {
        self.state().is_upgraded()
    }

    /// Returns whether the socket has been dropped.
    pub fn is_closed(&self) -> bool {
        self.state().is_closed()
    }

    /// Returns the number of request heads so far.
    #[inline]
    pub fn requests(&self) -> u32 {
        self.state().requests()
    }

    #[inline]
    pub(crate) fn state(&self) -> &ConnState {
        self.0.state()
    }

    /// Begins a request on the connection.
    #[cfg(test)]
    pub(crate) fn begin_request(&self, http2: bool) -> in_flight::InFlight {
        in_flight::InFlight::begin(self.info(), http2).expect("the connection is guarded")
    }

    pub(crate) fn downgrade(&self) -> WeakConnHandle {
        WeakConnHandle(Arc::downgrade(&self.0))
    }
}

impl Deref for ConnHandle {
    type Target = ConnInfo;

    #[inline]
    fn deref(&self) -> &ConnInfo {
        &*self.0
    }
}

impl fmt::Debug for ConnHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnHandle")
            .field("info", &self.0)
            .field("state", self.state())
            .finish()
    }
}

// === WeakConnHandle ===

impl WeakConnHandle {
    pub(crate) fn upgrade(&self) -> Option<ConnHandle> {
        self.0.upgrade().map(ConnHandle)
    }
}
