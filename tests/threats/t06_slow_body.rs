//! T06, slow bodies on real servers. Uploads that stall, trickle, or fall silent after a burst are
//! refused in time, and a response that its client does not read is cut. Honest clients beside them
//! are served. The durations are a twentieth of the defaults, so that the test takes seconds.

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    routing::{any, get, post},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use palisade_core::{Guard, Reason};
use palisade_slow_body::{Pace, SlowBodyLayer};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, RawClient},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers,
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const GAP: Duration = Duration::from_millis(750);
/// The tolerance for a busy machine beyond the exact time.
const SLACK: Duration = Duration::from_secs(4);
/// The interval between the pieces of a body.
const PIECE_INTERVAL: Duration = Duration::from_millis(50);

fn pace() -> Pace {
    Pace::builder()
        .gap(GAP)
        .window(Duration::from_millis(500))
        .grace(Duration::from_millis(250))
        .build()
        .unwrap()
}

fn layer(journal: &Journal) -> SlowBodyLayer {
    let grpc = Pace::gap_only(2 * GAP).unwrap();
    SlowBodyLayer::new()
        .request(pace())
        .grpc(grpc)
        .response(pace())
        .metrics(journal.clone())
}

/// Counts the handlers that are running.
#[derive(Clone, Debug, Default)]
struct Handlers(Arc<AtomicUsize>);

/// One running handler, counted until it is dropped.
struct RunningHandler(Handlers);

impl Handlers {
    fn start(&self) -> RunningHandler {
        self.0.fetch_add(1, SeqCst);
        RunningHandler(self.clone())
    }

