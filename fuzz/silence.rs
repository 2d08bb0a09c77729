//! Clients of HTTP/1 and HTTP/2 that send any sequence of whole, partial, pipelined and malformed
//! requests and then fall silent: `palisade::serve` closes all of their connections.
//! `tests/fuzz_bodies.rs` runs the same as a property test and as a soak test.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use palisade::conn::{ConnGuard, Listener, Transport};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower::service_fn;

/// One second.
const SECOND: Duration = Duration::from_secs(1);
/// The maximum number of pieces that a client sends.
const MAX_STEPS: usize = 40;
/// The longest time that a handler takes.
const MAX_HANDLER_TIME: Duration = Duration::from_secs(2);
/// The longest time from a client's last byte to the close of its connection: pipelined handlers,
/// one after the other, and then all deadlines of the guard.
const MAX_CLOSE_TIME: Duration = Duration::from_secs(2 * MAX_STEPS as u64 + 60);

/// Whole and partial HTTP/1 requests.
const HTTP1_PIECES: [&str; 12] = [
    "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
    "POST /drop HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
    "POST /later HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\nhello",
    "POST /later HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "0\r\n\r\n",
    "hello",
    "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /large HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nho",
    "\r\n",
];

/// Runs one client with the steps in `data`.
pub(crate) fn silence(data: &[u8]) {
    let [kind, steps @ ..] = data else { return };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(async {
        let guard = ConnGuard::builder()
            .first_request_timeout(6 * SECOND)
            .header_timeout(4 * SECOND);
        let guard = guard
            .idle_timeout(8 * SECOND)
            .write_timeout(5 * SECOND)
            .upgraded_idle_timeout(8 * SECOND);
        let guard = guard.build().expect("the settings are valid");
        let (connect, listener) = mpsc::channel(1);
        let app = service_fn(handle);
        let server = tokio::spawn(
            palisade::serve(guard.listen(MemoryListener(listener)), app).into_future(),
        );
        let (ours, theirs) = duplex(4096);
        let connected = connect.send(MemoryTransport(theirs)).await;
        connected.expect("the server is running");
        let (reads, uses_http2) = (kind & 1 == 0, kind & 2 != 0);
        let client = tokio::spawn(run_client(ours, steps.to_vec(), uses_http2, reads));
        let silent = client.await.expect("the client does not panic");
        let since = Instant::now();
        while guard.snapshot().open > 0 {
            assert!(
                since.elapsed() < MAX_CLOSE_TIME,
                "the connection is still open: {:?}",
                guard.snapshot()
            );
            sleep(SECOND).await;
        }
        drop(silent);
        let now = guard.snapshot();
        assert_eq!(
            (now.open, now.close_pending, now.in_flight, now.upgraded),
            (0, 0, 0, 0)
        );
        server.abort();
    });
}

/// Sends the pieces selected by `steps`, and returns the client's end of the connection, open and
/// silent. If `reads`, the client reads and discards the responses.
async fn run_client(
    wire: DuplexStream,
    steps: Vec<u8>,
    uses_http2: bool,
    reads: bool,
) -> (
    tokio::io::WriteHalf<DuplexStream>,
    tokio::task::JoinHandle<()>,
) {
    let (mut read, mut write) = tokio::io::split(wire);
    let reader = tokio::spawn(async move {
        if !reads {
            std::future::pending::<()>().await;
        }
        let mut bytes = [0; 1024];
        while matches!(read.read(&mut bytes).await, Ok(1..)) {}
        std::future::pending::<()>().await;
    });
    let mut stream = 1;
    if uses_http2 {
        let window = [0u32, 1, 100, 65_535][usize::from(steps.first().copied().unwrap_or(0)) % 4];
        send(&mut write, &preface(window)).await;
    }
    for &[kind, variant] in steps.as_chunks().0.iter().take(MAX_STEPS) {
        let bytes = if uses_http2 {
            http2_piece(kind, variant, &mut stream)
        } else {
            HTTP1_PIECES[usize::from(kind) % HTTP1_PIECES.len()].into()
        };
        // Some pieces are truncated, and some are followed by a pause.
        let length = if variant % 8 == 7 {
            bytes.len() / 2
        } else {
            bytes.len()
        };
        send(&mut write, &bytes[..length]).await;
        if variant % 4 == 1 {
            sleep(Duration::from_millis(u64::from(variant) * 40)).await;
        }
    }
    (write, reader)
}

/// Sends `bytes`, and gives up after a second if the server does not read them.
async fn send(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let _ = timeout(SECOND, write.write_all(bytes)).await;
}

/// Encodes an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Encodes the HTTP/2 preface and SETTINGS with an initial stream window of `window`.
fn preface(window: u32) -> Vec<u8> {
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &setting),
    ]
    .concat()
}

/// Encodes one frame, or a request on the next stream.
fn http2_piece(kind: u8, variant: u8, stream: &mut u32) -> Vec<u8> {
    const PATHS: [&str; 6] = ["/", "/read", "/drop", "/later", "/slow", "/large"];
    let path = PATHS[usize::from(variant) % PATHS.len()];
    let mut block = vec![
        if variant & 1 == 0 { 0x82 } else { 0x83 },
        0x86,
        0x04,
        path.len() as u8,
    ];
    block.extend(path.bytes());
    block.extend([0x01, 1, b'a']);
    let mut next = || std::mem::replace(stream, *stream + 2);
    match kind % 8 {
        0..3 => frame(1, 4 | variant >> 1 & 1, next(), &block),
        // A field block without its end.
        3 => frame(1, 0, next(), &block),
        4 => frame(0, variant & 1, stream.saturating_sub(2), b"hello"),
        5 => frame(
            8,
            0,
            if variant & 1 == 0 {
                0
            } else {
                stream.saturating_sub(2)
            },
            &[0, 0, 0, 1],
        ),
        6 => frame(6, 0, 0, &[variant; 8]),
        _ => frame(3, 0, stream.saturating_sub(2), &[0, 0, 0, 8]),
    }
}

/// The app. Its handlers read the body, drop it, read it after the response, or are slow.
async fn handle<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Send,
{
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let text = match path.as_str() {
        "/read" => {
            let read = timeout(MAX_HANDLER_TIME, body.collect()).await;
            if read.is_ok() { "read" } else { "not read" }
        }
        "/later" => {
            let read_body = async move { while let Some(Ok(_)) = body.frame().await {} };
            tokio::spawn(timeout(MAX_HANDLER_TIME, read_body));
            "later"
        }
        "/slow" => {
            sleep(MAX_HANDLER_TIME).await;
            "slow"
        }
        "/large" => return Ok(Response::new(Bytes::from(vec![b'x'; 100_000]).into())),
        _ => "served",
    };
    Ok(Response::new(text.into()))
}

// === MemoryListener ===

/// A listener of in-memory connections.
struct MemoryListener(mpsc::Receiver<MemoryTransport>);

/// The server's end of an in-memory connection.
#[derive(Debug)]
struct MemoryTransport(DuplexStream);

impl Listener for MemoryListener {
    type Io = MemoryTransport;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(MemoryTransport, Option<SocketAddr>)>> {
        match ready!(self.0.poll_recv(cx)) {
            Some(wire) => Poll::Ready(Ok((wire, Some(([192, 0, 2, 1], 1).into())))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([0, 0, 0, 0], 0).into())
    }

    fn local_of(_: &MemoryTransport) -> Option<SocketAddr> {
        None
    }
}

impl Transport for MemoryTransport {}

impl AsyncRead for MemoryTransport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryTransport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
