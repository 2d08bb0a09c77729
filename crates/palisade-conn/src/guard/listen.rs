//! The methods that put listeners, connections and services under a guard.

use super::ConnGuard;
use crate::{
    accept::{
        admission::{self, AdmitError, Newcomer},
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
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::default();
    /// let mut listener = guard.bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// assert_eq!(guard.bind(address).await.unwrap_err().kind(), ErrorKind::AddrInUse);
    ///
    /// let client = TcpStream::connect(address).await?;
    /// let (io, peer) = listener.accept().await?;
    /// assert_eq!(peer, client.local_addr()?);
    /// assert_eq!(guard.snapshot().open, 1);
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
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
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{BindOptions, ConnGuard};
    ///
    /// let guard = ConnGuard::default();
    /// let options = BindOptions::new().backlog(4096);
    /// let listener = guard.bind_with("127.0.0.1:0", options).await?;
    /// assert_ne!(listener.local_addr()?.port(), 0);
    ///
    /// let error = guard.bind_with("127.0.0.1:0", options.backlog(0)).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidInput);
    /// assert_eq!(error.to_string(), "backlog is 0, allowed is at least 1");
    /// # Ok(())
    /// # }
    /// ```
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
            match options.bind(address, self.shared().limits.receive_buffer) {
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
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::default();
    /// let mut public = guard.listen(TcpListener::bind("127.0.0.1:0").await?);
    /// let mut internal = guard.listen(TcpListener::bind("127.0.0.1:0").await?);
    /// let _client = TcpStream::connect(public.local_addr()?).await?;
    /// let _other_client = TcpStream::connect(internal.local_addr()?).await?;
    /// let open = [public.accept().await?, internal.accept().await?];
    /// assert_eq!(guard.snapshot().open, 2); // One guard, one cap.
    /// # drop(open);
    /// # Ok(())
    /// # }
    /// ```
    pub fn listen<L: Listener>(&self, listener: L) -> GuardedListener<L> {
        GuardedListener::new(listener, self, None)
    }

    /// Returns the layer that reports the requests of connections to this guard. Place it outside
    /// everything that answers requests. From then on, a new connection without a reported request
    /// counts as one without a complete request head.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::default();
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, None, None)?;
    /// let mut app = guard.track_requests().layer(service_fn(hello));
    /// let mut request = Request::new(String::new());
    /// request.extensions_mut().insert(io.conn().info()); // tonic does this.
    /// let response = app.call(request).await?;
    /// assert_eq!((io.conn().requests(), guard.snapshot().in_flight), (1, 1));
    /// drop(response);
    /// assert_eq!(guard.snapshot().in_flight, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn track_requests(&self) -> RequestTrackingLayer {
        if self.shared().limits.mode != Mode::Off {
            self.shared().is_tracked.store(true, Relaxed);
        }
        RequestTrackingLayer::new(self.shared())
    }

    /// Admits a connection that was accepted by other means. `peer` is `None` if the address does
    /// not tell clients apart. Call it inside a tokio runtime with its timer enabled.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    /// use palisade_core::Violation;
    /// use std::io::ErrorKind;
    ///
    /// let guard = ConnGuard::builder().accept_rate((1, 1)).accept_rate_per_network(None).build()?;
    /// let ((_client, first), (mut client, second)) = (pair().await?, pair().await?);
    /// let peer = Some("192.0.2.1:4711".parse()?);
    /// let io = guard.admit(first, peer, None)?;
    /// let error = guard.admit(second, peer, None).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    /// let violation = Violation::from_error(&error).ok_or("another error")?;
    /// assert_eq!(violation.reason, Reason::AcceptRate);
    /// assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
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
        let result = admission::check_rate(shared, &conn)
            .map_err(AdmitError::Refused)
            .and_then(|()| admission::admit(shared, &conn, Newcomer::of(peer), true));
        match result {
            Ok(permit) => Ok(GuardedIo::new(io, permit, false)),
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