    fn running(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// Reads the whole body and returns its length.
async fn body_length(handlers: Handlers, request: Request) -> Result<String, StatusCode> {
    let _running = handlers.start();
    let whole = to_bytes(request.into_body(), usize::MAX).await;
    whole
        .map(|bytes| bytes.len().to_string())
        .map_err(|_| StatusCode::BAD_REQUEST)
}

fn router(handlers: &Handlers) -> Router {
    let upload = |handlers: Handlers| post(move |request| body_length(handlers.clone(), request));
    Router::new()
        .route("/a", upload(handlers.clone()))
        .route("/b", upload(handlers.clone()))
}

/// What a client does after its request head.
#[derive(Clone, Copy, Debug)]
enum Attack {
    Stall,
    Trickle,
    BurstThenSilence,
    /// Like [`Self::Stall`], with a content type that resembles gRPC, which may be silent for
    /// longer.
    FakeGrpc,
}

const ATTACKS: [Attack; 4] = [
    Attack::Stall,
    Attack::Trickle,
    Attack::BurstThenSilence,
    Attack::FakeGrpc,
];

/// Runs one attack. Returns the status of the response and the time since the last useful byte.
async fn attack(addr: SocketAddr, path: &str, attack: Attack) -> io::Result<(u16, Duration)> {
    let mut client = RawClient::connect(addr).await?;
    let kind = if let Attack::FakeGrpc = attack {
        "application/grpcx"
    } else {
        "text/plain"
    };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: {kind}\r\n\
         content-length: 1000000\r\n\r\n"
    );
    client.send(head).await?;
    if let Attack::BurstThenSilence = attack {
        sleep(2 * PIECE_INTERVAL).await;
        client.send(vec![b'x'; 100_000]).await?;
    }
    let started = Instant::now();
    let (mut reading, mut writing) = client.stream.split();
    let drip = async {
        if let Attack::Trickle = attack {
            // Ends by itself, or earlier when a write fails.
            for _ in 0..400 {
                writing.write_all(b"x").await?;
                sleep(PIECE_INTERVAL).await;
            }
        }
        std::future::pending::<io::Result<()>>().await
    };
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        // Until the connection ends, by FIN or by RST.
        while let Ok(count @ 1..) = reading.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    tokio::select! {
        () = read => {}
        error = drip => error?,
        () = sleep(clients::PATIENCE) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let elapsed = started.elapsed();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("connection: close"), "{attack:?}: {answer}");
    Ok((answer[9..12].parse().map_err(io::Error::other)?, elapsed))
}

/// Sends an honest upload over its own connection and returns the response.
async fn upload(addr: SocketAddr, path: &'static str, body: Pieces) -> Response<Bytes> {
    let mut sender = clients::http1::<Pieces>(LOCALHOST, addr).await.unwrap();
    let request = http::Request::post(path)
        .header("host", "test")
        .body(body)
        .unwrap();
    let response = timeout(clients::PATIENCE, sender.send_request(request))
        .await
        .unwrap();
    clients::whole(response.unwrap()).await.unwrap()
}

#[tokio::test]
async fn slow_uploads_are_refused_and_honest_ones_are_served() {
    let handlers = Handlers::default();
    let journal = Journal::default();
    // axum applies the layer to each route, and `axum::serve` to each connection.
    let server = servers::axum_bare(router(&handlers).layer(layer(&journal))).await;
    let addr = server.addr;
    let mut attackers = JoinSet::new();
    for path in ["/a", "/b"] {
        for kind in ATTACKS {
            attackers.spawn(async move { (kind, attack(addr, path, kind).await) });
        }
    }
    // Beside them, an upload at 32 kB/s and one with a pause of four intervals before each piece.
    let steady = upload(
        addr,
        "/a",
        Pieces::new(50, 1600).declared().every(PIECE_INTERVAL),
    );
    let intermittent = upload(addr, "/b", Pieces::new(12, 2000).every(4 * PIECE_INTERVAL));
    let (steady, intermittent) = tokio::join!(steady, intermittent);
    assert_eq!(
        (steady.status(), &steady.body()[..]),
        (StatusCode::OK, &b"80000"[..])
    );
    assert_eq!(
        (intermittent.status(), &intermittent.body()[..]),
        (StatusCode::OK, &b"24000"[..])
    );
    while let Some(ended) = attackers.join_next().await {
        let (kind, ended) = ended.unwrap();
        let (status, elapsed) = ended.unwrap();
        assert_eq!(status, 408, "{kind:?}");
        assert!(elapsed < GAP + SLACK, "{kind:?}: {elapsed:?}");
    }
    assert_eq!(journal.refused().len(), 8);
    assert!(
        journal
            .refused()
            .iter()
            .all(|(guard, _)| *guard == Guard::SlowBody)
    );
    assert!(journal.cut().is_empty());
    // No handler is still running.
    assert_eq!(handlers.running(), 0);
}

#[tokio::test]
async fn a_slow_http2_stream_is_refused_and_another_stream_continues() {
    let journal = Journal::default();
    let handlers = Handlers::default();
    let server = servers::hyper(tower::Layer::layer(&layer(&journal), router(&handlers))).await;
    let sender = clients::http2::<Pieces>(LOCALHOST, server.addr)
        .await
        .unwrap();
    let send = |path: &str, body| {
        let mut sender = sender.clone();
        let request = http::Request::post(format!("http://test{path}"))
            .body(body)
            .unwrap();
        async move {
            let response = timeout(clients::PATIENCE, sender.send_request(request))
                .await
                .unwrap();
            response.unwrap().status()
        }
    };
    let started = Instant::now();
    let slow = async {
        let status = send("/a", Pieces::new(10, 10).every(4 * GAP)).await;
        (status, started.elapsed())
    };
    let steady = send("/b", Pieces::new(40, 1600).every(PIECE_INTERVAL));
    let ((slow, elapsed), steady) = tokio::join!(slow, steady);
    assert_eq!(
        (slow, steady),
        (StatusCode::REQUEST_TIMEOUT, StatusCode::OK)
    );
    assert!(elapsed < GAP + SLACK, "{elapsed:?}");
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
}

#[tokio::test]
async fn over_http1_the_grpc_content_type_does_not_extend_the_gap() {
    let journal = Journal::default();
    let router = router(&Handlers::default()).layer(layer(&journal));
    let server = servers::axum_bare(router).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST /a HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc\r\n\
                content-length: 1000000\r\n\r\n";
    let started = Instant::now();
    client.send(head).await.unwrap();
    let answer = client.head().await.unwrap();
    assert!(started.elapsed() < GAP + SLACK, "{:?}", started.elapsed());
    // gRPC does not exist over HTTP/1, so the response is the same as without this content type.
    assert_eq!(
        (answer.status, answer.header("connection")),
        (StatusCode::REQUEST_TIMEOUT, Some("close"))
    );
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
}

/// Switches protocols and echoes every four bytes.
async fn upgrade(mut request: Request) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
        let mut bytes = [0; 4];
        while io.read_exact(&mut bytes).await.is_ok() {
            io.write_all(&bytes).await.unwrap();
        }
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response
        .header("connection", "upgrade")
        .header("upgrade", "echo");
    response.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn event_streams_and_upgraded_connections_may_pause() {
    let journal = Journal::default();
    let pause = 2 * GAP;
    let events = move || async move { Body::new(Pieces::new(3, 40_000).every(pause)) };
    let router = Router::new()
        .route("/events", get(events))
        .route("/echo", any(upgrade));
    let server = servers::axum_bare(router.layer(layer(&journal))).await;
    let events = clients::get(LOCALHOST, server.addr, "/events");
    let echo = async {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        let head =
            "GET /echo HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        client.send(head).await.unwrap();
        assert_eq!(
            client.head().await.unwrap().status,
            StatusCode::SWITCHING_PROTOCOLS
        );
        for _ in 0..2 {
            sleep(pause).await;
            client.send("ping").await.unwrap();
            let mut bytes = [0; 4];
            timeout(clients::PATIENCE, client.stream.read_exact(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&bytes, b"ping");
        }
    };
    let (events, ()) = tokio::join!(events, echo);
    assert_eq!(events.unwrap().body().len(), 120_000);
    assert!(journal.refused().is_empty() && journal.cut().is_empty());
}

#[tokio::test]
async fn a_grpc_stream_may_pause_and_gets_deadline_exceeded_when_it_stalls() {
    let journal = Journal::default();
    let mut router = tonic::transport::Server::builder().layer(layer(&journal));
    let server = servers::tonic(router.add_service(EchoServer::new(Lengths))).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = || Piece {
        data: Bytes::from_static(b"piece"),
    };

    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for _ in 0..3 {
            sleep(GAP).await; // Too long for the pace of other requests.
            sender.send(piece()).await.unwrap();
        }
    });
    let total = client.collect(ReceiverStream::new(pieces)).await.unwrap();
    assert_eq!(total.get_ref().bytes, 15);
    assert!(journal.refused().is_empty());

    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    sender.send(piece()).await.unwrap();
    let started = Instant::now();
    let status = client
        .collect(ReceiverStream::new(pieces))
        .await
        .unwrap_err();
    assert!(
        started.elapsed() < 2 * GAP + SLACK,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(status.message(), "body too slow");
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
    // The channel is still usable.
    client.unary(piece()).await.unwrap();
}

#[tokio::test]
async fn an_http1_response_is_cut_when_its_client_reads_nothing() {
    let journal = Journal::default();
    let gap = Pace::gap_only(GAP).unwrap();
    let layer = SlowBodyLayer::new().response(gap).metrics(journal.clone());
    // 16 MiB in frames of 64 KiB: more than all buffers on the path hold.
    let big = || async { Body::new(Pieces::new(256, 65_536)) };
    let server = servers::axum_bare(Router::new().route("/", get(big)).layer(layer)).await;
    let mut stalled = RawClient::connect(server.addr).await.unwrap();
    stalled
        .send("GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let started = Instant::now();
    // Meanwhile another client reads all of it.
    let whole = clients::get(LOCALHOST, server.addr, "/").await.unwrap();
    assert_eq!(whole.body().len(), 16 << 20);
    while journal.cut().is_empty() {
        assert!(
            started.elapsed() < 2 * GAP + SLACK,
            "the stalled response is not cut"
        );
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
    assert!(stalled.rest().await.len() < 16 << 20);
}
