//! Features of `axum::serve` and `palisade::serve` that tonic does not have: upgrades, which have
//! their own rules (T04, T07), and axum's `ConnectInfo`.

use axum::{
    Router,
    extract::{ConnectInfo, WebSocketUpgrade},
    routing::{any, get},
};
use palisade::conn::{ConnGuard, ConnInfo};
use palisade_core::{Guard, Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, wait_until},
    guarded::{
        SECOND, ServerKind, all_gone, app, assert_on_time, assert_served, build_guard,
        read_until_closed,
    },
    h2, on_servers,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

async fn an_upgraded_connection_counts_and_has_its_own_idle_timeout(kind: ServerKind) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .idle_timeout(SECOND)
        .upgraded_idle_timeout(2 * SECOND);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    break;
                }
            }
        })
    };
    let server = kind
        .serve(&guard, Router::new().route("/ws", any(echo)))
        .await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(UPGRADE).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 101);
    // A message a second, for longer than an HTTP connection may be idle.
    for _ in 0..3 {
        sleep(SECOND).await;
        client
            .send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i'])
            .await
            .unwrap();
        let mut echoed = [0; 4];
        client.stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, [0x81, 2, b'h', b'i']);
        assert_eq!(
            (
                guard.snapshot().open,
                guard.snapshot().connections_in(Phase::Upgraded)
            ),
            (1, 1)
        );
    }
    let (_, _, after) = read_until_closed(&mut client).await;
    assert_on_time(after, 2 * SECOND);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
}

async fn an_http2_tunnel_counts_as_an_upgrade_and_a_request_beside_it_as_a_request(
    kind: ServerKind,
) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .idle_timeout(SECOND / 2)
        .upgraded_idle_timeout(2 * SECOND);
    let guard = builder
        .max_upgraded(1)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let ws = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let server = kind.serve(&guard, app().route("/ws", any(ws))).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), h2::websocket(1, "/ws")].concat())
        .await
        .unwrap();
    // `:status` 200 here and 503 below, as HPACK encodes them.
    assert_eq!(h2::next(&mut client.stream, h2::HEADERS, 1).await[0], 0x88);
    wait_until("the connection is upgraded", || {
        guard.snapshot().connections_in(Phase::Upgraded) == 1
    })
    .await;
    let mut second = RawClient::connect(server.addr).await.unwrap();
    second
        .send([h2::hello(65_535), h2::websocket(1, "/ws")].concat())
        .await
        .unwrap();
    assert_eq!(
        h2::next(&mut second.stream, h2::HEADERS, 1).await[..5],
        [0x48, 0x83, 0x6c, 0x0c, 0xff]
    );
    assert_eq!(guard.snapshot().upgraded, 1);
    drop(second);
    // Longer than an HTTP connection may be idle, with and without a request in flight.
    sleep(SECOND).await;
    client.send(h2::get(3, "/hang")).await.unwrap();
    wait_until("the request is at work", || {
        guard.snapshot().connections_in(Phase::Working) == 1
    })
    .await;
    sleep(3 * SECOND).await;
    client
        .send(h2::frame(h2::RST_STREAM, 0, 3, &[0, 0, 0, 8]))
        .await
        .unwrap();
    wait_until("the request has ended", || {
        guard.snapshot().connections_in(Phase::Upgraded) == 1
    })
    .await;
    let (_, _, after) = read_until_closed(&mut client).await;
    assert_on_time(after, 2 * SECOND);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(
        journal.refused(),
        [(Guard::Connection, Reason::UpgradedFull)]
    );
    assert_eq!(guard.snapshot().upgraded, 0);
}

async fn an_upgrade_over_the_limit_is_refused_and_the_connection_stays_http(kind: ServerKind) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .max_upgraded(1)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let server = kind.serve(&guard, app().route("/ws", any(echo))).await;
    let mut first = RawClient::connect(server.addr).await.unwrap();
    first.send(UPGRADE).await.unwrap();
    assert_eq!(first.head().await.unwrap().status, 101);
    let mut second = RawClient::connect(server.addr).await.unwrap();
    second.send(UPGRADE).await.unwrap();
    let head = second.head().await.unwrap();
    assert_eq!(
        (head.status.as_u16(), head.header("retry-after")),
        (503, Some("1"))
    );
    let length = head.header("content-length").unwrap().parse().unwrap();
    second.body(length).await.unwrap();
    // The connection stays HTTP, and may upgrade once another upgraded connection has closed.
    assert_served(&mut second).await;
    drop(first);
    wait_until("the first connection is closed", || {
        guard.snapshot().open == 1
    })
    .await;
    second.send(UPGRADE).await.unwrap();
    assert_eq!(second.head().await.unwrap().status, 101);
    drop(second);
    all_gone(&guard).await;
    assert_eq!(
        journal.refused(),
        [(Guard::Connection, Reason::UpgradedFull)]
    );
    assert_eq!(guard.snapshot().upgraded, 0);
}

