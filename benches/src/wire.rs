//! Servers on a connection that is neither a socket nor a client: requests come out of a table,
//! one after the other's answer, and what is written is counted and forgotten.

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener as AxumListener},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade::conn::{ConnGuard, Listener, Transport, connected};
use std::{
    future::{IntoFuture, pending},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    runtime::Runtime,
    sync::oneshot,
    task::JoinHandle,
};
use tower::{BoxError, Service};

/// What the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, kept alive.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// The connection.
#[derive(Debug)]
struct Script {
    protocol: Protocol,
    /// Requests still to come.
    left: usize,
    sent: u32,
    /// The server may have the next request: it wrote something since the last.
    next: bool,
    reader: Option<Waker>,
    /// What the server has not read yet of the present request.
    unread: Vec<u8>,
    /// Dropped with the connection.
    _gone: Option<oneshot::Sender<()>>,
}

/// Who asks. axum's own stands for TCP alone.
#[derive(Clone, Copy, Debug)]
pub struct Peer(#[expect(dead_code, reason = "nobody asks")] SocketAddr);

/// A listener to which one connection comes.
#[derive(Debug)]
struct Once(Option<Script>);

const HTTP1: &[u8] =
    b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
/// The preface of RFC 9113 section 3.4 and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// GET, http, `/` by their places in the static table, then `:authority` as a literal.
const BLOCK: &[u8] = b"\x82\x86\x84\x01\x09localhost";

/// Serves `requests` requests by hyper's own HTTP/1 connection.
pub fn hyper_http1<S, B>(runtime: &Runtime, service: S, requests: usize)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let io = TokioIo::new(Script::new(Protocol::Http1, requests));
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(io, TowerToHyperService::new(service));
    runtime.block_on(connection).expect("the script is HTTP");
}

/// Serves `requests` requests as `axum::serve` does: by hyper-util, in a task of its own.
pub fn hyper_util_auto<S, B>(runtime: &Runtime, service: S, protocol: Protocol, requests: usize)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send + Sync,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let io = TokioIo::new(Script::new(protocol, requests));
    let connection = runtime.spawn(async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(service);
        // HTTP/2 ends with an error because the script leaves without a word.
        let _ = builder.serve_connection_with_upgrades(io, service).await;
    });
    runtime.block_on(connection).expect("no handler panics");
}

/// A whole server.
#[derive(Clone, Debug)]
pub enum Server {
    /// `axum::serve` as it is.
    Axum,
    /// The same with axum's own way of telling handlers who asks.
    AxumWithPeer,
    /// The same over a guarded listener.
    Guarded(ConnGuard),
    /// `palisade::serve`.
    Palisade(ConnGuard),
}

/// Serves `requests` requests by a whole server, from its accept loop on.
pub fn serve(
    runtime: &Runtime,
    server: &Server,
    router: Router,
    protocol: Protocol,
    requests: usize,
) {
    let (gone, is_gone) = oneshot::channel();
    let script = Script {
        _gone: Some(gone),
        ..Script::new(protocol, requests)
    };
    let task = server.start(runtime, Once(Some(script)), router);
    runtime
        .block_on(is_gone)
        .expect_err("it says nothing when it goes");
    task.abort();
}

// === Server ===

impl Server {
    /// All of them, by name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "axum" => Some(Self::Axum),
            "axum with peer" => Some(Self::AxumWithPeer),
            "guarded" => Some(Self::Guarded(ConnGuard::default())),
            "palisade" => Some(Self::Palisade(ConnGuard::default())),
            _ => None,
        }
    }

    /// Serves what `listener` brings until the task ends.
    pub fn start<L>(
        &self,
        runtime: &Runtime,
        listener: L,
        router: Router,
    ) -> JoinHandle<io::Result<()>>
    where
        L: AxumListener<Addr = SocketAddr> + Listener,
        Peer: for<'a> Connected<IncomingStream<'a, L>>,
    {
        match self {
            Self::Axum => runtime.spawn(axum::serve(listener, router).into_future()),
            Self::AxumWithPeer => {
                let service = router.into_make_service_with_connect_info::<Peer>();
                runtime.spawn(axum::serve(listener, service).into_future())
            }
            Self::Guarded(guard) => {
                let listener = guard.listen(listener);
                runtime.spawn(axum::serve(listener, connected(router)).into_future())
            }
            Self::Palisade(guard) => {
                runtime.spawn(palisade::serve(guard.listen(listener), router).into_future())
            }
        }
    }
}

// === Peer ===

impl Connected<IncomingStream<'_, Once>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Once>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

// === Script ===

impl Script {
    fn new(protocol: Protocol, requests: usize) -> Self {
        let (reader, unread, _gone) = (None, Vec::new(), None);
        Self {
            protocol,
            left: requests,
            sent: 0,
            next: true,
            reader,
            unread,
            _gone,
        }
    }

    fn write_request(&mut self) {
        if self.protocol == Protocol::Http1 {
            return self.unread.extend_from_slice(HTTP1);
        }
        if self.sent == 0 {
            self.unread.extend_from_slice(PREFACE);
        }
        let stream = self.sent * 2 + 1;
        let length = u8::try_from(BLOCK.len()).expect("a short block");
        // HEADERS with END_STREAM and END_HEADERS.
        self.unread.extend_from_slice(&[0, 0, length, 1, 5]);
        self.unread.extend_from_slice(&stream.to_be_bytes());
        self.unread.extend_from_slice(BLOCK);
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            if !self.next {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            self.write_request();
            self.left -= 1;
            self.sent += 1;
            self.next = false;
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.next = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Transport for Script {}

// === Once ===

impl AxumListener for Once {
    type Io = Script;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Script, SocketAddr) {
        match self.0.take() {
            Some(script) => (script, crate::PEER.into()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(crate::PEER.into())
    }
}

impl Listener for Once {
    type Io = Script;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<io::Result<(Script, Option<SocketAddr>)>> {
        match self.0.take() {
            Some(script) => Poll::Ready(Ok((script, Some(crate::PEER.into())))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(crate::PEER.into())
    }

    fn local_of(_: &Script) -> Option<SocketAddr> {
        None
    }
}
