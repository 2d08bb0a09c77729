//! T16: requests that are held by the thousand, over however many connections: past the budget of
//! the whole server each is refused at its head, and costs no handler. Who holds many cannot use
//! it up for who asks for one thing at a time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use guarded::{GET, Neighbour, all_gone, app, h2, serve, served};
use palisade::conn::ConnGuard;
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, until},
};
use std::net::Ipv4Addr;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_past_the_budget_of_all_connections_are_refused_at_the_head() {
    let journal = Journal::default();
    let monitoring = "127.0.9.0/24".parse().unwrap();
    let builder = ConnGuard::builder()
        .max_in_flight(100)
        .reserve(1, [monitoring]);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let mut talking = RawClient::connect(server.addr).await.unwrap();
    talking
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut talking.stream, h2::DATA, 1).await, b"served");

    // Ten times as many as there may be, of ten clients: they do not get the last quarter.
    let mut holding = Vec::new();
    for n in 1..=10 {
        let from = Ipv4Addr::new(127, 0, 3, n as u8);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        let requests = (0..100).flat_map(|stream| h2::get(2 * stream + 1, "/hang"));
        // Every second one does not take its refusals either.
        let window = if n % 2 == 0 { 65_535 } else { 0 };
        client
            .send([h2::hello(window), requests.collect()].concat())
            .await
            .unwrap();
        let held = || guard.snapshot().in_flight as usize + journal.refused().len();
        until("they are held or refused", || held() >= 100 * n).await;
        holding.push(client);
    }
    let held = guard.snapshot().in_flight;
    assert!((70..=85).contains(&held), "{held}");
    assert!(
        journal
            .refused()
            .iter()
            .all(|of| *of == (Guard::Connection, Reason::InFlightFull))
    );
    for stream in (3..103).step_by(2) {
        talking.send(h2::get(stream, "/")).await.unwrap();
        assert_eq!(
            h2::next(&mut talking.stream, h2::DATA, stream).await,
            b"served"
        );
    }
    neighbour.was_served().await;

    // That takes one for each place, and then nobody gets a handler, and is told when to come back.
    let mut single = Vec::new();
    while guard.snapshot().in_flight < 100 {
        let before = guard.snapshot().in_flight;
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET.replace("/ ", "/hang ")).await.unwrap();
        until("it is held", || guard.snapshot().in_flight == before + 1).await;
        single.push(client);
    }
    let level = |level| journal.level(Guard::Connection, level);
    assert_eq!(
        [level(Gauge::InFlight), level(Gauge::InFlightLimit)],
        [Some(100), Some(100)]
    );
    let refused = guarded::ask(Ipv4Addr::LOCALHOST, server.addr, "/")
        .await
        .unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    talking.send(h2::get(103, "/")).await.unwrap();
    // 503, and nothing after it that would wait for a window.
    let refused = h2::read(&mut talking.stream).await;
    assert_eq!((refused.kind, refused.stream), (h2::HEADERS, 103));
    assert_eq!(refused.payload[..5], [0x48, 0x83, 0x6c, 0x0c, 0xff]);
    assert_eq!(refused.flags & h2::END_STREAM, h2::END_STREAM);
    // But for whoever has a place reserved.
    let answer = guarded::ask(Ipv4Addr::new(127, 0, 9, 1), server.addr, "/")
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    // Until somebody lets go.
    single.pop();
    until("it is let go", || guard.snapshot().in_flight == 99).await;
    served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    drop((holding, single, talking));
    all_gone(&guard).await;
}
