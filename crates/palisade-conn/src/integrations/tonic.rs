//! The integration with tonic's `serve_with_incoming`.

use crate::{
    accept::listener::{GuardedListener, Listener},
    io::{guarded::GuardedIo, transport::Transport},
};
use futures_core::Stream;
use palisade_core::ConnInfo;
use std::{
    hash::{BuildHasher, RandomState},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tonic::transport::{Server, server::Connected};

/// Sets the limits of HTTP/2 that a tonic server does not set by itself.
///
/// | | tonic | hardened |
/// |---|---|---|
/// | requests in flight on one connection | no limit | 100 |
/// | streams that are reset for errors of the client, in the life of a connection | no limit | 1,024, then GOAWAY (`MadeYouReset`, CVE-2025-8671) |
/// | streams that the client resets before a handler gets them | 20 | 20, then GOAWAY (Rapid Reset, CVE-2023-44487) |
/// | bytes of one request, and of a connection, that are received before they are read | 1 MiB | 256 KiB, 512 KiB |
/// | header fields of one request | 16 KiB | 32 KiB, as much as an HTTP/1 head under `palisade::serve` |
/// | age of a connection | no limit | 44 to 52 minutes, the same in one process, then GOAWAY |
///
/// The age is below the guard's [`max_age`](crate::ConnGuardBuilder::max_age), an hour give or take
/// a tenth. At this age, requests in flight continue to their end, and the client begins no more.
/// If you set `max_age`, set `max_connection_age` below it. tonic gives all connections the same
/// age, so those that were opened together are closed together. The age is chosen at random in each
/// process.
///
/// Values that are set on the returned server replace these. tonic has no setting for the part of a
/// response that it keeps for a client that does not read: 400 KiB and one piece for each stream.
/// If that is too much, serve the `Routes` with `palisade::serve`, which keeps 64 KiB.
///
/// tonic's `tcp_nodelay` and `tcp_keepalive` have no effect on the connections of a custom
/// listener. The guarded listener sets both by itself.
///
/// ```
/// use palisade_conn::{ConnGuard, harden};
/// use tonic::transport::Server;
/// # use palisade_testkit::{demo::{Piece, echo_client::EchoClient, echo_server::EchoServer}, echo::Lengths};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let guard = ConnGuard::default();
/// let listener = guard.bind("127.0.0.1:0").await?;
/// # let url = format!("http://{}", listener.local_addr()?);
/// let server = harden(Server::builder())
///     .layer(guard.track_requests())
///     .add_service(EchoServer::new(Lengths))
///     .serve_with_incoming(listener);
/// # tokio::spawn(server);
/// # let answer = EchoClient::connect(url).await?.unary(Piece { data: b"four".as_slice().into() }).await?;
/// # assert_eq!(answer.get_ref().bytes, 4);
/// # Ok(())
/// # }
/// ```
pub fn harden<L>(server: Server<L>) -> Server<L> {
    server
        .max_concurrent_streams(100)
        .http2_max_local_error_reset_streams(Some(1024))
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(512 * 1024)
        .http2_max_header_list_size(32 * 1024)
        .max_connection_age(Duration::from_secs(
            60 * (44 + RandomState::new().hash_one(()) % 9),
        ))
}

/// tonic puts the connection into the extensions of each request. Its own `remote_addr()` does not
/// find the address there: [`RequestTrackingLayer`](crate::RequestTrackingLayer) adds it.
impl<T: Transport> Connected for GuardedIo<T> {
    type ConnectInfo = Arc<ConnInfo>;

    fn connect_info(&self) -> Arc<ConnInfo> {
        self.conn().info()
    }
}

/// An endless stream of admitted connections, with the errors of [`GuardedListener::accept`]. tonic
/// polls it again after an error.
impl<L: Listener + Unpin> Stream for GuardedListener<L>
where
    L::Io: Unpin,
{
    type Item = io::Result<GuardedIo<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(cx).map_ok(|(io, _)| io).map(Some)
    }
}
