//! T15: HTTP/2 traffic that makes work and serves no request, under stock `axum::serve`: requests
//! cancelled as soon as they begin, at any rate, and frames that carry no request on.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{any, post},
};
use bytes::Bytes;
use http_body_util::Full;
use palisade::conn::{ConnGuard, ConnGuardBuilder};
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, wait_until},
    guarded::{SECOND, SLACK, ServerKind, all_gone, app, read_until_closed},
    h2, on_servers,
    servers::Server,
};
use std::{net::Ipv4Addr, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep},
};

/// The payload of `RST_STREAM` with the code CANCEL.
const CANCEL_PAYLOAD: [u8; 4] = [0, 0, 0, 8];

async fn guarded_server(
    kind: ServerKind,
    rules: impl FnOnce(ConnGuardBuilder) -> ConnGuardBuilder,
) -> (ConnGuard, Journal, Server) {
    let journal = Journal::default();
    let guard = rules(ConnGuard::builder())
        .metrics(journal.clone())
        .build()
        .unwrap();
    let upload = |body: Bytes| async move { body.len().to_string() };
    let upload = post(upload).layer(DefaultBodyLimit::disable());
    let tunnel = async |mut request: axum::extract::Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await?);
            let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
            Ok::<_, hyper::Error>(())
        });
        http::StatusCode::OK
    };
    let more = Router::new()
        .route("/upload", upload)
        .route("/any", any(|| async { "any method" }))
        .route("/tunnel", any(tunnel));
    let server = kind.serve(&guard, app().merge(more)).await;
    (guard, journal, server)
}

fn cancel(stream: u32) -> Vec<u8> {
    h2::frame(h2::RST_STREAM, 0, stream, &CANCEL_PAYLOAD)
}

async fn count_closed_for(guard: &ConnGuard, journal: &Journal, reason: Reason) -> usize {
    all_gone(guard).await;
    journal
        .disconnected()
        .iter()
        .filter(|(ended, _)| ended.reason == reason)
        .count()
}

async fn early_cancellations_at_any_rate_close_the_connection(kind: ServerKind) {
    let (guard, journal, server) = guarded_server(kind, |rules| rules).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let mut requests = 0;
    for stream in (1..).step_by(2) {
        // Never more than one request at a time, and never two without a pause.
        if client.send(h2::get(stream, "/hang")).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
        let _ = client.send(cancel(stream)).await;
        requests += 1;
        assert!(requests < 1000, "the connection is still open");
    }
    assert!(requests >= 200, "{requests}");
    neighbour.was_served().await;
    drop(client);
    assert_eq!(
        count_closed_for(&guard, &journal, Reason::CancelledRequests).await,
        1
    );
}

async fn leaving_a_page_and_expired_client_deadlines_are_no_abuse(kind: ServerKind) {
    let (guard, journal, server) = guarded_server(kind, |rules| rules).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let streams = |from: u32| (from..from + 200).step_by(2);
    let ask = |from| {
        streams(from)
            .flat_map(|stream| h2::get(stream, "/hang"))
            .collect::<Vec<_>>()
    };
    let stop = |from| streams(from).flat_map(cancel).collect::<Vec<_>>();
    let at_work = || guard.snapshot().in_flight;
    // A hundred requests, cancelled at once.
    client.send(ask(1)).await.unwrap();
    wait_until("the requests are in flight", || at_work() == 100).await;
    client.send(stop(1)).await.unwrap();
    wait_until("the requests are cancelled", || at_work() == 0).await;
    // Three times a hundred requests, cancelled after more than a second.
    for from in [201, 401, 601] {
        client.send(ask(from)).await.unwrap();
        wait_until("the requests are in flight", || at_work() == 100).await;
        sleep(SECOND + SECOND / 10).await;
        client.send(stop(from)).await.unwrap();
        wait_until("the requests are cancelled", || at_work() == 0).await;
    }
    sleep(SECOND / 2).await;
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    client.send(h2::get(801, "/")).await.unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 801).await, b"served");
    drop(client);
}

async fn frames_that_carry_no_request_on_close_the_connection(kind: ServerKind) {
    let (guard, journal, server) = guarded_server(kind, |rules| rules).await;
    let neighbour = kind.neighbour(server.addr);
    let floods = [
        ("PING", h2::frame(h2::PING, 0, 0, &[0; 8])),
        ("SETTINGS", h2::frame(h2::SETTINGS, 0, 0, &[])),
        ("PRIORITY", h2::frame(2, 0, 1, &[0, 0, 0, 3, 7])),
        ("WINDOW_UPDATE", h2::open(0, 1)),
        ("unknown", h2::frame(0x2a, 0, 0, &[0; 16])),
    ];
    for (name, frame) in floods {
        for with_request in [false, true] {
            let mut client = RawClient::connect(server.addr).await.unwrap();
            let request = if with_request {
                h2::get(1, "/hang")
            } else {
                Vec::new()
            };
            client
                .send([h2::hello(65_535), request].concat())
                .await
                .unwrap();
            let (mut read, mut write) = client.stream.into_split();
            let reader =
                tokio::spawn(
                    async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await },
                );
            let flood = frame.repeat(1000);
            let started = Instant::now();
            while write.write_all(&flood).await.is_ok() {
                assert!(
                    started.elapsed() < SLACK,
                    "{name}: the connection is still open"
                );
            }
            let _ = reader.await.unwrap();
        }
    }
    neighbour.was_served().await;
    let ended = count_closed_for(&guard, &journal, Reason::NoProgress).await;
    // h2 itself closes some of the connections.
    assert!(ended >= 6, "{ended}: {:?}", journal.disconnected());
}