async fn a_client_with_many_web_sockets_leaves_one_for_each_other_client(kind: ServerKind) {
    let (guard, journal) = build_guard(ConnGuard::builder().max_upgraded(20));
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let server = kind.serve(&guard, app().route("/ws", any(echo))).await;
    let upgrade = async |last| {
        let from = Ipv4Addr::new(127, 0, 6, last);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        client.send(UPGRADE).await.unwrap();
        (client.head().await.unwrap().status.as_u16(), client)
    };
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(upgrade(1).await);
    }
    // Half of the places that are not reserved for clients without an upgraded connection.
    assert_eq!(held.iter().filter(|(status, _)| *status == 101).count(), 7);
    for last in 2..=14 {
        held.push(upgrade(last).await);
        assert_eq!(held.last().unwrap().0, 101, "{last}");
    }
    assert_eq!((guard.snapshot().upgraded, upgrade(15).await.0), (20, 503));
    drop(held);
    all_gone(&guard).await;
    assert!(
        journal
            .refused()
            .iter()
            .all(|refusal| *refusal == (Guard::Connection, Reason::UpgradedFull))
    );
}

async fn each_request_carries_its_peer_and_its_connection(kind: ServerKind) {
    let guard = ConnGuard::default();
    let describe = |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: axum::extract::Request| async move {
        let conn = request.extensions().get::<Arc<ConnInfo>>().unwrap();
        format!(
            "{} {} {}",
            peer.ip(),
            conn.peer() == peer,
            conn.local().is_some()
        )
    };
    let server = kind
        .serve(&guard, Router::new().route("/", get(describe)))
        .await;
    let response = clients::get(Ipv4Addr::new(127, 0, 0, 5), server.addr, "/")
        .await
        .unwrap();
    assert_eq!(response.body(), "127.0.0.5 true true");
    all_gone(&guard).await;
}

async fn a_write_that_the_handler_has_abandoned_is_not_a_write_stall(kind: ServerKind) {
    let (guard, journal) = build_guard(
        ConnGuard::builder()
            .write_timeout(SECOND)
            .idle_timeout(SECOND),
    );
    // Writes more than the client reads, abandons the write, and waits for bytes instead.
    let abandons_write = |mut request: axum::extract::Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let sent = timeout(SECOND / 10, io.write_all(&vec![b'x'; 64 << 20])).await;
            assert!(sent.is_err());
            io.read_exact(&mut [0; 5]).await.unwrap();
            io.write_all(b"done").await.unwrap();
        });
        let upgrade = [("connection", "upgrade"), ("upgrade", "something")];
        (http::StatusCode::SWITCHING_PROTOCOLS, upgrade)
    };
    let server = kind
        .serve(&guard, Router::new().route("/", get(abandons_write)))
        .await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let upgrade =
        "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: something\r\n\r\n";
    client.send(upgrade).await.unwrap();
    wait_until("the write is blocked", || {
        guard.snapshot().connections_in(Phase::Writing) == 1
    })
    .await;
    sleep(3 * SECOND).await;
    client.send("hello").await.unwrap();
    let all = client.rest().await;
    assert!(all.ends_with(b"xdone"), "{} bytes", all.len());
    drop(client);
    all_gone(&guard).await;
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
}

on_servers! {
    [axum, serve]
    an_upgraded_connection_counts_and_has_its_own_idle_timeout,
    an_http2_tunnel_counts_as_an_upgrade_and_a_request_beside_it_as_a_request,
    an_upgrade_over_the_limit_is_refused_and_the_connection_stays_http,
    a_client_with_many_web_sockets_leaves_one_for_each_other_client,
    each_request_carries_its_peer_and_its_connection,
    a_write_that_the_handler_has_abandoned_is_not_a_write_stall,
}
