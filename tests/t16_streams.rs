//! T16: requests that are held by the thousand, over however many connections: past the budget of
//! the whole server each is refused at its head, and costs no handler.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use guarded::{all_gone, app, h2, serve, served};
use palisade::conn::ConnGuard;
use palisade_core::{Guard, Level, Reason};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, until},
};
use std::net::Ipv4Addr;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_past_the_budget_of_all_connections_are_refused_at_the_head() {
    let journal = Journal::default();
    let monitoring = "127.0.9.0/24".parse().unwrap();
    let builder = ConnGuard::builder().max_in_flight(100).reserve(1, [monitoring]);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let server = serve(&guard, app()).await;
    let mut holding = Vec::new();
    for n in 1..=2 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        let requests = (0..50).flat_map(|stream| h2::get(2 * stream + 1, "/hang"));
        client.send([h2::hello(65_535), requests.collect()].concat()).await.unwrap();
        until("they are held", || guard.snapshot().in_flight == 50 * n).await;
        holding.push(client);
    }
    assert!(journal.refused().is_empty());
    // Nobody gets a handler now, on whatever connection and version, and is told when to come back.
    let refused = clients::get(Ipv4Addr::LOCALHOST, server.addr, "/").await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    // But for whoever has a place reserved.
    let answer = clients::get(Ipv4Addr::new(127, 0, 9, 1), server.addr, "/").await.unwrap();
    assert_eq!(answer.status(), 200);
    holding[0].send(h2::get(101, "/hang")).await.unwrap();
    assert_eq!(h2::next(&mut holding[0].stream, h2::DATA, 101).await, b"server is busy");
    assert_eq!(guard.snapshot().in_flight, 100);
    let level = |level| journal.level(Guard::Connection, level);
    assert_eq!([level(Level::InFlight), level(Level::InFlightLimit)], [Some(100), Some(100)]);
    assert_eq!(journal.refused(), [(Guard::Connection, Reason::InFlightFull); 2]);
    // Until somebody lets go.
    holding.pop();
    until("they are let go", || guard.snapshot().in_flight == 50).await;
    served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    holding[0].send(h2::get(103, "/")).await.unwrap();
    assert_eq!(h2::next(&mut holding[0].stream, h2::DATA, 103).await, b"served");
    drop(holding);
    all_gone(&guard).await;
}
