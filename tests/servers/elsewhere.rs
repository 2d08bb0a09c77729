//! The connection guard without `axum::serve` and tonic: an accept loop over hyper, and Unix
//! sockets.

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade::conn::{ConnGuard, connected};
use palisade_core::{ConnInfo, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, SECOND, SLACK, ServerKind, all_gone, app, assert_served, read_until_closed},
    servers,
};
use std::{future::IntoFuture, sync::Arc};
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
    assert_served(&mut honest).await;
    let started = Instant::now();
    let (_, is_reset, _) = read_until_closed(&mut silent).await;
    assert!(is_reset);
    let (_, is_reset, _) = read_until_closed(&mut honest).await;
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
        client.write_all(GET.as_bytes()).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_tracked_by_two_layers_counts_once() {
    let guard = ConnGuard::default();
    let server = ServerKind::Axum
        .serve(&guard, app().layer(guard.track_requests()))
        .await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send("GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    wait_until("the request is at work", || guard.snapshot().in_flight > 0).await;
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
    assert_served(&mut client).await;
    wait_until("it is reported", || journal.untracked() == [1]).await;
    assert_served(&mut client).await;
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.untracked(), [1]);
    server.abort();
}
