//! Clients of HTTP/1 and HTTP/2 that send any sequence of whole, partial, pipelined and wrong
//! requests and then fall silent: `palisade::serve` ends every one of their connections.
//! `tests/fuzz_bodies.rs` runs the same as a property test and as a soak.

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

const SECOND: Duration = Duration::from_secs(1);
/// A client sends so many pieces at most.
const STEPS: usize = 40;
/// The longest that a handler takes.
const HANDLER: Duration = Duration::from_secs(2);
/// The longest that anything may last after a client has sent its last byte: handlers that are
/// pipelined one behind the other, and then every deadline of the guard.
const LONGEST: Duration = Duration::from_secs(2 * STEPS as u64 + 60);

/// HTTP/1, whole and in part.
const HTTP1: [&str; 12] = [
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

/// Runs one client by `data`.
pub(crate) fn silence(data: &[u8]) {
    let [kind, steps @ ..] = data else { return };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(async {
        let guard = ConnGuard::builder()
            .first_request(6 * SECOND)
            .head(4 * SECOND);
        let guard = guard
            .idle(8 * SECOND)
            .write_stall(5 * SECOND)
            .upgraded_idle(8 * SECOND);
        let guard = guard.build().expect("these numbers can be");
        let (connect, listener) = mpsc::channel(1);
        let app = service_fn(answer);
        let server =
            tokio::spawn(palisade::serve(guard.listen(Wires(listener)), app).into_future());
        let (ours, theirs) = duplex(4096);
        let connected = connect.send(Wire(theirs)).await;
        connected.expect("the server is there");
        let (reads, is_http2) = (kind & 1 == 0, kind & 2 != 0);
        let client = tokio::spawn(client(ours, steps.to_vec(), is_http2, reads));
        let silent = client.await.expect("a client does not fail");
        let since = Instant::now();
        while guard.snapshot().open > 0 {
            assert!(
                since.elapsed() < LONGEST,
                "it is still here: {:?}",
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

/// Sends what `steps` say, and returns its end of the connection, open and silent. What is read
/// is thrown away, if it `reads`.
async fn client(
    wire: DuplexStream,
    steps: Vec<u8>,
    is_http2: bool,
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
    if is_http2 {
        let window = [0u32, 1, 100, 65_535][usize::from(steps.first().copied().unwrap_or(0)) % 4];
        send(&mut write, &preface(window)).await;
    }
    for &[what, how] in steps.as_chunks().0.iter().take(STEPS) {
        let bytes = if is_http2 {
            http2(what, how, &mut stream)
        } else {
            HTTP1[usize::from(what) % HTTP1.len()].into()
        };
        // Sometimes cut short, and sometimes with a pause behind it.
        let length = if how % 8 == 7 {
            bytes.len() / 2
        } else {
            bytes.len()
        };
        send(&mut write, &bytes[..length]).await;
        if how % 4 == 1 {
            sleep(Duration::from_millis(u64::from(how) * 40)).await;
        }
    }
    (write, reader)
}

/// Gives up where the server takes nothing.
async fn send(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let _ = timeout(SECOND, write.write_all(bytes)).await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn preface(window: u32) -> Vec<u8> {
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &setting),
    ]
    .concat()
}

/// One frame, or a request on the next stream.
fn http2(what: u8, how: u8, stream: &mut u32) -> Vec<u8> {
    const PATHS: [&str; 6] = ["/", "/read", "/drop", "/later", "/slow", "/large"];
    let path = PATHS[usize::from(how) % PATHS.len()];
    let mut block = vec![
        if how & 1 == 0 { 0x82 } else { 0x83 },
        0x86,
        0x04,
        path.len() as u8,
    ];
    block.extend(path.bytes());
    block.extend([0x01, 1, b'a']);
    let mut next = || std::mem::replace(stream, *stream + 2);
    match what % 8 {
        0..3 => frame(1, 4 | how >> 1 & 1, next(), &block),
        // Never ended.
        3 => frame(1, 0, next(), &block),
        4 => frame(0, how & 1, stream.saturating_sub(2), b"hello"),
        5 => frame(
            8,
            0,
            if how & 1 == 0 {
                0
            } else {
                stream.saturating_sub(2)
            },
            &[0, 0, 0, 1],
        ),
        6 => frame(6, 0, 0, &[how; 8]),
        _ => frame(3, 0, stream.saturating_sub(2), &[0, 0, 0, 8]),
    }
}

async fn answer<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Send,
{
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let text = match path.as_str() {
        "/read" => {
            let read = timeout(HANDLER, body.collect()).await;
            if read.is_ok() { "read" } else { "not read" }
        }
        "/later" => {
            let later = async move { while let Some(Ok(_)) = body.frame().await {} };
            tokio::spawn(timeout(HANDLER, later));
            "later"
        }
        "/slow" => {
            sleep(HANDLER).await;
            "slow"
        }
        "/large" => return Ok(Response::new(Bytes::from(vec![b'x'; 100_000]).into())),
        _ => "served",
    };
    Ok(Response::new(text.into()))
}

// === Wires ===

/// A listener in memory.
struct Wires(mpsc::Receiver<Wire>);

#[derive(Debug)]
struct Wire(DuplexStream);

impl Listener for Wires {
    type Io = Wire;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Wire, Option<SocketAddr>)>> {
        match ready!(self.0.poll_recv(cx)) {
            Some(wire) => Poll::Ready(Ok((wire, Some(([192, 0, 2, 1], 1).into())))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([0, 0, 0, 0], 0).into())
    }

    fn local_of(_: &Wire) -> Option<SocketAddr> {
        None
    }
}

impl Transport for Wire {}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
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
