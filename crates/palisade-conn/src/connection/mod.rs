//! A connection: its identity, its state, and its place among the others.

pub(crate) mod decision;
pub(crate) mod in_flight;
#[cfg(all(test, palisade_loom))]
mod loom;
pub(crate) mod memory_gate;
pub(crate) mod permit;
pub(crate) mod registry;
pub(crate) mod response_charge;
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
        let trust = totals.as_ref().and_then(|totals| totals.trust.as_ref());
        let is_proxy = trust.is_some_and(|trust| trust.is_proxy(peer.ip()));
        let info = ConnInfo::with_state(peer, local, prefix, ConnState::with_totals(totals));
        Self(Arc::new(if is_proxy { info.of_proxy() } else { info }))
    }

    /// Returns the same connection as that of a proxy. For a new connection, which is not shared.
    pub(crate) fn of_proxy(self) -> Self {
        Self::of_info(self.0, ConnInfo::of_proxy)
    }

    /// Returns the same connection as one of which a PROXY header has named the peer. For a new
    /// connection, which is not shared.
    pub(crate) fn of_proxied(self) -> Self {
        Self::of_info(self.0, ConnInfo::of_proxied)
    }

    /// Returns this connection with the number of `before`. For a new connection, which is not
    /// shared.
    pub(crate) fn continues(self, before: &Self) -> Self {
        Self::of_info(self.0, |info| info.continues(&before.0))
    }

    fn of_info(
        info: Arc<ConnInfo<ConnState>>,
        change: impl FnOnce(ConnInfo<ConnState>) -> ConnInfo<ConnState>,
    ) -> Self {
        Self(match Arc::try_unwrap(info) {
            Ok(info) => Arc::new(change(info)),
            Err(shared) => shared,
        })
    }

    /// Returns the `Arc` that belongs in the extensions of each request on the connection.
    /// [`RequestTracking`](crate::RequestTracking) inserts it.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http::Request;
    /// use palisade_conn::{ConnGuard, ConnInfo};
    ///
    /// let guard = ConnGuard::default();
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, Some("192.0.2.1:4711".parse()?), None)?;
    /// let mut request = Request::new(());
    /// request.extensions_mut().insert(io.conn().info());
    /// // Layers and handlers find it there.
    /// let info = ConnInfo::from_extensions(request.extensions()).ok_or("no connection")?;
    /// assert_eq!(info.peer(), "192.0.2.1:4711".parse()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn info(&self) -> Arc<ConnInfo> {
        self.0.clone()
    }

    /// Tells the guard that every request of the connection will be reported. Until the first one
    /// the [timeout of the first request](crate::ConnGuardBuilder::first_request_timeout) applies.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::default();
    /// let (mut client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// io.conn().set_tracked();
    /// client.write_u8(b'x').await?; // Without tracking it would count as at work from now on.
    /// io.read_u8().await?;
    /// assert_eq!(io.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::FirstRequest);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_tracked(&self) {
        self.state().set_tracked();
    }

    /// Tells the guard that the server sends GOAWAY once the connection is
    /// [closing](Self::closing).
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().idle_timeout(Duration::from_secs(60)).build()?;
    /// // Two HTTP/2 connections. A request was answered on each.
    /// let (_client, told, mut service) = tracked(&guard, hello).await?;
    /// let (_other_client, untold, mut other) = tracked(&guard, hello).await?;
    /// service.call(request(Version::HTTP_2)).await?;
    /// other.call(request(Version::HTTP_2)).await?;
    /// told.conn().set_goaway();
    /// while told.conn().closing().is_none() {
    ///     tokio::time::sleep(Duration::from_millis(50)).await; // Of tokio's paused clock.
    /// }
    /// // A second before the timeout, the server can send GOAWAY to the first one.
    /// assert_eq!(told.conn().closing(), Some(Reason::Idle));
    /// assert_eq!(untold.conn().closing(), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_goaway(&self) {
        self.state().set_goaway();
    }

    /// Lets the client close its own direction and wait for the response. Without it a client that
    /// does so has hung up.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(target_os = "linux"))] fn main() {}
    /// # #[cfg(target_os = "linux")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .probe_interval(Duration::from_millis(20))
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// // Two connections with a request at work. The clients have sent a FIN.
    /// let (mut client, mut io, mut service) = tracked(&guard, never).await?;
    /// let (mut other_client, mut other_io, mut other) = tracked(&guard, never).await?;
    /// io.conn().allow_half_close();
    /// client.shutdown().await?;
    /// other_client.shutdown().await?;
    /// let requests = [
    ///     service.call(Request::new(String::new())),
    ///     other.call(Request::new(String::new())),
    /// ];
    /// while guard.recently_closed().is_empty() {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    ///     io.flush().await?; // hyper polls a socket when the guard wakes its task.
    ///     let _ = other_io.flush().await;
    /// }
    /// let closed = guard.recently_closed();
    /// assert_eq!(closed.len(), 1);
    /// assert_eq!((closed[0].conn, closed[0].reason), (other_io.conn().id(), Reason::HungUp));
    /// # drop(requests);
    /// # Ok(())
    /// # }
    /// ```
    pub fn allow_half_close(&self) {
        self.state().allow_half_close();
    }

    /// Reports that the connection carries one more tunnel: a WebSocket or CONNECT over HTTP/2.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::builder().max_upgraded(1).build()?;
    /// // Two connections of one client.
    /// let peer = Some("192.0.2.1:4711".parse()?);
    /// let (_client, first) = pair().await?;
    /// let (_other_client, second) = pair().await?;
    /// let (first, second) = (guard.admit(first, peer, None)?, guard.admit(second, peer, None)?);
    /// assert_eq!(first.conn().upgrade(), Ok(()));
    /// assert!(first.conn().is_upgraded());
    /// assert_eq!(second.conn().upgrade(), Err((1, 2))); // The limit, and one more.
    /// first.conn().end_upgrade();
    /// assert_eq!(second.conn().upgrade(), Ok(()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If more connections would be upgraded than
    /// [`max_upgraded`](crate::ConnGuardBuilder::max_upgraded) allows: the limit, and the number
    /// there would be.
    pub fn upgrade(&self) -> Result<(), (u64, u64)> {
        self.state().upgrade(self, None)
    }

    /// Reports that the last tunnel has ended.
    pub fn end_upgrade(&self) {
        self.state().end_upgrade(self);
    }

    /// Returns why the connection is to take no more requests, if it is not. The tasks that read
    /// and write the connection are woken when that changes.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_age(Duration::from_secs(5)).build()?;
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, None, None)?;
    /// assert_eq!(io.conn().closing(), None);
    /// tokio::time::sleep(Duration::from_secs(6)).await;
    /// assert_eq!(io.conn().closing(), Some(Reason::MaxAge)); // Now send GOAWAY.
    /// assert!(!io.conn().is_closed());
    /// # Ok(())
    /// # }
    /// ```
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
        in_flight::InFlight::begin(self.info(), http2, None).expect("the connection is guarded")
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
