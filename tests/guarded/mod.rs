//! Support for the tests of the connection guard: guarded servers, an honest client beside each
//! attack, and HTTP/2 frames.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "no test uses all of this, and tests may panic"
)]

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use palisade::conn::{ConnGuard, ConnGuardBuilder, connected, harden};
use palisade_testkit::{
    Journal,
    clients::{self, PATIENCE, RawClient, until},
    process,
    servers::{self, Server},
};
use std::{
    convert::Infallible,
    future::IntoFuture,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tower::BoxError;

/// Whether this module is compiled into `under_serve.rs`.
pub const IS_UNDER_SERVE: bool = matches!(
    module_path!().as_bytes(),
    [b'u', b'n', b'd', b'e', b'r', b'_', b's', ..]
);

/// Whether this module is compiled into `under_tonic.rs`.
pub const IS_UNDER_TONIC: bool = matches!(
    module_path!().as_bytes(),
    [b'u', b'n', b'd', b'e', b'r', b'_', b't', ..]
);

/// The tolerance beyond the exact time, for a busy machine.
pub const SLACK: Duration = Duration::from_secs(1);
/// One second.
pub const SECOND: Duration = Duration::from_secs(1);
/// A request for `/`.
pub const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Builds a guard with a journal, and raises the file limit for floods.
pub fn guard(builder: ConnGuardBuilder) -> (ConnGuard, Journal) {
    process::raise_file_limit();
    let journal = Journal::default();
    (builder.metrics(journal.clone()).build().unwrap(), journal)
}

/// Serves `app` with `axum::serve` over a guarded listener; with `palisade::serve` in
/// `under_serve.rs` and with tonic's server in `under_tonic.rs`.
pub async fn serve(guard: &ConnGuard, app: Router) -> Server {
    if IS_UNDER_SERVE {
        return hardened(guard, app).await;
    }
    if IS_UNDER_TONIC {
        return tonic_s_own(guard, true, app).await;
    }
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let serve = axum::serve(listener, connected(app)).into_future();
    Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }))
}

/// Serves `app` with `palisade::serve`, with extended CONNECT enabled as in `axum::serve`.
pub async fn hardened(guard: &ConnGuard, app: Router) -> Server {
    let http = palisade::serve::Http::builder()
        .extended_connect()
        .build()
        .unwrap();
    let serve = palisade::serve(guard.listen(servers::listener().await), app).http(http);
    let addr = serve.local_addr().unwrap();
    Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }))
}

/// Serves `app` with tonic's own server, hardened or not. HTTP/1 is enabled for the [`Neighbour`].
pub async fn tonic_s_own(guard: &ConnGuard, is_hardened: bool, app: Router) -> Server {
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder();
    let server = if is_hardened { harden(server) } else { server };
    let mut server = server.accept_http1(true).layer(guard.track_requests());
    let router = server.add_routes(tonic::service::Routes::from(app));
    Server::new(
        addr,
        tokio::spawn(async { router.serve_with_incoming(listener).await.unwrap() }),
    )
}

/// The names of the servers that [`by`] starts.
pub const SERVERS: [&str; 3] = ["palisade::serve", "axum::serve", "tonic, hardened"];

/// Serves `app` with one of [`SERVERS`].
pub async fn by(server: &str, guard: &ConnGuard, app: Router) -> Server {
    match server {
        "palisade::serve" => hardened(guard, app).await,
        "axum::serve" => serve(guard, app).await,
        _ => tonic_s_own(guard, true, app).await,
    }
}

/// An app with a small response at `/` and an endless one at `/endless`. `/hang` never responds.
pub fn app() -> Router {
    let endless = || async {
        let chunk = Bytes::from_static(&[b'x'; 16 * 1024]);
        Body::from_stream(stream::repeat(chunk).map(Ok::<_, Infallible>))
    };
    Router::new()
        .route("/", get(|| async { "served" }))
        .route("/endless", get(endless))
        .route("/hang", get(std::future::pending::<()>))
}

/// Asserts that an event came at `due`, or at most [`SLACK`] later. `after` is the time from a
/// response to the event.
pub fn is_on_time(after: Duration, due: Duration) {
    // The response arrives a moment before the test reads the clock.
    let early = Duration::from_millis(100);
    assert!(
        (due - early..due + SLACK).contains(&after),
        "{after:?} for {due:?}"
    );
}

/// Waits until the guard holds no connections, requests, upgrades and clients.
pub async fn all_gone(guard: &ConnGuard) {
    until("all connections are gone", || {
        let now = guard.snapshot();
        (now.open, now.close_pending, now.distinct_clients) == (0, 0, 0)
            && (now.in_flight, now.upgraded) == (0, 0)
    })
    .await;
}

