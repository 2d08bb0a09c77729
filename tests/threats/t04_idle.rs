//! T04: idle connections of HTTP/1 and HTTP/2 under stock `axum::serve`. They are closed gracefully
//! after the idle timeout, whatever they send meanwhile, and never while a request is in flight.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use palisade::conn::{ConnGuard, Pressure};
use palisade_core::{Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, wait_until},
    guarded::{
        GET, SECOND, SLACK, ServerKind, all_gone, app, assert_on_time, assert_served,
        read_until_closed,
    },
    h2, on_servers,
};
use std::{convert::Infallible, net::Ipv4Addr, time::Duration};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep},
};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn short_idle_guard(journal: &Journal) -> ConnGuard {
    let builder = ConnGuard::builder()
        .idle_timeout(SECOND)
        .upgraded_idle_timeout(2 * SECOND);
    builder.metrics(journal.clone()).build().unwrap()
}

async fn an_idle_http1_connection_is_closed_gracefully(kind: ServerKind) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    assert_served(&mut client).await;
    let (_, is_reset, after) = read_until_closed(&mut client).await;
    assert!(!is_reset);
    assert_on_time(after, SECOND);
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let [(ended, _)] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!((ended.reason, ended.phase), (Reason::Idle, Phase::Idle));
}

/// Two requests in one segment, the second with a body.
const PIPELINED_REQUESTS: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n\
    POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";

/// Sends [`PIPELINED_REQUESTS`] and reads both responses.
async fn send_pipelined(client: &mut RawClient) {
    client.send(PIPELINED_REQUESTS).await.unwrap();
    for _ in 0..2 {
        let head = client.head().await.unwrap();
        let length = head
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        client.body(length).await.unwrap();
    }
}

async fn a_connection_is_idle_after_a_pipelined_request_with_a_body(kind: ServerKind) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let app = Router::new().route(
        "/",
        get(|| async { "served" }).post(|_: Bytes| async { "taken" }),
    );
    let server = kind.serve(&guard, app).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    send_pipelined(&mut client).await;
    let (_, is_reset, after) = read_until_closed(&mut client).await;
    assert!(!is_reset);
    assert_on_time(after, SECOND);
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.disconnected()[0].0.reason, Reason::Idle);
}

async fn newcomers_are_served_while_connections_that_pipelined_a_body_fill_the_cap(
    kind: ServerKind,
) {
    let guard = ConnGuard::builder().max_connections(60).build().unwrap();
    let app = Router::new().route(
        "/",
        get(|| async { "served" }).post(|_: Bytes| async { "taken" }),
    );
    let server = kind.serve(&guard, app).await;
    let mut hoard = Vec::new();
    for n in 0..60 {
        let from = Ipv4Addr::new(127, 3, n, 1);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        send_pipelined(&mut client).await;
        hoard.push(client);
    }
    for n in 0..20 {
        let from = Ipv4Addr::new(127, 4, n, 1);
        assert_eq!(
            kind.ask(from, server.addr, "/").await.unwrap().status(),
            200
        );
    }
    drop(hoard);
    all_gone(&guard).await;
}

async fn an_idle_http2_connection_is_closed_with_goaway_where_the_server_can_send_it(
    kind: ServerKind,
) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 1).await, b"served");
    let answered = Instant::now();
    if kind == ServerKind::Serve {
        let goaway = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
        assert_eq!(goaway[4..8], [0; 4], "NO_ERROR");
        let ping = h2::next(&mut client.stream, h2::PING, 0).await;
        // A request that was already on its way is answered.
        client.send(h2::get(3, "/")).await.unwrap();
        assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
        client
            .send(h2::frame(h2::PING, h2::ACK, 0, &ping))
            .await
            .unwrap();
    }
    let (_, is_reset, _) = read_until_closed(&mut client).await;
    assert!(
        !is_reset && answered.elapsed() < SECOND + SLACK,
        "{:?}",
        answered.elapsed()
    );
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
}

async fn an_http2_connection_that_sends_only_pings_is_idle(kind: ServerKind) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    wait_until("the request was answered", || {
        guard.snapshot().connections_in(Phase::Idle) > 0
    })
    .await;
    let answered = Instant::now();
    let (mut read, mut write) = client.stream.into_split();
    let pings = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let ping = h2::frame(h2::PING, 0, 0, &[7; 8]);
        while write.write_all(&ping).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answers = Vec::new();
    let _ = read.read_to_end(&mut answers).await;
    assert_on_time(answered.elapsed(), SECOND);
    assert!(
        answers.len() > 20 * 17,
        "the PINGs were answered: {}",
        answers.len()
    );
    pings.await.unwrap();
    neighbour.was_served().await;
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::Idle)));
}

