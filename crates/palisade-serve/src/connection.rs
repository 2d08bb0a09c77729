//! One connection, from the first byte to the last.

use crate::{
    HttpService, Rewind, drain::Open, http::Protocol, serve::Server, service::ConnService,
    sniff::Begins, streams::Streams,
};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use palisade_core::{ConnInfo, Ending, Reason};
use pin_project_lite::pin_project;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// What hyper is given to serve on.
type Io<T> = TokioIo<Rewind<T>>;

pin_project! {
    /// hyper's connection, and what it is to be told.
    struct Driven<'a, C> {
        #[pin]
        connection: C,
        conn: &'a Arc<ConnInfo>,
        server: &'a Server,
        open: &'a Open,
        is_told: bool,
    }
}

/// hyper's connections, as far as they are alike.
trait Connection {
    /// Whether one in the middle of something may be told to take no more.
    const HAS_GOAWAY: bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;

    fn end_in_good_order(self: Pin<&mut Self>);
}

/// Serves one connection to its end. An error of it is a client that went away or was ended; the
/// guard has told of the second.
pub(crate) async fn run<T, S>(
    io: T,
    conn: Arc<ConnInfo>,
    protocol: Protocol,
    service: S,
    server: &Server,
    open: &Open,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    let mut io = Rewind::new(io);
    let begins = match protocol {
        Protocol::Http1 => Begins::Http1,
        Protocol::Http2 => Begins::Http2,
        Protocol::Auto => {
            let begins = poll_fn(|cx| {
                // Nobody has asked for anything yet.
                if open.drain().has_begun() {
                    return Poll::Ready(Ok(Begins::Nothing));
                }
                io.poll_begins(cx)
            });
            begins.await.unwrap_or(Begins::Nothing)
        }
    };
    let conn = &conn;
    match begins {
        Begins::Nothing => {}
        Begins::Http1 => {
            let service = ConnService::new(conn, service, &server.http, false);
            let connection = server.http1.serve_connection(TokioIo::new(io), service);
            let connection = connection.with_upgrades();
            Driven { connection, conn, server, open, is_told: false }.await;
            if conn.state().is_upgraded() {
                open.is_upgraded(conn);
            }
        }
        Begins::Http2 => {
            let service = ConnService::new(conn, service, &server.http, true);
            let builder = server.http.http2(Streams::new(&server.guard, conn));
            let connection = builder.serve_connection(TokioIo::new(io), service);
            Driven { connection, conn, server, open, is_told: false }.await;
        }
    }
}

impl<C: Connection> Future for Driven<'_, C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let drain = this.open.drain();
        if drain.is_over() {
            this.server.guard.end(this.conn, Reason::Shutdown, Ending::Reset);
            this.open.is_cut();
            return Poll::Ready(());
        }
        if !*this.is_told {
            let state = this.conn.state();
            let is_draining = drain.has_begun();
            if is_draining {
                state.close(Reason::Shutdown);
            }
            // What HTTP/1 is told, the accounting says with its next answer.
            if is_draining || C::HAS_GOAWAY && state.closing().is_some() {
                *this.is_told = true;
                this.connection.as_mut().end_in_good_order();
            }
        }
        this.connection.poll(cx)
    }
}

impl<T, S> Connection for http1::UpgradeableConnection<Io<T>, ConnService<S>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    const HAS_GOAWAY: bool = false;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self, cx).map(drop)
    }

    fn end_in_good_order(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S> Connection for http2::Connection<Io<T>, ConnService<S>, Streams>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    const HAS_GOAWAY: bool = true;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self, cx).map(drop)
    }

    fn end_in_good_order(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
