//! T16: heads that are a few bytes on the line and many in memory. HPACK lets a client send a
//! large field once, and refer to it in every later head.

use palisade::{
    Budget,
    conn::{ConnGuard, Reason},
};
use palisade_core::Guard;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{Neighbour, ServerKind, all_gone, app},
    h2,
};
use std::net::Ipv4Addr;

const CONNECTIONS: u8 = 41;
const STREAMS: u32 = 100;
/// The length of the field that later heads refer to. It fits into the table of the decoder.
const VALUE_BYTES: usize = 3500;
/// How often a head refers to it. It is 28 KiB then.
const REFERENCES: usize = 8;

/// Returns a hundred requests for `/hang`. The first one fills the decoder's table, the others
/// have 12 bytes each.
fn references() -> Vec<u8> {
    // Literals that the decoder keeps: :path, :authority and a name of its own.
    let mut first = vec![0x82, 0x86, 0x44, 5];
    first.extend(b"/hang");
    first.extend([0x41, 1, b'x', 0x40, 1, b'a', 127]);
    let rest = VALUE_BYTES - 127;
    first.extend([128 | (rest % 128) as u8, (rest / 128) as u8]);
    first.extend([b'v'; VALUE_BYTES]);
    // The latest entry of the table has the number 62.
    let mut other = vec![0x82, 0x86, 128 | 64, 128 | 63];
    other.extend([128 | 62; REFERENCES]);
    let flags = h2::END_STREAM | h2::END_HEADERS;
    let heads = (0..STREAMS).flat_map(|number| {
        let block = if number == 0 { &first } else { &other };
        h2::frame(h2::HEADERS, flags, 2 * number + 1, block)
    });
    [h2::hello(65_535), heads.collect()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_references_are_charged_for_what_they_become() {
    let (budget, journal) = (Budget::new(8 << 20).unwrap(), Journal::default());
    let guard = ConnGuard::builder()
        .byte_budget(budget.clone())
        .max_in_flight(10_000)
        .memory(None)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = ServerKind::Serve.serve(&guard, app()).await;
    let neighbour = Neighbour::start(server.addr);
    let references = references();
    let mut clients = Vec::new();
    for number in 1..=CONNECTIONS {
        let from = Ipv4Addr::new(127, 16, number, 1);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        client.send(&references).await.unwrap();
        clients.push(client);
    }
    let refused = || {
        let refused = journal.refused();
        let of_bytes = (Guard::Connection, Reason::BytesFull);
        assert!(refused.iter().all(|one| *one == of_bytes));
        refused.len() as u64
    };
    let all = u64::from(CONNECTIONS) * u64::from(STREAMS);
    wait_until("each head is admitted or refused", || {
        assert!(budget.held() <= budget.limit());
        guard.snapshot().in_flight + refused() >= all
    })
    .await;
    // The first heads are not charged. Of the others there is room for 28 KiB each.
    let others = (REFERENCES * VALUE_BYTES) as u64;
    let most = u64::from(CONNECTIONS) + budget.limit() / others + 2;
    assert!(guard.snapshot().in_flight <= most);
    assert!(refused() >= all - most);
    drop(clients);
    neighbour.was_served().await;
    all_gone(&guard).await;
    assert_eq!(budget.held(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_fields_and_a_hundred_and_fifty_crumbs_are_served_and_201_crumbs_are_not() {
    let guard = ConnGuard::default();
    let server = ServerKind::Serve.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let names: Vec<_> = (0..90).map(|number| format!("x-{number}")).collect();
    for (stream, crumbs, expected) in [(1, 150, 200), (3, 200, 200), (5, 201, 431)] {
        let mut fields = vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "x"),
        ];
        fields.extend(names.iter().map(|name| (name.as_str(), "v")));
        fields.extend([("cookie", "a=b")].repeat(crumbs));
        let head = h2::headers(stream, h2::END_STREAM, &fields);
        client.send(head).await.unwrap();
        let status = loop {
            let frame = h2::read(&mut client.stream).await;
            if frame.stream == stream && frame.kind == h2::HEADERS {
                break frame.status();
            }
        };
        assert_eq!(status, Some(expected), "{crumbs}");
    }
    drop(client);
    all_gone(&guard).await;
}
