//! The connection guard without `axum::serve` and tonic: an accept loop over hyper, and Unix
//! sockets. Also a soak test with many kinds of clients at once that checks for leaks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{
    Router,
    extract::WebSocketUpgrade,
    routing::{any, post},
};
use guarded::{SECOND, SLACK, all_gone, app, cut, h2, hardened, serve, served};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade::conn::{ConnGuard, connected};
use palisade_core::{ConnInfo, Gauge, Guard, Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, until},
    process, servers,
};
use std::{future::IntoFuture, net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::{Layer, ServiceExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accept_loop_over_hyper_is_guarded_by_the_listener_and_request_tracking() {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .idle_timeout(SECOND);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let mut listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let service = guard.track_requests().layer(app());
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((io, peer)) = listener.accept().await {
            assert_eq!(io.conn().peer(), peer);
            let conn = io.conn().info();
            let service = service.clone().map_request(
                move |mut request: http::Request<hyper::body::Incoming>| {
                    request
                        .extensions_mut()
                        .insert::<Arc<ConnInfo>>(Arc::clone(&conn));
                    request
                },
            );
            connections.spawn(async move {
                let service = TowerToHyperService::new(service);
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection_with_upgrades(TokioIo::new(io), service)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    let mut silent = RawClient::connect(addr).await.unwrap();
    let mut honest = RawClient::connect(addr).await.unwrap();
    served(&mut honest).await;
    let started = Instant::now();
    let (_, is_reset, _) = cut(&mut silent).await;
    assert!(is_reset);
    let (_, is_reset, _) = cut(&mut honest).await;
    assert!(!is_reset && started.elapsed() < SECOND + SLACK);
    drop(honest);
    all_gone(&guard).await;
    let mut closed = journal.closed();
    closed.sort_by_key(|reason| reason.map(|reason| reason as usize));
    assert_eq!(closed, [Some(Reason::FirstRequest), Some(Reason::Idle)]);
    server.abort();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_have_deadlines_and_no_share_per_client() {
    let path = std::env::temp_dir().join(format!("palisade-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let guard = ConnGuard::builder().max_per_client(1).accept_rate((1, 1));
    let guard = guard.first_request_timeout(SECOND).build().unwrap();
    let listener = guard.listen(tokio::net::UnixListener::bind(&path).unwrap());
    let server = tokio::spawn(axum::serve(listener, connected(app())).into_future());
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        client.write_all(guarded::GET.as_bytes()).await.unwrap();
        let mut response = [0; 15];
        client.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"HTTP/1.1 200 OK");
        clients.push(client);
    }
    let mut silent = tokio::net::UnixStream::connect(&path).await.unwrap();
    let closed = timeout(SECOND + SLACK, silent.read(&mut [0]))
        .await
        .unwrap();
    assert!(!matches!(closed, Ok(1)));
    drop((clients, silent));
    all_gone(&guard).await;
    server.abort();
    let _ = std::fs::remove_file(&path);
}

/// Connects, sends a whole or partial request selected by `n`, and closes, resets or keeps the
/// connection.
async fn misbehave(n: usize, addr: std::net::SocketAddr) {
    let from = Ipv4Addr::new(127, 0, 5, (n % 50) as u8 + 1);
    let Ok(mut client) = RawClient::connect_from(from, addr).await else {
        return;
    };
    let upgrade = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let bytes: Vec<u8> = match n % 9 {
        0 => Vec::new(),
        1 => b"GET / HTT".to_vec(),
        2 => guarded::GET.repeat(5).into_bytes(),
        3 => h2::PREFACE[..10].to_vec(),
        4 => [h2::hello(65_535), h2::get(1, "/"), h2::get(3, "/hang")].concat(),
        5 => upgrade.into(),
        6 => b"GET /hang HTTP/1.1\r\nhost: test\r\n\r\nx".to_vec(),
        7 => b"GET /endless HTTP/1.1\r\nhost: test\r\n\r\n".to_vec(),
        _ => b"POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\nsome".to_vec(),
    };
    let _ = client.send(bytes).await;
    if n.is_multiple_of(2) {
        let _ = timeout(
            Duration::from_millis(20),
            client.stream.read(&mut [0; 4096]),
        )
        .await;
    }
    // Some stay until the server closes the connection.
    match n % 4 {
        0 => drop(cut(&mut client).await),
        1 => client.stream.set_zero_linger().unwrap(),
        2 => drop(client.stream.shutdown().await),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_many_kinds_leave_no_connections_files_or_counts_behind() {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .max_connections(60)
        .max_per_client(5)
        .accept_rate(None);
    let builder = builder
        .first_request_timeout(SECOND / 2)
        .header_timeout(SECOND / 2)
        .idle_timeout(SECOND / 2);
    let builder = builder
        .upgraded_idle_timeout(SECOND / 2)
        .write_timeout(SECOND / 2)
        .probe_interval(SECOND / 4);
    let builder = builder
        .max_age(SECOND)
        .age_grace(SECOND / 2)
        .max_requests(3);
    let builder = builder.sweep_interval(Duration::from_millis(50));
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let upload = || async { "unread" };
    let ws = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let more = Router::new()
        .route("/upload", post(upload))
        .route("/ws", any(ws));
    let app = app().merge(more);
    // The first round creates everything that is created once and kept.
    for server in [
        serve(&guard, app.clone()).await,
        hardened(&guard, app).await,
    ] {
        soak(&guard, server.addr).await;
        let open_files = process::open_files();
        let seconds = std::env::var("PALISADE_SOAK_SECONDS").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(0);
        let started = Instant::now();
        while started.elapsed() < seconds * SECOND {
            soak(&guard, server.addr).await;
        }
        assert_eq!(journal.opened(), journal.closed().len());
        assert_eq!(
            journal.level(Guard::Connection, Gauge::Connections),
            Some(0)
        );
        let now = guard.snapshot();
        assert!(
            now.phases.is_empty() && now.at(Phase::Upgraded) == 0,
            "{now:?}"
        );
        until("the files are closed", || {
            process::open_files() <= open_files
        })
        .await;
        // The server still serves.
        let mut honest = RawClient::connect(server.addr).await.unwrap();
        until("the client is admitted", || guard.snapshot().open == 1).await;
        served(&mut honest).await;
        drop(honest);
        all_gone(&guard).await;
    }
}

async fn soak(guard: &ConnGuard, addr: std::net::SocketAddr) {
    let mut clients = JoinSet::new();
    for n in 0..2000 {
        clients.spawn(misbehave(n, addr));
        if clients.len() >= 100 {
            clients.join_next().await.unwrap().unwrap();
        }
        let open = guard.snapshot().open;
        assert!(open <= 60, "{open}");
    }
    timeout(20 * SECOND, clients.join_all()).await.unwrap();
    all_gone(guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_tracked_by_two_layers_counts_once() {
    let guard = ConnGuard::default();
    let server = serve(&guard, app().layer(guard.track_requests())).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    until("the request is at work", || guard.snapshot().in_flight > 0).await;
    assert_eq!(guard.snapshot().in_flight, 1);
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_request_tracking_is_reported_once() {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .metrics(journal.clone());
    let guard = builder.build().unwrap();
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, app()).into_future());
    let mut client = RawClient::connect(addr).await.unwrap();
    served(&mut client).await;
    until("it is reported", || journal.untracked() == [1]).await;
    served(&mut client).await;
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.untracked(), [1]);
    server.abort();
}
