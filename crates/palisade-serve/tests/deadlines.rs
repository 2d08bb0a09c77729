//! Every deadline of a connection and of a shutdown, on paused time over pipes in memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_conn::{ConnGuard, GuardedListener, Listener, Reason, Transport};
use palisade_serve::{Drained, Http, RequestBody, serve};
use palisade_testkit::Journal;
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
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower::service_fn;

/// The HTTP/2 connection preface.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
/// A HEADERS frame of stream 1 without `END_HEADERS`: `:method: GET`.
const UNFINISHED_HEADERS: &[u8] = b"\0\0\x01\x01\x01\0\0\0\x01\x82";
/// An HTTP/1 request that is answered at once.
const GET_HTTP1: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
/// An HTTP/1 request that is never answered.
const HANG_HTTP1: &[u8] = b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n";
/// The HEADERS frame of a complete `GET /` on stream 1, which is answered at once.
const GET_HTTP2: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01x";
/// The HEADERS frame of a complete `GET /hang` on stream 1, which is never answered.
const HANG_HTTP2: &[u8] = b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x04\x05/hang\x01\x01x";
/// The longest time by which a deadline may be late: two sweeps.
const MAX_DELAY: Duration = Duration::from_millis(500);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === A listener of pipes ===

/// Accepts the pipes that are sent to it.
struct PipeListener(mpsc::UnboundedReceiver<Pipe>);

/// The server's end of a connection in memory.
struct Pipe(DuplexStream);

impl Listener for PipeListener {
    type Io = Pipe;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Pipe, Option<SocketAddr>)>> {
        match ready!(self.0.poll_recv(cx)) {
            Some(pipe) => Poll::Ready(Ok((pipe, Some(([192, 0, 2, 1], 1).into())))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 2], 80).into())
    }

    fn local_of(_: &Pipe) -> Option<SocketAddr> {
        None
    }
}

impl Transport for Pipe {}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// === The server ===

struct Server {
    guard: ConnGuard,
    journal: Journal,
    connect: mpsc::UnboundedSender<Pipe>,
    signal: oneshot::Sender<()>,
    task: JoinHandle<io::Result<Drained>>,
}

impl Server {
    fn start() -> Self {
        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        Self {
            journal,
            ..Self::start_with(guard, Http::default())
        }
    }

