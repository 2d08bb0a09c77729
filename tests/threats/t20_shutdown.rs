//! T20: no client can delay a shutdown, and no request in flight is lost to one.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Empty};
use palisade::{
    conn::{ConnGuard, Phase, Reason},
    serve::Drained,
};
use palisade_testkit::{
    Journal,
    clients::{self, PATIENCE, RawClient, wait_until},
    guarded::{GET, SECOND, SLACK, all_gone, app, assert_served},
    h2,
};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A server with a shutdown signal.
struct TestServer {
    addr: SocketAddr,
    guard: ConnGuard,
    journal: Journal,
    signal: Arc<Notify>,
    task: JoinHandle<std::io::Result<Drained>>,
}

impl TestServer {
    async fn serve(app: Router, drain: Duration) -> Self {
        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let listener = guard.bind((LOCAL, 0)).await.unwrap();
        let signal = Arc::new(Notify::new());
        let signalled = Arc::clone(&signal);
        let serve = palisade::serve(listener, app)
            .with_graceful_shutdown(async move { signalled.notified().await })
            .drain(drain);
        let addr = serve.local_addr().unwrap();
        Self {
            addr,
            guard,
            journal,
            signal,
            task: tokio::spawn(serve.into_future()),
        }
    }

    /// Signals the shutdown and waits for its end. Returns the connections drained, the time it
    /// took, the guard and the journal.
    async fn shut_down(self) -> (Drained, Duration, ConnGuard, Journal) {
        let started = Instant::now();
        self.signal.notify_one();
        let drained = timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        (drained, started.elapsed(), self.guard, self.journal)
    }

    async fn wait_for_phase(&self, phase: Phase, connections: usize) {
        wait_until("the connections are in the phase", || {
            let phases = self.guard.snapshot().phases;
            phases
                .iter()
                .any(|(at, count)| *at == phase && *count == connections)
        })
        .await;
    }
}

/// [`app`] and `/gate`, which answers once `gate` is notified.
fn app_with(gate: &Arc<Notify>) -> Router {
    let gate = Arc::clone(gate);
    app().route(
        "/gate",
        get(async move || {
            gate.notified().await;
            let pieces = stream::iter(["do", "ne"]).map(Ok::<_, Infallible>);
            Body::from_stream(pieces)
        }),
    )
}

