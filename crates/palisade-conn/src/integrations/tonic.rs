//! Under tonic's `serve_with_incoming`.

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

/// tonic's server with the bounds of HTTP/2 that it leaves open by itself.
///
/// | | tonic | hardened |
/// |---|---|---|
/// | requests of one connection in flight | any number | 100 |
/// | streams that end by errors of the client's, over the life of a connection | any number | 1,024, then GOAWAY (`MadeYouReset`, CVE-2025-8671) |
/// | streams reset before a handler heard of them | 20 | 20, then GOAWAY (Rapid Reset, CVE-2023-44487) |
/// | bytes taken in of one request, and of a connection, before they are read | 1 MiB | 256 KiB, 512 KiB |
/// | header fields of one request | 16 KiB | 32 KiB, as much as a head of HTTP/1 in `palisade::serve` |
/// | age of a connection | any | 44 to 52 minutes, the same in a process, then GOAWAY |
///
/// The age is below the guard's [`max_age`](crate::ConnGuardBuilder::max_age) of an hour, give or
/// take a tenth: what is in flight comes to its end, and the client begins nothing more. Where you
/// set the one, set `max_connection_age` below it. tonic gives all connections the same age, so
/// those that came together go together; of several processes each has its own.
///
/// Whatever is set after it holds instead. tonic has no setting for how much of an answer is kept
/// for a client that does not read: it is 400 KiB and one piece for each stream. Where that is too
/// much, serve the `Routes` by `palisade::serve`, which keeps 64 KiB.
///
/// What tonic calls `tcp_nodelay` and `tcp_keepalive` does not reach a listener of one's own: the
/// guard's sets both by itself.
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

/// What tonic leaves in each request's extensions is the connection itself. tonic's own
/// `remote_addr()` knows nothing of that: [`RequestTrackingLayer`](crate::RequestTrackingLayer) tells it.
impl<T: Transport> Connected for GuardedIo<T> {
    type ConnectInfo = Arc<ConnInfo>;

    fn connect_info(&self) -> Arc<ConnInfo> {
        self.conn().info()
    }
}

/// Never ends. Fails as [`GuardedListener::accept`] does, after which tonic asks again.
impl<L: Listener + Unpin> Stream for GuardedListener<L>
where
    L::Io: Unpin,
{
    type Item = io::Result<GuardedIo<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(cx).map_ok(|(io, _)| io).map(Some)
    }
}
