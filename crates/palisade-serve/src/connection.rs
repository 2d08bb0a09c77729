//! One connection, from the first byte to the last.

use crate::{
    HttpService, Rewind,
    drain::Open,
    framed::Framed,
    http::Protocol,
    refusal::{Refusal, Refusals},
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

/// By then a client has heard that he is to begin no more requests.
const HEARD: Duration = Duration::from_secs(5);

/// What hyper is given to serve on.
type Io<T> = TokioIo<Rewind<T>>;

pin_project! {
    /// hyper's connection, and what it is to be told.
    struct Driven<'a, C> {
        #[pin]
        connection: C,
        conn: &'a ConnHandle,
        server: &'a Server,
        open: &'a Open,
        told: Option<Told>,
    }
}

/// The client was told to begin no more requests. An HTTP/2 client that acknowledges nothing can
/// go on all the same.
struct Told {
    at: Instant,
    /// How many he had begun when he must have heard.
    requests: Option<u32>,
}

/// hyper's connections, as far as they are alike.
trait Connection {
    /// Whether one in the middle of something may be told to take no more.
    const HAS_GOAWAY: bool;

    /// Drives it to its end, and returns what hyper answered by itself then, if anything.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>>;

    fn end_in_good_order(self: Pin<&mut Self>);
}

/// Serves one connection to its end. An error of it is a client that went away or was ended; the
/// guard has told of the second.
pub(crate) async fn run<T, S>(
    io: T,
    conn: ConnHandle,
    (protocol, is_encrypted): (Protocol, bool),
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
            let begins = poll_fn(|cx| match io.poll_begins(cx) {
                // Nobody has asked for anything yet.
                Poll::Pending if open.drain().has_begun() => Poll::Ready(Ok(Begins::Nothing)),
                begins => begins,
            });
            begins.await.unwrap_or(Begins::Nothing)
        }
    };
    let conn = &conn;
    let refusals = Refusals::new(&server.guard, conn);
    match begins {
        Begins::Nothing => {}
        Begins::Http1 => {
            if server.http.half_close {
                conn.allow_half_close();
            }
            let service = ConnService::new(conn, service, refusals.clone(), &server.http, false);
            let connection = server.http1.serve_connection(TokioIo::new(io), service);
            let connection = connection.with_upgrades();
            let refusal = Driven {
                connection,
                conn,
                server,
                open,
                told: None,
            }
            .await;
            refusal
                .into_iter()
                .for_each(|refusal| refusals.tell(refusal));
            if conn.is_upgraded() {
                open.is_upgraded(conn);
            }
        }
        Begins::Http2 => {
            conn.set_goaway();
            let io = Framed::new(io, conn, is_encrypted);
            let service = ConnService::new(conn, service, refusals, &server.http, true);
            let builder = server.http.http2(Streams::new(&server.guard, conn));
            let connection = builder.serve_connection(TokioIo::new(io), service);
            Driven {
                connection,
                conn,
                server,
                open,
                told: None,
            }
            .await;
        }
    }
}

impl Told {
    fn end_if_deaf(&mut self, server: &Server, conn: &ConnHandle) {
        match self.requests {
            None if self.at.elapsed() >= HEARD => self.requests = Some(conn.requests()),
            Some(heard) if conn.requests() > heard => {
                let reason = conn.closing().unwrap_or(Reason::MaxRequests);
                server.guard.close(conn, reason, CloseMode::Reset);
            }
            _ => {}
        }
    }
}

impl<C: Connection> Future for Driven<'_, C> {
    type Output = Option<Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        let mut this = self.project();
        let drain = this.open.drain();
        if drain.is_over() {
            this.server
                .guard
                .close(this.conn, Reason::Shutdown, CloseMode::Reset);
            this.open.is_cut();
            return Poll::Ready(None);
        }
        let is_draining = drain.has_begun();
        if is_draining {
            this.server.guard.begin_closing(this.conn, Reason::Shutdown);
        }
        if let Some(told) = this.told {
            told.end_if_deaf(this.server, this.conn);
        // What HTTP/1 is told, the accounting says with its next answer.
        } else if is_draining || C::HAS_GOAWAY && this.conn.closing().is_some() {
            // First, what is here already: hyper would close an idle connection without a look.
            let here = this.connection.as_mut().poll(cx);
            if here.is_ready() {
                return here;
            }
            *this.told = Some(Told {
                at: Instant::now(),
                requests: None,
            });
            this.connection.as_mut().end_in_good_order();
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        Future::poll(self, cx).map(|result| result.err().as_ref().and_then(Refusal::by_hyper))
    }

    fn end_in_good_order(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S> Connection for http2::Connection<TokioIo<Framed<Rewind<T>>>, ConnService<S>, Streams>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    const HAS_GOAWAY: bool = true;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Refusal>> {
        // What the h2 crate answers by itself, 431 among it, it tells nothing of.
        Future::poll(self, cx).map(|_| None)
    }

    fn end_in_good_order(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
