//! How connections come under the guard.

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
    /// Listens on the first address that works, with room for 1,024 connections that wait to be
    /// accepted.
    ///
    /// # Errors
    ///
    /// If none of the addresses works: the error of the last one.
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
    /// As [`Self::bind`], and if an option is out of its range.
    pub async fn bind_with(
        &self,
        address: impl ToSocketAddrs,
        options: BindOptions,
    ) -> io::Result<GuardedListener<TcpListener>> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        for address in lookup_host(address).await? {
            match options.bind(address) {
                Ok(listener) => {
                    let backlog = options.effective_backlog();
                    return Ok(GuardedListener::new(listener, self, backlog));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Guards the connections that `listener` accepts. Several listeners may share one guard.
    pub fn listen<L: Listener>(&self, listener: L) -> GuardedListener<L> {
        GuardedListener::new(listener, self, None)
    }

    /// Returns the layer that reports to this guard the requests of its connections. It belongs
    /// around everything that the server answers. From now on a new connection without a request
    /// counts as one without a complete request head.
    pub fn track_requests(&self) -> RequestTrackingLayer {
        if self.shared().limits.mode != Mode::Off {
            self.shared().is_tracked.store(true, Relaxed);
        }
        RequestTrackingLayer::new(self.shared())
    }

    /// Admits a connection that was accepted by other means, from `peer` if its peers can be told
    /// apart. Call it inside a tokio runtime with its timer enabled.
    ///
    /// # Errors
    ///
    /// If there is no place for it: a [`Violation`](palisade_core::Violation) inside an
    /// [`io::Error`] of kind [`ConnectionRefused`](io::ErrorKind::ConnectionRefused). The
    /// connection has been reset and dropped then.
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
                let violation = admission::give_up(shared, error, &conn);
                Err(io::Error::new(io::ErrorKind::ConnectionRefused, violation))
            }
        }
    }
}

/// Guarded with every limit at its default.
impl<L: Listener> From<L> for GuardedListener<L> {
    fn from(listener: L) -> Self {
        ConnGuard::default().listen(listener)
    }
}
