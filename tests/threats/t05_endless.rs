//! T05: limits on connections that never end, by age, by number of requests, and by pipelining.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use palisade::conn::{ConnGuard, ConnGuardBuilder, Reason};
use palisade_testkit::{
    Journal,
    clients::RawClient,
    guarded::{
        GET, Neighbour, SECOND, SLACK, ServerKind, all_gone, app, assert_on_time, assert_served,
        read_until_closed,
    },
    h2,
    servers::Server,
};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

fn guard(rules: impl FnOnce(ConnGuardBuilder) -> ConnGuardBuilder) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    (
        rules(ConnGuard::builder())
            .metrics(journal.clone())
            .build()
            .unwrap(),
        journal,
    )
}

async fn serve_on_each(guard: &ConnGuard, app: Router) -> Vec<Server> {
    let mut servers = Vec::new();
    for server in ServerKind::ALL {
        servers.push(server.serve(guard, app.clone()).await);
    }
    servers
}

#[tokio::test]
async fn the_last_response_says_connection_close_and_a_new_connection_is_admitted() {
    let (guard, journal) = guard(|rules| rules.max_requests(3));
    for server in serve_on_each(&guard, app()).await {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        for _ in 0..2 {
            assert_served(&mut client).await;
        }
        // Pipelined: requests after the last one are not served.
        client.send(GET.repeat(3)).await.unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(
            (head.status.as_u16(), head.header("connection")),
            (200, Some("close"))
        );
        assert_eq!(client.rest().await, b"served");
        assert_served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    }
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::MaxRequests)));
}

#[tokio::test]
async fn goaway_announces_the_last_http2_request_and_those_in_flight_finish() {
    let (guard, _) = guard(|rules| rules.max_requests(2));
    let server = ServerKind::Serve.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    // The responses end only when the client opens their windows.
    client
        .send([h2::hello(0), h2::get(1, "/"), h2::get(3, "/")].concat())
        .await
        .unwrap();
    let announced = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    assert_eq!(
        announced[..8],
        [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        "NO_ERROR"
    );
    let ping = h2::next(&mut client.stream, h2::PING, 0).await;
    client
        .send(h2::frame(h2::PING, h2::ACK, 0, &ping))
        .await
        .unwrap();
    let last = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    assert_eq!(last[..4], [0, 0, 0, 3]);
    client
        .send([h2::open(1, 100), h2::open(3, 100)].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
    client.rest().await;
    all_gone(&guard).await;
}

#[tokio::test]
async fn other_servers_close_a_connection_that_is_idle_after_its_last_request() {
    // These servers cannot announce the last request to the client, which may be about to send
    // another.
    let (guard, journal) = guard(|rules| rules.max_requests(2).idle_timeout(7 * SECOND));
    let mut clients = JoinSet::new();
    let mut servers = Vec::new();
    for name in [ServerKind::Axum, ServerKind::Tonic] {
        let server = name.serve(&guard, app()).await;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send([h2::hello(65_535), h2::get(1, "/"), h2::get(3, "/")].concat())
            .await
            .unwrap();
        assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
        clients.spawn(async move { read_until_closed(&mut client).await });
        servers.push(server);
    }
    for (_, is_reset, took) in clients.join_all().await {
        assert_on_time(took, 7 * SECOND);
        assert!(!is_reset);
    }
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::Idle); 2]);
}