async fn a_slow_handler_and_a_slow_stream_are_not_idle(kind: ServerKind) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let slow = || async {
        sleep(2 * SECOND).await;
        "late"
    };
    let stream = || async {
        let ticks = stream::iter(0..3).then(|tick| async move {
            sleep(SECOND).await;
            Ok::<_, Infallible>(Bytes::from(format!("data: {tick}\n\n")))
        });
        Body::from_stream(ticks)
    };
    let app = Router::new()
        .route("/slow", get(slow))
        .route("/stream", get(stream));
    let server = kind.serve(&guard, app).await;
    let addr = server.addr;
    let (slow, stream) = tokio::join!(
        kind.ask(LOCALHOST, addr, "/slow"),
        kind.ask(LOCALHOST, addr, "/stream")
    );
    assert_eq!(slow.unwrap().body(), "late");
    assert_eq!(stream.unwrap().body(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    // The same over HTTP/2, where hyper reads all the time.
    let mut client = clients::http2(LOCALHOST, addr).await.unwrap();
    let request = http::Request::get(format!("http://{addr}/slow"));
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let answer = clients::whole(client.send_request(request).await.unwrap())
        .await
        .unwrap();
    assert_eq!(answer.body(), "late");
    drop(client);
    all_gone(&guard).await;
    assert!(journal.disconnected().is_empty());
}

async fn unfinished_http2_headers_after_a_request_are_subject_to_the_idle_timeout(
    kind: ServerKind,
) {
    let journal = Journal::default();
    let guard = short_idle_guard(&journal);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 1).await, b"served");
    let (started, ping) = (Instant::now(), h2::frame(h2::PING, 0, 0, &[0; 8]));
    // RFC 9113 section 6.10 allows no PING before the header block is complete, so the client sends
    // nothing more.
    let unfinished = h2::frame(h2::HEADERS, h2::END_STREAM, 3, &[0x82]);
    client.send([ping, unfinished].concat()).await.unwrap();
    let (_, is_reset, _) = read_until_closed(&mut client).await;
    assert_on_time(started.elapsed(), SECOND);
    assert!(!is_reset);
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.disconnected()[0].0.reason, Reason::Idle);
}

async fn at_the_maximum_age_or_number_of_requests_a_connection_is_closed_gracefully(
    kind: ServerKind,
) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .max_requests(3)
        .metrics(journal.clone());
    let guard = builder.build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    // Pipelined, with one request over the limit.
    client.send(GET.repeat(4)).await.unwrap();
    let answers = String::from_utf8(client.rest().await).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3);
    assert_eq!(answers.matches("connection: close").count(), 1);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::MaxRequests)]);

    let guard = ConnGuard::builder()
        .max_age(SECOND)
        .max_requests(None)
        .metrics(journal.clone());
    let guard = guard.build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let opened = Instant::now();
    let closed = loop {
        assert!(opened.elapsed() < SECOND + SLACK, "{:?}", opened.elapsed());
        if client.send(GET).await.is_err() {
            break None;
        }
        let Ok(head) = client.head().await else {
            break None;
        };
        if head.header("connection") == Some("close") {
            break Some(head.status);
        }
        client.body(6).await.unwrap();
    };
    // Between two requests the connection may also be closed without a response.
    assert!(closed.is_none_or(|status| status == 200));
    assert!(
        opened.elapsed() >= SECOND * 9 / 10,
        "{:?}",
        opened.elapsed()
    );
    drop(client);
    all_gone(&guard).await;
    assert_eq!(
        journal.closed(),
        [Some(Reason::MaxRequests), Some(Reason::MaxAge)]
    );
}

async fn under_pressure_idle_connections_are_closed_and_an_active_client_is_served(
    kind: ServerKind,
) {
    let pressure = Pressure::default();
    let guard = ConnGuard::builder()
        .pressure(pressure.clone())
        .build()
        .unwrap();
    let server = kind.serve(&guard, app()).await;
    let mut idle = RawClient::connect(server.addr).await.unwrap();
    assert_served(&mut idle).await;
    let mut silent = RawClient::connect(server.addr).await.unwrap();
    let neighbour = kind.neighbour(server.addr);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(guard.snapshot().close_pending, 0);

    pressure.set(1.0);
    let (finished, reset) =
        tokio::join!(read_until_closed(&mut idle), read_until_closed(&mut silent));
    assert!(
        finished.0.is_empty() && !finished.1 && finished.2 < SLACK,
        "{finished:?}"
    );
    assert!(
        reset.0.is_empty() && reset.1 && reset.2 < SECOND + SLACK,
        "{reset:?}"
    );
    neighbour.was_served().await;
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    an_idle_http1_connection_is_closed_gracefully,
    a_connection_is_idle_after_a_pipelined_request_with_a_body,
    newcomers_are_served_while_connections_that_pipelined_a_body_fill_the_cap,
    an_idle_http2_connection_is_closed_with_goaway_where_the_server_can_send_it,
    an_http2_connection_that_sends_only_pings_is_idle,
    a_slow_handler_and_a_slow_stream_are_not_idle,
    unfinished_http2_headers_after_a_request_are_subject_to_the_idle_timeout,
    at_the_maximum_age_or_number_of_requests_a_connection_is_closed_gracefully,
    under_pressure_idle_connections_are_closed_and_an_active_client_is_served,
}
