//! T16: thousands of requests in flight, over any number of connections. Beyond the budget of the
//! whole server each request is refused at its head and starts no handler. Clients that hold many
//! requests do not use up the budget of those that send one at a time.

use palisade::conn::ConnGuard;
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{GET, ServerKind, all_gone, app, assert_served},
    h2, on_servers,
};
use std::net::Ipv4Addr;

async fn requests_beyond_the_budget_of_all_connections_are_refused_at_the_head(kind: ServerKind) {
    let journal = Journal::default();
    let monitoring = "127.0.9.0/24".parse().unwrap();
    let builder = ConnGuard::builder()
        .max_in_flight(100)
        .reserve(1, [monitoring]);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut sequential = RawClient::connect(server.addr).await.unwrap();
    sequential
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    assert_eq!(
        h2::next(&mut sequential.stream, h2::DATA, 1).await,
        b"served"
    );

    // Ten clients send ten times as many requests as the budget. They do not get its last quarter.
    let mut holders = Vec::new();
    for n in 1..=10 {
        let from = Ipv4Addr::new(127, 0, 3, n as u8);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        let requests = (0..100).flat_map(|stream| h2::get(2 * stream + 1, "/hang"));
        // Every second client opens no window for its refusals either.
        let window = if n % 2 == 0 { 65_535 } else { 0 };
        client
            .send([h2::hello(window), requests.collect()].concat())
            .await
            .unwrap();
        let held = || guard.snapshot().in_flight as usize + journal.refused().len();
        wait_until("the requests are in flight or refused", || {
            held() >= 100 * n
        })
        .await;
        holders.push(client);
    }
    let held = guard.snapshot().in_flight;
    assert!((70..=85).contains(&held), "{held}");
    assert!(
        journal
            .refused()
            .iter()
            .all(|refused| *refused == (Guard::Connection, Reason::InFlightFull))
    );
    for stream in (3..103).step_by(2) {
        sequential.send(h2::get(stream, "/")).await.unwrap();
        assert_eq!(
            h2::next(&mut sequential.stream, h2::DATA, stream).await,
            b"served"
        );
    }
    neighbour.was_served().await;

    // Single requests take the rest of the budget. Then a request gets no handler, and the refusal
    // says when to retry.
    let mut single = Vec::new();
    while guard.snapshot().in_flight < 100 {
        let before = guard.snapshot().in_flight;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET.replace("/ ", "/hang ")).await.unwrap();
        wait_until("the request is in flight", || {
            guard.snapshot().in_flight == before + 1
        })
        .await;
        single.push(client);
    }
    let gauge = |gauge| journal.gauge(Guard::Connection, gauge);
    assert_eq!(
        [gauge(Gauge::InFlight), gauge(Gauge::InFlightLimit)],
        [Some(100), Some(100)]
    );
    let refused = kind
        .ask(Ipv4Addr::LOCALHOST, server.addr, "/")
        .await
        .unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    sequential.send(h2::get(103, "/")).await.unwrap();
    // 503 and no body, which would wait for a window.
    let refused = h2::read(&mut sequential.stream).await;
    assert_eq!((refused.kind, refused.stream), (h2::HEADERS, 103));
    assert_eq!(refused.payload[..5], [0x48, 0x83, 0x6c, 0x0c, 0xff]);
    assert_eq!(refused.flags & h2::END_STREAM, h2::END_STREAM);
    // A client in a reserved network is still served.
    let answer = kind
        .ask(Ipv4Addr::new(127, 0, 9, 1), server.addr, "/")
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    // The others are served again as soon as a request ends.
    single.pop();
    wait_until("the request has ended", || guard.snapshot().in_flight == 99).await;
    assert_served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    drop((holders, single, sequential));
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    requests_beyond_the_budget_of_all_connections_are_refused_at_the_head,
}