#[tokio::test]
async fn a_connection_at_its_maximum_age_gets_goaway_and_finishes_its_requests_in_flight() {
    let ticking = async || {
        // An event stream that lasts longer than the maximum age of the connection.
        let ticks = stream::unfold(0, async |n| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if n == 25 {
                return None;
            }
            let event = Ok::<_, Infallible>(Bytes::from_static(b"data: x\n\n"));
            Some((event, n + 1))
        });
        Body::from_stream(ticks)
    };
    let (guard, _) = guard(|rules| rules.max_age(SECOND));
    let server = ServerKind::Serve
        .serve(&guard, app().route("/events", get(ticking)))
        .await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let started = Instant::now();
    client
        .send([h2::hello(65_535), h2::get(1, "/events")].concat())
        .await
        .unwrap();
    h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    let goaway_after = started.elapsed();
    assert!(
        goaway_after >= SECOND * 9 / 10 && goaway_after < SECOND * 11 / 10 + SLACK,
        "{goaway_after:?}"
    );
    let ping = h2::next(&mut client.stream, h2::PING, 0).await;
    client
        .send(h2::frame(h2::PING, h2::ACK, 0, &ping))
        .await
        .unwrap();
    let rest = client.rest().await;
    let events = rest.windows(4).filter(|at| at == b"data").count();
    assert!(
        started.elapsed() >= SECOND * 5 / 2,
        "the stream was cut short: {:?}",
        started.elapsed()
    );
    assert!(events > 10, "{events}");
    all_gone(&guard).await;
}

#[tokio::test]
async fn with_an_age_grace_a_connection_beyond_its_maximum_age_is_reset() {
    let (guard, journal) = guard(|rules| rules.max_age(SECOND).age_grace(SECOND / 2));
    for server in serve_on_each(&guard, app()).await {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET.replacen('/', "/hang", 1)).await.unwrap();
        let (_, is_reset, took) = read_until_closed(&mut client).await;
        assert!(
            is_reset && took >= SECOND * 13 / 10 && took < SECOND * 8 / 5 + SLACK,
            "{took:?}"
        );
    }
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::MaxAge); 3]);
}

#[tokio::test]
async fn a_client_that_pipelines_and_reads_nothing_is_closed_by_the_write_timeout() {
    let (guard, journal) = guard(|rules| rules.write_timeout(SECOND));
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let large = async move || {
        count.fetch_add(1, SeqCst);
        Bytes::from_static(&[b'x'; 4096])
    };
    for server in serve_on_each(&guard, app().route("/large", get(large))).await {
        let neighbour = Neighbour::start(server.addr);
        let mut client = RawClient::connect(server.addr).await.unwrap();
        // The server stops reading long before all requests are sent.
        let requests = GET.replacen('/', "/large", 1).repeat(1_000_000);
        let started = Instant::now();
        assert!(client.send(requests).await.is_err());
        let took = started.elapsed();
        assert!(took >= SECOND && took < SECOND + SLACK, "{took:?}");
        neighbour.was_served().await;
        drop(client);
        all_gone(&guard).await;
    }
    let stalled = journal
        .closed()
        .iter()
        .filter(|why| **why == Some(Reason::WriteStall))
        .count();
    assert_eq!(stalled, 3);
    // Responses of 4 KiB fill some MiB of both sockets' buffers. The guard does not control how
    // much the client's own kernel buffers.
    let handled = handled.load(SeqCst);
    assert!(handled < 3 * 3000, "{handled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_and_reads_nothing_is_served_until_its_socket_is_full() {
    let (guard, journal) = guard(|rules| rules.write_timeout(SECOND).max_requests(None));
    let server = ServerKind::Axum.serve(&guard, app()).await;
    let neighbour = Neighbour::start(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let requests = GET.repeat(1000);
    while client.send(&requests).await.is_ok() {}
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let stalled = ended
        .iter()
        .filter(|(ended, _)| ended.reason == Reason::WriteStall);
    assert_eq!(stalled.count(), 1, "{ended:?}");
    // hyper reads no further request while a response waits to be written.
    let closed = guard.recently_closed()[0];
    println!(
        "{} responses, {} KiB, written and not read",
        closed.requests,
        closed.written >> 10
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_and_reads_is_served_to_the_end() {
    let (guard, journal) = guard(|builder| builder.max_requests(None));
    let server = ServerKind::Axum.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    for _ in 0..20 {
        client.send(GET.repeat(500)).await.unwrap();
        for _ in 0..500 {
            assert_eq!(client.head().await.unwrap().status, 200);
            client.body(6).await.unwrap();
        }
    }
    drop(client);
    all_gone(&guard).await;
    assert!(journal.disconnected().is_empty());
}