/// Reads until the server closes the connection. Returns the bytes read, whether the connection was
/// reset, and the time until then.
pub async fn cut(client: &mut RawClient) -> (Vec<u8>, bool, Duration) {
    use tokio::io::AsyncReadExt;
    let started = Instant::now();
    let (mut bytes, mut piece) = (Vec::new(), [0; 8192]);
    let is_reset = timeout(PATIENCE, async {
        loop {
            match client.stream.read(&mut piece).await {
                Ok(0) => return false,
                // Keep the first MiB of an endless response only.
                Ok(length) if bytes.len() < 1 << 20 => bytes.extend_from_slice(&piece[..length]),
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    });
    let is_reset = is_reset.await.unwrap();
    (bytes, is_reset, started.elapsed())
}

/// Sends `bytes`, and reads meanwhile until the server closes the connection. Returns the bytes
/// read and the time until then.
pub async fn exchange(client: RawClient, bytes: Vec<u8>) -> (Vec<u8>, Duration) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let started = Instant::now();
    let (mut read, mut write) = client.stream.into_split();
    // Keeps the write half open until the server has closed the connection, whether or not it reads
    // all of the bytes.
    let sending = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut response = Vec::new();
    let _ = timeout(PATIENCE, read.read_to_end(&mut response))
        .await
        .unwrap();
    sending.abort();
    (response, started.elapsed())
}

/// Requests `/` of [`app`] and asserts that it is served.
pub async fn served(client: &mut RawClient) {
    client.send(GET).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.body(6).await.unwrap(), b"served");
}

