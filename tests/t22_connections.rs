//! T22: many kinds of clients at once leave no connections, files or counts behind. Runs for
//! `PALISADE_SOAK_SECONDS` on each server; without the variable, one round.
//!
//! A test binary of its own, because it counts the open files of the process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{
    Router,
    extract::WebSocketUpgrade,
    routing::{any, post},
};
use palisade::conn::ConnGuard;
use palisade_core::{Gauge, Guard, Phase};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, SECOND, ServerKind, all_gone, app, assert_served, read_until_closed},
    h2, process,
};
use std::{net::Ipv4Addr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, timeout},
};

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
        2 => GET.repeat(5).into_bytes(),
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
        0 => drop(read_until_closed(&mut client).await),
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
        ServerKind::Axum.serve(&guard, app.clone()).await,
        ServerKind::Serve.serve(&guard, app).await,
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
            journal.gauge(Guard::Connection, Gauge::Connections),
            Some(0)
        );
        let now = guard.snapshot();
        assert!(
            now.phases.is_empty() && now.connections_in(Phase::Upgraded) == 0,
            "{now:?}"
        );
        wait_until("the files are closed", || {
            process::open_files() <= open_files
        })
        .await;
        // The server still serves.
        let mut honest = RawClient::connect(server.addr).await.unwrap();
        wait_until("the client is admitted", || guard.snapshot().open == 1).await;
        assert_served(&mut honest).await;
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