async fn neither_a_closed_tunnel_nor_an_upload_excuses_a_flood(kind: ServerKind) {
    let (guard, journal, server) = guarded_server(kind, |rules| rules).await;
    let neighbour = kind.neighbour(server.addr);
    let tunnel = [h2::websocket(1, "/any"), cancel(1)].concat();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", "/upload"),
    ];
    let upload = h2::headers(1, 0, &fields);
    let mut ended = 0;
    for beside in [tunnel, upload] {
        if kind == ServerKind::Tonic && beside[3] == h2::HEADERS && ended == 0 {
            ended += 1; // tonic does not support tunnels.
            continue;
        }
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send([h2::hello(65_535), beside].concat())
            .await
            .unwrap();
        sleep(SECOND / 2).await;
        let (mut read, mut write) = client.stream.into_split();
        let reader =
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        let flood = h2::frame(h2::PING, 0, 0, &[0; 8]).repeat(1000);
        let mut sent = 0;
        while write.write_all(&flood).await.is_ok() {
            sent += flood.len();
            assert!(sent < 64 << 20, "the connection is still open");
        }
        let _ = reader.await.unwrap();
        ended += 1;
    }
    neighbour.was_served().await;
    let no_progress = count_closed_for(&guard, &journal, Reason::NoProgress).await;
    assert_eq!(no_progress, if kind == ServerKind::Tonic { 1 } else { 2 });
}

async fn a_tunnel_that_carries_bytes_is_progress_and_a_closed_one_is_idle(kind: ServerKind) {
    if kind == ServerKind::Tonic {
        return;
    }
    let (guard, journal, server) = guarded_server(kind, |rules| {
        rules
            .max_overhead(16 * 1024)
            .idle_timeout(SECOND)
            .upgraded_idle_timeout(2 * SECOND)
    })
    .await;
    let from = Ipv4Addr::LOCALHOST;
    let mut client = clients::http2::<Full<Bytes>>(from, server.addr)
        .await
        .unwrap();
    let uri = format!("http://{}/tunnel", server.addr);
    let mut request = http::Request::connect(uri).body(Full::default()).unwrap();
    request
        .extensions_mut()
        .insert(hyper::ext::Protocol::from_static("websocket"));
    client.ready().await.unwrap();
    // The server's SETTINGS allow it, once the client has received them.
    sleep(SECOND / 4).await;
    let mut answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let upgraded = hyper::upgrade::on(&mut answer).await.unwrap();
    let mut tunnel = hyper_util::rt::TokioIo::new(upgraded);
    let conn = || guard.snapshot();
    wait_until("the connection counts as upgraded", || conn().upgraded == 1).await;
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        tunnel.write_all(&piece).await.unwrap();
    }
    // A byte every half second, for longer than the idle timeout of an upgraded connection.
    for _ in 0..6 {
        sleep(SECOND / 2).await;
        tunnel.write_all(b"x").await.unwrap();
    }
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    drop(tunnel);
    let closed = Instant::now();
    if kind == ServerKind::Serve {
        wait_until("the connection no longer counts as upgraded", || {
            conn().upgraded == 0
        })
        .await;
    }
    wait_until("the connection is gone", || conn().open == 0).await;
    assert!(closed.elapsed() < SECOND + SLACK, "{:?}", closed.elapsed());
    drop(client);
    all_gone(&guard).await;
}

async fn uploads_downloads_and_many_requests_are_progress(kind: ServerKind) {
    let (guard, journal, server) =
        guarded_server(kind, |rules| rules.max_overhead(16 * 1024)).await;
    let from = Ipv4Addr::LOCALHOST;
    let mut client = clients::http2::<Full<Bytes>>(from, server.addr)
        .await
        .unwrap();
    let ask = |path: &str, body: Vec<u8>| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let uri = format!("http://{}{path}", server.addr);
        http::Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body.into()))
            .unwrap()
    };
    for length in [1, 16 << 20] {
        let answer = client
            .send_request(ask("/upload", vec![b'x'; length]))
            .await
            .unwrap();
        let answer = clients::whole(answer).await.unwrap();
        assert_eq!(answer.body(), &length.to_string());
    }
    for _ in 0..2000 {
        let answer = client.send_request(ask("/", Vec::new())).await.unwrap();
        assert_eq!(clients::whole(answer).await.unwrap().body(), "served");
    }
    // 64 MiB of a response, acknowledged throughout.
    use http_body_util::BodyExt;
    let mut endless = client
        .send_request(ask("/endless", Vec::new()))
        .await
        .unwrap();
    let mut got = 0;
    while got < 64 << 20 {
        got += endless
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len();
    }
    drop((endless, client));
    all_gone(&guard).await;
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
}

async fn a_flood_before_the_first_request_is_closed_before_its_timeout(kind: ServerKind) {
    let (guard, journal, server) = guarded_server(kind, |rules| rules).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let started = Instant::now();
    let flood = h2::frame(0x2a, 0, 0, &[0; 1024]).repeat(100);
    while client.send(&flood).await.is_ok() {}
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    read_until_closed(&mut client).await;
    assert_eq!(
        count_closed_for(&guard, &journal, Reason::NoProgress).await,
        1
    );
}

on_servers! {
    [axum, serve, tonic]
    early_cancellations_at_any_rate_close_the_connection,
    leaving_a_page_and_expired_client_deadlines_are_no_abuse,
    frames_that_carry_no_request_on_close_the_connection,
    neither_a_closed_tunnel_nor_an_upload_excuses_a_flood,
    uploads_downloads_and_many_requests_are_progress,
    a_flood_before_the_first_request_is_closed_before_its_timeout,
}

on_servers! {
    [axum, serve]
    a_tunnel_that_carries_bytes_is_progress_and_a_closed_one_is_idle,
}
