//! Servers on a scripted connection, without sockets and clients: it provides the next request
//! after each response, and discards the bytes that the server writes.

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

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// A scripted connection.
#[derive(Debug)]
struct Script {
    protocol: Protocol,
    /// The number of requests still to send.
    remaining: usize,
    sent: u32,
    /// The next request may be sent: the server has written something since the last one.
    may_send: bool,
    reader: Option<Waker>,
    /// The bytes of the current request that the server has not read yet.
    unread: Vec<u8>,
    /// Dropped with the connection.
    _closed: Option<oneshot::Sender<()>>,
}

/// The peer of a connection. axum's own `ConnectInfo` supports TCP only.
#[derive(Clone, Copy, Debug)]
pub struct Peer(#[expect(dead_code, reason = "no handler reads it")] SocketAddr);

/// A listener that accepts one connection.
#[derive(Debug)]
struct SingleListener(Option<Script>);

/// The request of HTTP/1.
const HTTP1_REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
/// The client preface (RFC 9113 section 3.4) and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The field block of the HTTP/2 request: GET, http and `/` indexed, then `:authority` as a
/// literal.
const FIELD_BLOCK: &[u8] = b"\x82\x86\x84\x01\x09localhost";

/// Serves `requests` requests with hyper's HTTP/1 connection.
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
    runtime
        .block_on(connection)
        .expect("the script is valid HTTP");
}

/// Serves `requests` requests with hyper-util in a separate task, as `axum::serve` does.
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
        // HTTP/2 ends with an error because the script closes the connection without GOAWAY.
        let _ = builder.serve_connection_with_upgrades(io, service).await;
    });
    runtime
        .block_on(connection)
        .expect("the connection task does not panic");
}

/// A whole server.
#[derive(Clone, Debug)]
pub enum Server {
    /// Plain `axum::serve`.
    Axum,
    /// `axum::serve` with axum's own connect info.
    AxumWithPeer,
    /// `axum::serve` over a guarded listener.
    Guarded(ConnGuard),
    /// `palisade::serve`.
    Palisade(ConnGuard),
}

/// Serves `requests` requests with a whole server, including its accept loop.
pub fn serve(
    runtime: &Runtime,
    server: &Server,
    router: Router,
    protocol: Protocol,
    requests: usize,
) {
    let (closed, is_closed) = oneshot::channel();
    let script = Script {
        _closed: Some(closed),
        ..Script::new(protocol, requests)
    };
    let task = server.start(runtime, SingleListener(Some(script)), router);
    runtime
        .block_on(is_closed)
        .expect_err("the sender is dropped without a message");
    task.abort();
}

// === Server ===

impl Server {
    /// Returns the server of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "axum" => Some(Self::Axum),
            "axum with peer" => Some(Self::AxumWithPeer),
            "guarded" => Some(Self::Guarded(ConnGuard::default())),
            "palisade" => Some(Self::Palisade(ConnGuard::default())),
            _ => None,
        }
    }

    /// Serves the connections of `listener` in a new task.
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

impl Connected<IncomingStream<'_, SingleListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, SingleListener>) -> Self {
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
        Self {
            protocol,
            remaining: requests,
            sent: 0,
            may_send: true,
            reader: None,
            unread: Vec::new(),
            _closed: None,
        }
    }

    fn write_request(&mut self) {
        if self.protocol == Protocol::Http1 {
            return self.unread.extend_from_slice(HTTP1_REQUEST);
        }
        if self.sent == 0 {
            self.unread.extend_from_slice(PREFACE);
        }
        let stream = self.sent * 2 + 1;
        let length = u8::try_from(FIELD_BLOCK.len()).expect("the block is short");
        // HEADERS with END_STREAM and END_HEADERS.
        self.unread.extend_from_slice(&[0, 0, length, 1, 5]);
        self.unread.extend_from_slice(&stream.to_be_bytes());
        self.unread.extend_from_slice(FIELD_BLOCK);
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            if !self.may_send {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if self.remaining == 0 {
                return Poll::Ready(Ok(()));
            }
            self.write_request();
            self.remaining -= 1;
            self.sent += 1;
            self.may_send = false;
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
        self.may_send = true;
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

// === SingleListener ===

impl AxumListener for SingleListener {
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

impl Listener for SingleListener {
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
