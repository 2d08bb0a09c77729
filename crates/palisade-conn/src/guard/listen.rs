//! The methods that put listeners, connections and services under a guard.

use super::ConnGuard;
use crate::{
    accept::{
        admission::{self, AdmitError},
        bind::BindOptions,
        listener::{GuardedListener, Listener},
    },
    io::{guarded::GuardedIo, transport::Transport},
    track::layer::RequestTrackingLayer,
};
use palisade_core::Mode;
use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};
use tokio::net::{TcpListener, ToSocketAddrs, lookup_host};

impl ConnGuard {
    /// Listens on the first of the addresses that works. Up to 1,024 connections may wait to be
    /// accepted.
    ///
    /// # Errors
    ///
    /// If no address works, the error of the last one.
    pub async fn bind(
        &self,
        address: impl ToSocketAddrs,
    ) -> io::Result<GuardedListener<TcpListener>> {
        self.bind_with(address, BindOptions::new()).await
    }

    /// Listens as [`Self::bind`] does, with other options. All listeners of one guard share its
    /// limits.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::bind`], and an error if an option is out of its range.
    pub async fn bind_with(
        &self,
        address: impl ToSocketAddrs,
        options: BindOptions,
    ) -> io::Result<GuardedListener<TcpListener>> {
        let mut last_error = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        for address in lookup_host(address).await? {
            match options.bind(address) {
                Ok(listener) => {
                    let backlog = options.effective_backlog();
                    return Ok(GuardedListener::new(listener, self, backlog));
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Guards the connections that `listener` accepts. Several listeners may share one guard.
    pub fn listen<L: Listener>(&self, listener: L) -> GuardedListener<L> {
        GuardedListener::new(listener, self, None)
    }

    /// Returns the layer that reports the requests of connections to this guard. Place it outside
    /// everything that answers requests. From then on, a new connection without a reported request
    /// counts as one without a complete request head.
    pub fn track_requests(&self) -> RequestTrackingLayer {
        if self.shared().limits.mode != Mode::Off {
            self.shared().is_tracked.store(true, Relaxed);
        }
        RequestTrackingLayer::new(self.shared())
    }

    /// Admits a connection that was accepted by other means. `peer` is `None` if the address does
    /// not tell clients apart. Call it inside a tokio runtime with its timer enabled.
    ///
    /// # Errors
    ///
    /// If the connection is refused, an [`io::Error`] of kind
    /// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) with a
    /// [`Violation`](palisade_core::Violation) inside. The connection has been reset and dropped.
    pub fn admit<T: Transport>(
        &self,
        io: T,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
    ) -> io::Result<GuardedIo<T>> {
        let shared = self.shared();
        let conn = shared.connection(peer, local);
        let has_peer = peer.is_some();
        let result = admission::check_rate(shared, &conn, has_peer)
            .map_err(AdmitError::Refused)
            .and_then(|()| admission::admit(shared, &conn, has_peer, true));
        match result {
            Ok(permit) => Ok(GuardedIo::new(io, permit)),
            Err(error) => {
                io.reset_on_close();
                let violation = admission::report_refusal(shared, error, &conn);
                Err(io::Error::new(io::ErrorKind::ConnectionRefused, violation))
            }
        }
    }
}

/// Guards the listener with all options at their defaults.
impl<L: Listener> From<L> for GuardedListener<L> {
    fn from(listener: L) -> Self {
        ConnGuard::default().listen(listener)
    }
}
