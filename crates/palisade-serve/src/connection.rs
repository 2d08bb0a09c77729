//! One connection, from its first byte to its end.

use crate::{
    HttpService, Rewind,
    drain::DrainToken,
    framed::FrameObserver,
    held::HeldBytes,
    http::Protocol,
    refusal::{Refusal, RefusalReporter},
    server::Server,
    service::ConnService,
    sniff::Begins,
    streams::Streams,
};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use palisade_conn::{CloseMode, ConnHandle};
use palisade_core::Reason;
use pin_project_lite::pin_project;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

/// The time after GOAWAY in which a client may still begin requests, because it may not have read
/// the frame yet.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// The IO that hyper serves HTTP/1 on.
type Io<T> = TokioIo<Rewind<T>>;

pin_project! {
    /// Drives hyper's connection, and shuts it down when the guard or the server closes it. Returns
    /// the response that hyper itself sent at the end, if any.
    struct ServeConnection<'a, C> {
        #[pin]
        connection: C,
        conn: &'a ConnHandle,
        server: &'a Server,
        drain_token: &'a DrainToken,
        goaway_sent: Option<GoAwaySent>,
    }
}

/// The graceful shutdown of hyper's connection has begun: the client has been asked to begin no
/// more requests. An HTTP/2 client that acknowledges nothing can continue all the same.
struct GoAwaySent {
    at: Instant,
    /// The number of requests at the end of [`GOAWAY_GRACE`], once it is over.
    requests_in_grace: Option<u32>,
}

/// The common interface of hyper's connections.
trait HttpConnection {
    /// Whether the client can be asked to begin no more requests while some are in flight.
    const HAS_GOAWAY: bool;

    /// Drives the connection to its end. Returns the response that hyper itself sent then, if any.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>>;

    /// Lets the connection end after the requests in flight.
    fn begin_shutdown(self: Pin<&mut Self>);
}

/// Serves HTTP on one connection to its end. An error of the connection is ignored: the client is
/// gone, or the guard closed the connection and has reported it.
pub(crate) async fn serve_http<T, S>(
    io: T,
    conn: ConnHandle,
    (protocol, is_encrypted): (Protocol, bool),
    service: S,
    server: &Server,
    drain_token: &DrainToken,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    let mut io = Rewind::new(io);
    let begins = match protocol {
        Protocol::Http1 => Begins::Http1,
        Protocol::Http2 => Begins::Http2,
        Protocol::Auto => {
            let begins = poll_fn(|cx| match io.poll_begins(cx) {
                // There is no request yet.
                Poll::Pending if drain_token.drain().has_begun() => {
                    Poll::Ready(Ok(Begins::Nothing))
                }
                begins => begins,
            });
            begins.await.unwrap_or(Begins::Nothing)
        }
    };
    let conn = &conn;
    let refusals = RefusalReporter::new(&server.guard, conn);
    match begins {
        Begins::Nothing => {}
        Begins::Http1 => {
            if server.http.half_close {
                conn.allow_half_close();
            }
            let service = ConnService::new(conn, service, refusals.clone(), &server.http, None);
            let connection = server.http1.serve_connection(TokioIo::new(io), service);
            let connection = connection.with_upgrades();
            let refusal = ServeConnection {
                connection,
                conn,
                server,
                drain_token,
                goaway_sent: None,
            }
            .await;
            if let Some(refusal) = refusal {
                refusals.report(refusal, None);
            }
            if conn.is_upgraded() {
                drain_token.add_upgraded(conn);
            }
        }
        Begins::Http2 => {
            conn.set_goaway();
            let io = FrameObserver::new(io, conn, is_encrypted);
            let held = Some(HeldBytes::new(conn));
            let service = ConnService::new(conn, service, refusals, &server.http, held);
            let builder = server.http.http2(Streams::new(&server.guard, conn));
            let connection = builder.serve_connection(TokioIo::new(io), service);
            ServeConnection {
                connection,
                conn,
                server,
                drain_token,
                goaway_sent: None,
            }
            .await;
        }
    }
}

// === GoAwaySent ===

impl GoAwaySent {
    /// Resets the connection if its client has begun a request after the grace.
    fn reset_if_ignored(&mut self, server: &Server, conn: &ConnHandle) {
        match self.requests_in_grace {
            None if self.at.elapsed() >= GOAWAY_GRACE => {
                self.requests_in_grace = Some(conn.requests());
            }
            Some(in_grace) if conn.requests() > in_grace => {
                let reason = conn.closing().unwrap_or(Reason::MaxRequests);
                server.guard.close(conn, reason, CloseMode::Reset);
            }
            _ => {}
        }
    }
}

// === ServeConnection ===

impl<C: HttpConnection> Future for ServeConnection<'_, C> {
    type Output = Option<Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        let mut this = self.project();
        let drain = this.drain_token.drain();
        if drain.is_over() {
            this.server
                .guard
                .close(this.conn, Reason::Shutdown, CloseMode::Reset);
            this.drain_token.release_as_cut();
            return Poll::Ready(None);
        }
        let is_draining = drain.has_begun();
        if is_draining {
            this.server.guard.begin_closing(this.conn, Reason::Shutdown);
        }
        if let Some(goaway_sent) = this.goaway_sent {
            goaway_sent.reset_if_ignored(this.server, this.conn);
        // A closing HTTP/1 connection needs no shutdown here: request tracking adds
        // `Connection: close` to its next response.
        } else if is_draining || C::HAS_GOAWAY && this.conn.closing().is_some() {
            // First serve what has arrived: hyper closes an idle connection without reading.
            let result = this.connection.as_mut().poll(cx);
            if result.is_ready() {
                return result;
            }
            *this.goaway_sent = Some(GoAwaySent {
                at: Instant::now(),
                requests_in_grace: None,
            });
            this.connection.as_mut().begin_shutdown();
        }
        this.connection.poll(cx)
    }
}

// === HttpConnection ===

impl<T, S> HttpConnection for http1::UpgradeableConnection<Io<T>, ConnService<S>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    const HAS_GOAWAY: bool = false;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        Future::poll(self, cx)
            .map(|result| result.err().as_ref().and_then(Refusal::from_hyper_error))
    }

    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S> HttpConnection
    for http2::Connection<TokioIo<FrameObserver<Rewind<T>>>, ConnService<S>, Streams>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    const HAS_GOAWAY: bool = true;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        // The h2 crate does not report its own responses, such as 431.
        Future::poll(self, cx).map(|_| None)
    }

    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
