//! T06, slow bodies: stalled, trickled, and burst-then-silent uploads, and a reader who takes
//! nothing, are cut in time on real servers; honest clients beside them are served. The numbers
//! are a twentieth of the defaults, so that it takes seconds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

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
/// What a busy machine is given beyond the exact time.
const SLACK: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

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

/// How many handlers are at work.
#[derive(Clone, Debug, Default)]
struct Working(Arc<AtomicUsize>);

/// One of them.
struct AtWork(Working);

impl Working {
    fn enter(&self) -> AtWork {
        self.0.fetch_add(1, SeqCst);
        AtWork(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// Reads the whole body and answers its length.
async fn length(working: Working, request: Request) -> Result<String, StatusCode> {
    let _at_work = working.enter();
    let whole = to_bytes(request.into_body(), usize::MAX).await;
    whole
        .map(|bytes| bytes.len().to_string())
        .map_err(|_| StatusCode::BAD_REQUEST)
}

fn router(working: &Working) -> Router {
    let upload = |working: Working| post(move |request| length(working.clone(), request));
    Router::new()
        .route("/a", upload(working.clone()))
        .route("/b", upload(working.clone()))
}

/// What an attacker does after its head.
#[derive(Clone, Copy, Debug)]
enum Attack {
    Stall,
    Trickle,
    BurstThenSilence,
    /// As [`Self::Stall`], but calls it something like gRPC, which may be silent for longer.
    Forge,
}

const ATTACKS: [Attack; 4] = [
    Attack::Stall,
    Attack::Trickle,
    Attack::BurstThenSilence,
    Attack::Forge,
];

/// Attacks once; says what came back and how long after the last useful byte.
async fn attack(addr: SocketAddr, path: &str, attack: Attack) -> io::Result<(u16, Duration)> {
    let mut client = RawClient::connect(addr).await?;
    let kind = if let Attack::Forge = attack {
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
        sleep(2 * STEP).await;
        client.send(vec![b'x'; 100_000]).await?;
    }
    let began = Instant::now();
    let (mut reading, mut writing) = client.stream.split();
    let drip = async {
        if let Attack::Trickle = attack {
            // Ends by itself, and earlier when the server no longer takes anything.
            for _ in 0..400 {
                writing.write_all(b"x").await?;
                sleep(STEP).await;
            }
        }
        std::future::pending::<io::Result<()>>().await
    };
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        // Up to the end of the connection, by FIN or by RST.
        while let Ok(count @ 1..) = reading.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    tokio::select! {
        () = read => {}
        error = drip => error?,
        () = sleep(clients::PATIENCE) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let elapsed = began.elapsed();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("connection: close"), "{attack:?}: {answer}");
    Ok((answer[9..12].parse().map_err(io::Error::other)?, elapsed))
}

/// An honest upload of so many pieces over its own connection.
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
async fn slow_uploads_are_answered_and_cut_and_honest_ones_are_served() {
    let working = Working::default();
    let journal = Journal::default();
    // Applied to each route, and by `axum::serve` to each connection.
    let server = servers::axum_bare(router(&working).layer(layer(&journal))).await;
    let addr = server.addr;
    let mut attackers = JoinSet::new();
    for path in ["/a", "/b"] {
        for kind in ATTACKS {
            attackers.spawn(async move { (kind, attack(addr, path, kind).await) });
        }
    }
    // Beside them: 32 KiB/s, and somebody who is gone for three steps of five.
    let steady = upload(addr, "/a", Pieces::new(50, 1600).declared().every(STEP));
    let phone = upload(addr, "/b", Pieces::new(12, 2000).every(4 * STEP));
    let (steady, phone) = tokio::join!(steady, phone);
    assert_eq!(
        (steady.status(), &steady.body()[..]),
        (StatusCode::OK, &b"80000"[..])
    );
    assert_eq!(
        (phone.status(), &phone.body()[..]),
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
    // No handler is left.
    assert_eq!(working.count(), 0);
}

#[tokio::test]
async fn on_http2_a_slow_stream_is_answered_and_its_neighbours_go_on() {
    let journal = Journal::default();
    let working = Working::default();
    let server = servers::hyper(tower::Layer::layer(&layer(&journal), router(&working))).await;
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
    let began = Instant::now();
    let slow = async {
        let status = send("/a", Pieces::new(10, 10).every(4 * GAP)).await;
        (status, began.elapsed())
    };
    let steady = send("/b", Pieces::new(40, 1600).every(STEP));
    let ((slow, elapsed), steady) = tokio::join!(slow, steady);
    assert_eq!(
        (slow, steady),
        (StatusCode::REQUEST_TIMEOUT, StatusCode::OK)
    );
    assert!(elapsed < GAP + SLACK, "{elapsed:?}");
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
}

#[tokio::test]
async fn over_http1_the_content_type_of_grpc_buys_no_time() {
    let journal = Journal::default();
    let router = router(&Working::default()).layer(layer(&journal));
    let server = servers::axum_bare(router).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST /a HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc\r\n\
                content-length: 1000000\r\n\r\n";
    let began = Instant::now();
    client.send(head).await.unwrap();
    let answer = client.head().await.unwrap();
    assert!(began.elapsed() < 2 * GAP, "{:?}", began.elapsed());
    // There is no gRPC over HTTP/1: whoever says so is answered like anybody else.
    assert_eq!(
        (answer.status, answer.header("connection")),
        (StatusCode::REQUEST_TIMEOUT, Some("close"))
    );
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
}

/// Switches protocols, and echoes four bytes whenever they come.
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
async fn events_and_upgrades_keep_their_own_pace() {
    let journal = Journal::default();
    let quiet = 2 * GAP;
    let events = move || async move { Body::new(Pieces::new(3, 40_000).every(quiet)) };
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
            sleep(quiet).await;
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
async fn a_grpc_stream_may_pause_and_is_told_when_it_stalls() {
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
            sleep(GAP).await; // Too long for the pace of others.
            sender.send(piece()).await.unwrap();
        }
    });
    let total = client.collect(ReceiverStream::new(pieces)).await.unwrap();
    assert_eq!(total.get_ref().bytes, 15);
    assert!(journal.refused().is_empty());

    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    sender.send(piece()).await.unwrap();
    let began = Instant::now();
    let status = client
        .collect(ReceiverStream::new(pieces))
        .await
        .unwrap_err();
    assert!(began.elapsed() < 2 * GAP + SLACK, "{:?}", began.elapsed());
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(status.message(), "body too slow");
    assert_eq!(journal.refused(), [(Guard::SlowBody, Reason::Gap)]);
    // The channel is still of use.
    client.unary(piece()).await.unwrap();
}

#[tokio::test]
async fn on_http1_a_reader_who_takes_nothing_is_cut() {
    let journal = Journal::default();
    let gap = Pace::gap_only(GAP).unwrap();
    let layer = SlowBodyLayer::new().response(gap).metrics(journal.clone());
    // 16 MiB in frames of 64 KiB: more than all buffers on the way hold.
    let big = || async { Body::new(Pieces::new(256, 65_536)) };
    let server = servers::axum_bare(Router::new().route("/", get(big)).layer(layer)).await;
    let mut stalled = RawClient::connect(server.addr).await.unwrap();
    stalled
        .send("GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    // Meanwhile somebody takes all of it.
    let whole = clients::get(LOCALHOST, server.addr, "/").await.unwrap();
    assert_eq!(whole.body().len(), 16 << 20);
    while journal.cut().is_empty() {
        assert!(began.elapsed() < 2 * GAP + SLACK, "still open");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(journal.cut(), [(Guard::SlowBody, Reason::Gap)]);
    assert!(stalled.rest().await.len() < 16 << 20);
}