    /// Starts a server that answers `GET /` at once, and no other request.
    fn start_with(guard: ConnGuard, http: Http) -> Self {
        let journal = Journal::default();
        let (connect, pipes) = mpsc::unbounded_channel();
        let (signal, signalled) = oneshot::channel();
        let app = service_fn(async |request: Request<RequestBody>| {
            if request.uri().path() != "/" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let listener: GuardedListener<_> = guard.listen(PipeListener(pipes));
        let serve = serve(listener, app)
            .http(http)
            .with_graceful_shutdown(async { drop(signalled.await) });
        Self {
            guard,
            journal,
            connect,
            signal,
            task: tokio::spawn(serve.into_future()),
        }
    }

    /// Connects and sends `bytes`. Returns the client's end.
    async fn connect(&self, bytes: &[u8]) -> DuplexStream {
        let (server, mut client) = duplex(64 * 1024);
        self.connect
            .send(Pipe(server))
            .unwrap_or_else(|_| panic!("the listener accepts"));
        client.write_all(bytes).await.unwrap();
        client
    }

    /// Asserts that no connection is left, and that each was reported as closed.
    fn assert_no_connections(&self) {
        let snapshot = self.guard.snapshot();
        let left = (snapshot.open, snapshot.close_pending, snapshot.in_flight);
        assert_eq!(left, (0, 0, 0));
        assert_eq!(self.journal.opened(), self.journal.closed().len());
    }
}

/// Reads the next HTTP/2 frame, with its header.
async fn read_frame(client: &mut DuplexStream) -> Vec<u8> {
    let mut frame = vec![0; 9];
    client.read_exact(&mut frame).await.unwrap();
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(9 + length, 0);
    client.read_exact(&mut frame[9..]).await.unwrap();
    frame
}

/// Waits until the server closes the connection. Returns how long that took.
async fn time_until_closed(client: &mut DuplexStream) -> Duration {
    let started = Instant::now();
    let _ = client.read_to_end(&mut Vec::new()).await;
    started.elapsed()
}

fn assert_due(took: Duration, due: Duration) {
    assert!(
        took >= due && took <= due + MAX_DELAY,
        "{took:?} for {due:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_complete_request_is_closed_ten_seconds_after_accept() {
    let server = Server::start();
    let beginnings = [
        &b""[..],
        b"P",
        b"PRI * HT",
        b"GET / HTTP/1.1\r\nho",
        b"\r\n\r\n\r\n",
        PREFACE,
        &[PREFACE, SETTINGS].concat(),
        &[PREFACE, SETTINGS, UNFINISHED_HEADERS].concat(),
    ];
    for bytes in beginnings {
        let mut client = server.connect(bytes).await;
        assert_due(time_until_closed(&mut client).await, seconds(10));
        server.assert_no_connections();
    }
    let reasons = server.journal.closed();
    assert_eq!(reasons, vec![Some(Reason::FirstRequest); beginnings.len()]);
}

#[tokio::test(start_paused = true)]
async fn single_bytes_do_not_extend_the_deadline_of_the_first_request() {
    let server = Server::start();
    for all in [
        &[PREFACE, SETTINGS, UNFINISHED_HEADERS].concat(),
        &b"GET / HTTP/1.1\r\nhost: xxxxxx"[..],
    ] {
        let client = server.connect(b"").await;
        let (mut reader, mut writer) = tokio::io::split(client);
        let bytes = all.to_vec();
        let writing = tokio::spawn(async move {
            for byte in bytes {
                sleep(Duration::from_millis(900)).await;
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        let _ = reader.read_to_end(&mut Vec::new()).await;
        assert_due(started.elapsed(), seconds(10));
        writing.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_sixty_five_seconds() {
    let server = Server::start();
    for request in [GET_HTTP1, &[PREFACE, SETTINGS, GET_HTTP2].concat()] {
        let mut client = server.connect(request).await;
        assert_due(time_until_closed(&mut client).await, seconds(65));
        server.assert_no_connections();
    }
    assert_eq!(server.journal.closed(), [Some(Reason::Idle); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_later_head_must_be_complete_ten_seconds_after_its_first_byte() {
    let server = Server::start();
    let mut client = server.connect(GET_HTTP1).await;
    sleep(seconds(30)).await;
    client.write_all(b"GET / HT").await.unwrap();
    assert_due(time_until_closed(&mut client).await, seconds(10));
    server.assert_no_connections();
    assert_eq!(server.journal.closed(), [Some(Reason::SlowHead)]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_with_a_request_in_flight_ends_at_the_drain_time() {
    let server = Server::start();
    let clients = [
        server.connect(HANG_HTTP1).await,
        server.connect(&[PREFACE, SETTINGS].concat()).await,
        server.connect(GET_HTTP1).await,
    ];
    sleep(seconds(1)).await;
    let Server {
        signal,
        task,
        guard,
        journal,
        connect,
    } = server;
    let started = Instant::now();
    signal.send(()).unwrap();
    let drained = task.await.unwrap().unwrap();
    assert_due(started.elapsed(), seconds(30));
    assert_eq!((drained.finished, drained.cut), (2, 1));
    drop((clients, connect));
    assert_eq!(guard.snapshot().open, 0);
    assert_eq!(journal.opened(), journal.closed().len());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_requests_in_flight_ends_at_once() {
    let server = Server::start();
    let _silent = server.connect(b"").await;
    let _idle = server.connect(GET_HTTP1).await;
    sleep(seconds(1)).await;
    let started = Instant::now();
    server.signal.send(()).unwrap();
    let drained = server.task.await.unwrap().unwrap();
    assert!(
        started.elapsed() <= Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!((drained.finished, drained.cut), (2, 0));
}

/// Returns [`GET_HTTP2`] on this stream.
fn get_http2(stream: u32) -> Vec<u8> {
    let mut frame = GET_HTTP2.to_vec();
    frame[5..9].copy_from_slice(&stream.to_be_bytes());
    frame
}

#[tokio::test(start_paused = true)]
async fn a_client_that_continues_after_goaway_is_reset() {
    let guard = ConnGuard::builder().max_requests(3).build().unwrap();
    let server = Server::start_with(guard, Http::default());
    let mut client = server.connect(&[PREFACE, SETTINGS].concat()).await;
    let started = Instant::now();
    // The client acknowledges nothing, so HTTP/2 allows it any number of further requests.
    for stream in (1..).step_by(2) {
        let written = client.write_all(&get_http2(stream)).await;
        let mut answer = [0; 1024];
        let read = client.read(&mut answer).await;
        if written.is_err() || !matches!(read, Ok(1..)) {
            break;
        }
        assert!(started.elapsed() < seconds(7));
        sleep(Duration::from_millis(100)).await;
    }
    assert!(started.elapsed() >= seconds(5));
    sleep(seconds(1)).await;
    assert_eq!(server.guard.snapshot().open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_sent_before_the_shutdown_is_answered() {
    let server = Server::start();
    let mut kept = server.connect(GET_HTTP1).await;
    let mut answer = [0; 1024];
    let length = kept.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"hello"));
    // The requests are in the pipes at the shutdown signal, and the server has not read them yet.
    let mut new = server.connect(GET_HTTP1).await;
    let mut half = server.connect(PREFACE).await;
    tokio::task::yield_now().await;
    kept.write_all(GET_HTTP1).await.unwrap();
    half.write_all(&[SETTINGS, GET_HTTP2].concat())
        .await
        .unwrap();
    server.signal.send(()).unwrap();
    for client in [&mut kept, &mut new] {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"hello"), "{answer:?}");
    }
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).await.unwrap();
    assert!(answer.windows(5).any(|at| at == b"hello"));
    let drained = server.task.await.unwrap().unwrap();
    assert_eq!((drained.finished, drained.cut), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_made_costs_only_its_own_connection() {
    let guard = ConnGuard::default();
    let (connect, pipes) = mpsc::unbounded_channel();
    let mut number = 0;
    let make = service_fn(move |_: palisade_serve::Incoming<'_>| {
        number += 1;
        let first = number == 1;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(service_fn(async |_: Request<RequestBody>| {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"made"))))
            }))
        }
    });
    tokio::spawn(serve(guard.listen(PipeListener(pipes)), make).into_future());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (server, mut client) = duplex(64 * 1024);
        connect
            .send(Pipe(server))
            .unwrap_or_else(|_| panic!("the listener accepts"));
        client.write_all(GET_HTTP1).await.unwrap();
        clients.push(client);
    }
    assert_due(time_until_closed(&mut clients[0]).await, seconds(1));
    let mut answer = [0; 1024];
    let length = clients[1].read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"made"));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_app_is_answered_with_500() {
    let (connect, pipes) = mpsc::unbounded_channel();
    let fails = service_fn(async |_: Request<RequestBody>| {
        Err::<Response<Full<Bytes>>, _>(io::Error::other("overloaded"))
    });
    tokio::spawn(serve(ConnGuard::default().listen(PipeListener(pipes)), fails).into_future());
    let (server, mut client) = duplex(64 * 1024);
    connect
        .send(Pipe(server))
        .unwrap_or_else(|_| panic!("the listener accepts"));
    client.write_all(GET_HTTP1).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 500") && answer.contains("connection: close"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_gets_goaway_at_its_maximum_age() {
    let guard = ConnGuard::builder().max_age(seconds(1000)).build().unwrap();
    let server = Server::start_with(guard, Http::default());
    // No further bytes are sent on this connection.
    let mut client = server
        .connect(&[PREFACE, SETTINGS, HANG_HTTP2].concat())
        .await;
    let started = Instant::now();
    let goaway = async { while read_frame(&mut client).await[3] != 7 {} };
    timeout(seconds(2000), goaway).await.unwrap();
    let took = started.elapsed();
    assert!(
        took >= seconds(900) && took <= seconds(1100) + MAX_DELAY,
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn only_a_client_that_does_not_acknowledge_pings_is_disconnected() {
    let http_with_pings = || {
        Http::builder()
            .keep_alive_ping(seconds(30), seconds(10))
            .build()
            .unwrap()
    };
    let hang = [PREFACE, SETTINGS, HANG_HTTP2].concat();
    let server = Server::start_with(ConnGuard::default(), http_with_pings());
    assert_due(
        time_until_closed(&mut server.connect(&hang).await).await,
        seconds(40),
    );
    sleep(seconds(1)).await; // The connection lingers.
    server.assert_no_connections();

    let mut client = server.connect(&hang).await;
    let acknowledge = async {
        let mut acknowledged = 0;
        while acknowledged < 20 {
            let mut frame = read_frame(&mut client).await;
            if (frame[3], frame[4]) == (6, 0) {
                frame[4] = 1;
                client.write_all(&frame).await.unwrap();
                acknowledged += 1;
            }
        }
    };
    timeout(seconds(601), acknowledge).await.unwrap();
    drop(client);

    // By default no PING is sent.
    let server = Server::start();
    let mut client = server.connect(&hang).await;
    assert!(
        timeout(seconds(600), time_until_closed(&mut client))
            .await
            .is_err()
    );
}