#[tokio::test]
async fn none_of_ten_ways_to_delay_a_shutdown_delays_it() {
    let drain = SECOND;
    let server = TestServer::serve(app(), drain).await;
    let mut attackers = Vec::new();
    let mut attack = async |bytes: Vec<u8>| {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(bytes).await.unwrap();
        attackers.push(client);
    };
    attack(vec![]).await; // Silence.
    attack(b"PRI * HT".to_vec()).await; // Half a preface.
    attack(b"GET / HTTP/1.1\r\nho".to_vec()).await; // Half a head.
    attack(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()).await; // A handler that never ends.
    attack(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\nG".to_vec()).await; // One byte more.
    attack(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()).await; // Reads nothing.
    attack(h2::PREFACE.to_vec()).await; // HTTP/2 that goes no further.
    attack([h2::hello(65_535), h2::get(1, "/")].concat()).await; // Acknowledges nothing.
    attack([h2::hello(0), h2::get(1, "/endless")].concat()).await; // Shuts its window.
    attack([h2::hello(65_535), h2::get(1, "/hang")].concat()).await; // A stream that never ends.
    server.wait_for_phase(Phase::FirstHead, 4).await;
    wait_until("the requests are in flight", || {
        server.guard.snapshot().in_flight == 5
    })
    .await;

    let (drained, took, guard, journal) = server.shut_down().await;
    assert!(took < drain + SLACK, "{took:?}");
    assert!((5..=8).contains(&drained.cut), "{drained:?}");
    assert_eq!(drained.finished + drained.cut, 10, "{drained:?}");
    all_gone(&guard).await;
    let closed = journal.closed();
    assert_eq!(
        closed
            .iter()
            .filter(|why| **why == Some(Reason::Shutdown))
            .count(),
        closed.len() - 2
    );
}

#[tokio::test]
async fn requests_in_flight_are_answered_completely_and_no_new_connection_is_admitted() {
    let gate = Arc::new(Notify::new());
    let server = TestServer::serve(app_with(&gate), 10 * SECOND).await;
    let addr = server.addr;
    let mut http1 = RawClient::connect(addr).await.unwrap();
    http1.send(GET.replacen('/', "/gate", 1)).await.unwrap();
    let mut http2 = clients::http2::<Empty<Bytes>>(LOCAL, addr).await.unwrap();
    let request = || {
        Request::get(format!("http://{addr}/gate"))
            .body(Empty::new())
            .unwrap()
    };
    let second = tokio::spawn(http2.send_request(request()));
    let mut idle = RawClient::connect(addr).await.unwrap();
    assert_served(&mut idle).await;
    server.wait_for_phase(Phase::Working, 2).await;

    let guard = server.guard.clone();
    let shutdown = tokio::spawn(server.shut_down());
    assert_eq!(idle.rest().await, b""); // The idle connection closes at once.
    assert!(RawClient::connect(addr).await.is_err());
    gate.notify_waiters();
    let head = http1.head().await.unwrap();
    assert_eq!(
        (head.status.as_u16(), head.header("connection")),
        (200, Some("close"))
    );
    assert!(http1.rest().await.ends_with(b"0\r\n\r\n"));
    let answer = second.await.unwrap().unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "done"
    );

    let (drained, took, ..) = shutdown.await.unwrap();
    assert_eq!((drained.finished, drained.cut), (3, 0));
    assert!(took < 5 * SECOND, "{took:?}");
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_connection_upgraded_after_the_signal_counts_once() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let late = async move |upgrade: axum::extract::ws::WebSocketUpgrade| {
        opened.notified().await;
        upgrade.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
    };
    let server = TestServer::serve(Router::new().route("/ws", get(late)), 10 * SECOND).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(WEBSOCKET_REQUEST).await.unwrap();
    server.wait_for_phase(Phase::Working, 1).await;
    let (guard, addr) = (server.guard.clone(), server.addr);
    let shutdown = tokio::spawn(server.shut_down());
    wait_until("the listener is closed", || {
        std::net::TcpListener::bind(addr).is_ok()
    })
    .await;
    gate.notify_waiters();
    assert_eq!(client.head().await.unwrap().status, 101);
    let (drained, ..) = shutdown.await.unwrap();
    assert_eq!((drained.finished, drained.cut, drained.upgraded), (0, 0, 1));
    all_gone(&guard).await;
}

const WEBSOCKET_REQUEST: &str = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn a_web_socket_does_not_delay_the_shutdown_and_is_closed_gracefully() {
    let echo = Router::new().route(
        "/ws",
        get(async |upgrade: axum::extract::ws::WebSocketUpgrade| {
            upgrade.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
        }),
    );
    let server = TestServer::serve(echo, 10 * SECOND).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(WEBSOCKET_REQUEST).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 101);
    server.wait_for_phase(Phase::Upgraded, 1).await;
    let (drained, took, guard, _) = server.shut_down().await;
    assert_eq!((drained.cut, drained.upgraded), (0, 1));
    assert!(took < SLACK, "{took:?}");
    assert_eq!(client.rest().await, b"");
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_handler_that_never_yields_does_not_delay_the_shutdown_and_is_counted() {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let spins = Arc::clone(&stop);
    let busy = Router::new()
        .route("/hang", get(std::future::pending::<()>))
        .route(
            "/",
            get(async move || {
                while !spins.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }),
        );
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let server = runtime
        .spawn(TestServer::serve(busy, SECOND))
        .await
        .unwrap();
    let mut clients = Vec::new();
    for (n, path) in ["/hang", "/hang", "/"].into_iter().enumerate() {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET.replacen('/', path, 1)).await.unwrap();
        wait_until("the request is in flight", || {
            server.guard.snapshot().in_flight == n as u64 + 1
        })
        .await;
        clients.push(client);
    }
    let (drained, took, ..) = server.shut_down().await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!((drained.finished, drained.cut), (0, 3));
    assert!(took < SECOND + SLACK, "{took:?}");
    runtime.shutdown_background();
}