/// An honest client that sends requests throughout a test, on one kept connection and on new ones.
pub struct Neighbour {
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Neighbour {
    /// Starts a client that uses a kept connection and new ones.
    pub fn of(addr: SocketAddr) -> Self {
        Self::start(addr, true)
    }

    /// Starts a client that uses its kept connection only, and returns after more than one
    /// response.
    ///
    /// At a full cap, a newcomer that is slow on a busy machine may be evicted, and so may a
    /// connection that has had one response in 2 s.
    pub async fn who_stays(addr: SocketAddr) -> Self {
        let neighbour = Self::start(addr, false);
        until("the neighbour is served", || {
            neighbour.served.load(SeqCst) > 2
        })
        .await;
        neighbour
    }

    fn start(addr: SocketAddr, with_new_connections: bool) -> Self {
        let (served, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let task = tokio::spawn({
            let (served, stop) = (Arc::clone(&served), Arc::clone(&stop));
            async move {
                let from = Ipv4Addr::new(127, 0, 0, 99);
                let mut kept = Client::connect(from, addr).await.unwrap();
                while !stop.load(SeqCst) {
                    assert_eq!(kept.get("/").await.unwrap().status(), 200);
                    if with_new_connections {
                        let new_answer = ask(from, addr, "/").await.unwrap();
                        assert_eq!(new_answer.status(), 200);
                    }
                    served.fetch_add(1 + usize::from(with_new_connections), SeqCst);
                    // The client's request rate, not a wait for anything.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        Self { served, stop, task }
    }

    /// Stops the client and returns the number of responses.
    ///
    /// # Panics
    ///
    /// If a request was not served.
    pub async fn was_served(self) -> usize {
        self.stop.store(true, SeqCst);
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .expect("the neighbour was served throughout");
        let served = self.served.load(SeqCst);
        assert!(served > 0, "the neighbour sent no request");
        served
    }
}

/// hyper's client: for HTTP/2 under tonic, as gRPC clients use HTTP/2 only, else for HTTP/1.
pub enum Client {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> Result<Self, BoxError> {
        Ok(if IS_UNDER_TONIC {
            Self::Http2(clients::http2(from, to).await?)
        } else {
            Self::Http1(clients::http1(from, to).await?)
        })
    }

    pub async fn get(&mut self, path: &str) -> Result<Response<Bytes>, BoxError> {
        let response = match self {
            Self::Http1(sender) => {
                timeout(PATIENCE, sender.ready()).await??;
                let request = Request::get(path)
                    .header("host", "test")
                    .body(Empty::new())?;
                timeout(PATIENCE, sender.send_request(request)).await??
            }
            Self::Http2(sender) => {
                timeout(PATIENCE, sender.ready()).await??;
                let request = Request::get(format!("http://test{path}")).body(Empty::new())?;
                timeout(PATIENCE, sender.send_request(request)).await??
            }
        };
        clients::whole(response).await
    }
}

/// Sends `GET path` over a new connection and returns the complete response.
pub async fn ask(from: Ipv4Addr, to: SocketAddr, path: &str) -> Result<Response<Bytes>, BoxError> {
    Client::connect(from, to).await?.get(path).await
}

/// HTTP/2 frames (RFC 9113).
pub mod h2 {
    use palisade_testkit::clients::PATIENCE;
    use tokio::{
        io::{AsyncRead, AsyncReadExt},
        time::timeout,
    };

    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;

    /// The default maximum length of a frame's payload (RFC 9113 section 6.5.2).
    pub const FRAME: usize = 16_384;

    /// A received frame.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Frame {
        pub kind: u8,
        pub flags: u8,
        pub stream: u32,
        pub payload: Vec<u8>,
    }

    impl Frame {
        /// Returns the error code of `RST_STREAM` or GOAWAY.
        pub fn code(&self) -> Option<u32> {
            let code = match self.kind {
                RST_STREAM => self.payload.get(..4)?,
                GOAWAY => self.payload.get(4..8)?,
                _ => return None,
            };
            Some(u32::from_be_bytes(code.try_into().ok()?))
        }

        /// Returns the status of a response as the `h2` crate encodes it: the first field of
        /// HEADERS, from the static table or as a Huffman-coded literal.
        pub fn status(&self) -> Option<u16> {
            match (self.kind, &self.payload[..]) {
                (HEADERS, [0x88, ..]) => Some(200),
                (HEADERS, [0x8c, ..]) => Some(400),
                (HEADERS, [0x8d, ..]) => Some(404),
                (HEADERS, [0x8e, ..]) => Some(500),
                (HEADERS, [0x48, 0x83, 0x69, 0x90, 0xff, ..]) => Some(431),
                (HEADERS, [0x48, 0x82, 0x6c, 0x01, ..]) => Some(501),
                _ => None,
            }
        }
    }

    /// Parses the frames in `bytes`. An incomplete last frame is left out.
    pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some((&[a, b, c, kind, flags, d, e, f, g], rest)) = bytes.split_first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else {
                break;
            };
            let stream = u32::from_be_bytes([d, e, f, g]);
            frames.push(Frame {
                kind,
                flags,
                stream,
                payload: payload.to_vec(),
            });
            bytes = rest;
        }
        frames
    }

    /// Encodes a frame.
    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// Reads the next frame.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Frame {
        let read = async {
            let mut head = [0; 9];
            from.read_exact(&mut head).await.unwrap();
            let [a, b, c, kind, flags, d, e, f, g] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            from.read_exact(&mut payload).await.unwrap();
            Frame {
                kind,
                flags,
                stream: u32::from_be_bytes([d, e, f, g]),
                payload,
            }
        };
        timeout(PATIENCE, read).await.unwrap()
    }

    /// Reads up to the next frame of `kind` on `stream` and returns its payload. Other frames are
    /// skipped.
    pub async fn next(from: &mut (impl AsyncRead + Unpin), kind: u8, stream: u32) -> Vec<u8> {
        let next = async {
            loop {
                let frame = read(from).await;
                if (frame.kind, frame.stream) == (kind, stream) {
                    return frame.payload;
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap()
    }

    /// Encodes a `WINDOW_UPDATE` of `bytes` for `stream`; 0 is the connection.
    pub fn open(stream: u32, bytes: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
    }

    /// Encodes the preface, SETTINGS with an initial stream window of `window`, and a
    /// `WINDOW_UPDATE` that opens the connection's window fully.
    pub fn hello(window: u32) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        let mut setting = vec![0, 4];
        setting.extend(window.to_be_bytes());
        bytes.extend(frame(SETTINGS, 0, 0, &setting));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()));
        bytes
    }

    /// Encodes a request for a WebSocket at `path` on `stream` (RFC 8441).
    pub fn websocket(stream: u32, path: &str) -> Vec<u8> {
        // :method as a literal, :scheme indexed, :path and :authority as literals, then two fields
        // with literal names.
        let literal = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
        let block = [
            vec![0x02],
            literal("CONNECT"),
            vec![0x86, 0x04],
            literal(path),
            vec![0x01],
            literal("a"),
            vec![0x00],
            literal(":protocol"),
            literal("websocket"),
            vec![0x00],
            literal("sec-websocket-version"),
            literal("13"),
        ];
        frame(HEADERS, END_HEADERS, stream, &block.concat())
    }

    /// Encodes a request `GET path` without a body on `stream`.
    pub fn get(stream: u32, path: &str) -> Vec<u8> {
        // :method GET and :scheme http indexed, then :path and :authority as literals.
        let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
        block.extend(path.as_bytes());
        block.extend([0x01, 1, b'a']);
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
    }

    /// Encodes fields as literals without indexing (RFC 7541 section 6.2.2).
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                let mut rest = text.len();
                if rest < 127 {
                    block.push(rest as u8);
                } else {
                    block.push(127);
                    rest -= 127;
                    while rest >= 128 {
                        block.push(128 | (rest % 128) as u8);
                        rest /= 128;
                    }
                    block.push(rest as u8);
                }
                block.extend(text.as_bytes());
            }
        }
        block
    }

    /// Encodes `fields` as one HEADERS frame and as many CONTINUATION frames as they need.
    pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
        let block = block(fields);
        let mut pieces = block.chunks(FRAME).peekable();
        let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            bytes.extend(frame(kind, flags | end, stream, piece));
            (kind, flags) = (CONTINUATION, 0);
        }
        bytes
    }
}
