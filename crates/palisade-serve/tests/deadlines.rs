//! Every deadline to the millisecond, on paused time over pipes in memory: no socket, no wait.
#![allow(clippy::unwrap_used, reason = "a test may")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use palisade_conn::{ConnGuard, GuardedListener, Listener, Reason, Transport};
use palisade_serve::{Drained, Http, serve};
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

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
/// HEADERS of stream 1 that do not end: `:method: GET`.
const UNFINISHED: &[u8] = b"\0\0\x01\x01\x01\0\0\0\x01\x82";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const HANG: &[u8] = b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n";
/// `GET /` of HTTP/2, whole, on stream 1.
const GET2: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01x";
/// `GET /hang` likewise.
const HANG2: &[u8] = b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x04\x05/hang\x01\x01x";
/// Two looks of the sweeper.
const LATE: Duration = Duration::from_millis(500);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === A listener of pipes ===

struct Pipes(mpsc::UnboundedReceiver<Pipe>);

struct Pipe(DuplexStream);

impl Listener for Pipes {
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

    /// Answers `GET /` at once, and everything else never.
    fn start_with(guard: ConnGuard, http: Http) -> Self {
        let journal = Journal::default();
        let (connect, pipes) = mpsc::unbounded_channel();
        let (signal, told) = oneshot::channel();
        let app = service_fn(async |request: Request<Incoming>| {
            if request.uri().path() != "/" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let listener: GuardedListener<_> = guard.listen(Pipes(pipes));
        let serve = serve(listener, app)
            .http(http)
            .with_graceful_shutdown(async { drop(told.await) });
        Self {
            guard,
            journal,
            connect,
            signal,
            task: tokio::spawn(serve.into_future()),
        }
    }

    async fn connect(&self, bytes: &[u8]) -> DuplexStream {
        let (server, mut client) = duplex(64 * 1024);
        self.connect
            .send(Pipe(server))
            .unwrap_or_else(|_| panic!("it listens"));
        client.write_all(bytes).await.unwrap();
        client
    }

    /// Nothing is left.
    fn at_rest(&self) {
        let now = self.guard.snapshot();
        assert_eq!((now.open, now.close_pending, now.in_flight), (0, 0, 0));
        assert_eq!(self.journal.opened(), self.journal.closed().len());
    }
}

/// The next frame of HTTP/2, its head and what it has.
async fn frame(client: &mut DuplexStream) -> Vec<u8> {
    let mut frame = vec![0; 9];
    client.read_exact(&mut frame).await.unwrap();
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(9 + length, 0);
    client.read_exact(&mut frame[9..]).await.unwrap();
    frame
}

/// After how long the server ends it.
async fn ended(client: &mut DuplexStream) -> Duration {
    let started = Instant::now();
    let _ = client.read_to_end(&mut Vec::new()).await;
    started.elapsed()
}

fn is_due(took: Duration, due: Duration) {
    assert!(took >= due && took <= due + LATE, "{took:?} for {due:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_no_whole_request_has_ten_seconds_from_accept() {
    let server = Server::start();
    let begun = [
        &b""[..],
        b"P",
        b"PRI * HT",
        b"GET / HTTP/1.1\r\nho",
        b"\r\n\r\n\r\n",
        PREFACE,
        &[PREFACE, SETTINGS].concat(),
        &[PREFACE, SETTINGS, UNFINISHED].concat(),
    ];
    for bytes in begun {
        let mut client = server.connect(bytes).await;
        is_due(ended(&mut client).await, seconds(10));
        server.at_rest();
    }
    let why = server.journal.closed();
    assert_eq!(why, vec![Some(Reason::FirstRequest); begun.len()]);
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_moves_no_deadline() {
    let server = Server::start();
    for all in [
        &[PREFACE, SETTINGS, UNFINISHED].concat(),
        &b"GET / HTTP/1.1\r\nhost: xxxxxx"[..],
    ] {
        let client = server.connect(b"").await;
        let (mut reader, mut writer) = tokio::io::split(client);
        let bytes = all.to_vec();
        let drip = tokio::spawn(async move {
            for byte in bytes {
                sleep(Duration::from_millis(900)).await;
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        let _ = reader.read_to_end(&mut Vec::new()).await;
        is_due(started.elapsed(), seconds(10));
        drip.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_was_served_has_sixty_five_seconds_for_nothing() {
    let server = Server::start();
    for request in [GET, &[PREFACE, SETTINGS, GET2].concat()] {
        let mut client = server.connect(request).await;
        is_due(ended(&mut client).await, seconds(65));
        server.at_rest();
    }
    assert_eq!(server.journal.closed(), [Some(Reason::Idle); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_later_head_has_ten_seconds_from_its_first_byte() {
    let server = Server::start();
    let mut client = server.connect(GET).await;
    sleep(seconds(30)).await;
    client.write_all(b"GET / HT").await.unwrap();
    is_due(ended(&mut client).await, seconds(10));
    server.at_rest();
    assert_eq!(server.journal.closed(), [Some(Reason::SlowHead)]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_takes_its_thirty_seconds_and_no_more() {
    let server = Server::start();
    let clients = [
        server.connect(HANG).await,
        server.connect(&[PREFACE, SETTINGS].concat()).await,
        server.connect(GET).await,
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
    is_due(started.elapsed(), seconds(30));
    assert_eq!((drained.finished, drained.cut), (2, 1));
    drop((clients, connect));
    assert_eq!(guard.snapshot().open, 0);
    assert_eq!(journal.opened(), journal.closed().len());
}

#[tokio::test(start_paused = true)]
async fn with_nothing_in_flight_a_shutdown_takes_no_time() {
    let server = Server::start();
    let _silent = server.connect(b"").await;
    let _idle = server.connect(GET).await;
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

/// A request of HTTP/2 on this stream.
fn get2(stream: u32) -> Vec<u8> {
    let mut frame = GET2.to_vec();
    frame[5..9].copy_from_slice(&stream.to_be_bytes());
    frame
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_on_after_his_goaway_is_ended() {
    let guard = ConnGuard::builder().max_requests(3).build().unwrap();
    let server = Server::start_with(guard, Http::default());
    let mut client = server.connect(&[PREFACE, SETTINGS].concat()).await;
    let started = Instant::now();
    // He acknowledges nothing, so that as far as HTTP/2 goes he may begin as many as he likes.
    for stream in (1..).step_by(2) {
        let asked = client.write_all(&get2(stream)).await;
        let mut answer = [0; 1024];
        let read = client.read(&mut answer).await;
        if asked.is_err() || !matches!(read, Ok(1..)) {
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
async fn what_was_asked_before_the_end_is_answered() {
    let server = Server::start();
    let mut kept = server.connect(GET).await;
    let mut answer = [0; 1024];
    let length = kept.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"hello"));
    // Both are in the pipe when the server is told to end, and nobody has read them yet.
    let mut new = server.connect(GET).await;
    let mut half = server.connect(PREFACE).await;
    tokio::task::yield_now().await;
    kept.write_all(GET).await.unwrap();
    half.write_all(&[SETTINGS, GET2].concat()).await.unwrap();
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
async fn a_service_that_is_never_made_costs_its_connection_alone() {
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
            Ok::<_, Infallible>(service_fn(async |_: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"made"))))
            }))
        }
    });
    tokio::spawn(serve(guard.listen(Pipes(pipes)), make).into_future());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (server, mut client) = duplex(64 * 1024);
        connect
            .send(Pipe(server))
            .unwrap_or_else(|_| panic!("it listens"));
        client.write_all(GET).await.unwrap();
        clients.push(client);
    }
    is_due(ended(&mut clients[0]).await, seconds(1));
    let mut answer = [0; 1024];
    let length = clients[1].read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"made"));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_fails_is_answered_for() {
    let (connect, pipes) = mpsc::unbounded_channel();
    let fails = service_fn(async |_: Request<Incoming>| {
        Err::<Response<Full<Bytes>>, _>(io::Error::other("overloaded"))
    });
    tokio::spawn(serve(ConnGuard::default().listen(Pipes(pipes)), fails).into_future());
    let (server, mut client) = duplex(64 * 1024);
    connect
        .send(Pipe(server))
        .unwrap_or_else(|_| panic!("it listens"));
    client.write_all(GET).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 500") && answer.contains("connection: close"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_of_age_is_told_at_once() {
    let guard = ConnGuard::builder().max_age(seconds(1000)).build().unwrap();
    let server = Server::start_with(guard, Http::default());
    // Nothing goes over this connection any more.
    let mut client = server.connect(&[PREFACE, SETTINGS, HANG2].concat()).await;
    let started = Instant::now();
    let goaway = async { while frame(&mut client).await[3] != 7 {} };
    timeout(seconds(2000), goaway).await.unwrap();
    let took = started.elapsed();
    assert!(
        took >= seconds(900) && took <= seconds(1100) + LATE,
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_pings_loses_who_does_not_answer_them_and_nobody_else() {
    let pinging = || {
        Http::builder()
            .ping(seconds(30), seconds(10))
            .build()
            .unwrap()
    };
    let hang = [PREFACE, SETTINGS, HANG2].concat();
    let server = Server::start_with(ConnGuard::default(), pinging());
    is_due(ended(&mut server.connect(&hang).await).await, seconds(40));
    sleep(seconds(1)).await; // It lingers.
    server.at_rest();

    let mut client = server.connect(&hang).await;
    let answering = async {
        let mut answered = 0;
        while answered < 20 {
            let mut frame = frame(&mut client).await;
            if (frame[3], frame[4]) == (6, 0) {
                frame[4] = 1;
                client.write_all(&frame).await.unwrap();
                answered += 1;
            }
        }
    };
    timeout(seconds(601), answering).await.unwrap();
    drop(client);

    // By default nobody is asked.
    let server = Server::start();
    let mut client = server.connect(&hang).await;
    assert!(timeout(seconds(600), ended(&mut client)).await.is_err());
}
