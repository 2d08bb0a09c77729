//! T16: more requests on one connection than it may have, and as many as it may have with the
//! largest headers and responses that are not read. `t16_memory.rs` measures the memory of that.

use axum::routing::get;
use palisade::conn::{ConnGuard, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{Neighbour, SECOND, SLACK, ServerKind, all_gone, app},
    h2,
};
use std::sync::Arc;
use tokio::{sync::Semaphore, time::Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_the_stream_limit_is_refused_and_the_others_are_served() {
    for server in ServerKind::ALL {
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let wait = async move || {
            opened.acquire().await.unwrap().forget();
            "late"
        };
        let guard = ConnGuard::default();
        let served = server.serve(&guard, app().route("/gate", get(wait))).await;
        let neighbour = Neighbour::start(served.addr);
        // hyper by default allows 200.
        let max_streams = if server == ServerKind::Axum { 200 } else { 100 };
        let mut client = RawClient::connect(served.addr).await.unwrap();
        let streams = |numbers: std::ops::Range<u32>, path| {
            numbers
                .flat_map(|n| h2::get(2 * n + 1, path))
                .collect::<Vec<_>>()
        };
        client
            .send([h2::hello(65_535), streams(0..max_streams + 50, "/gate")].concat())
            .await
            .unwrap();
        // The refusals come in the order of the requests.
        for n in max_streams..max_streams + 50 {
            let refused = h2::next(&mut client.stream, h2::RST_STREAM, 2 * n + 1).await;
            assert_eq!(refused, h2::REFUSED_STREAM.to_be_bytes(), "{server}");
        }
        wait_until("all other requests are in flight", || {
            guard.snapshot().in_flight >= max_streams.into()
        })
        .await;
        assert!(
            guard.snapshot().in_flight <= u64::from(max_streams) + 2,
            "{server}"
        );
        // The other requests are served, in any order.
        gate.add_permits(max_streams as usize);
        let mut served = 0;
        while served < max_streams {
            let frame = h2::read(&mut client.stream).await;
            assert_ne!(frame.kind, h2::RST_STREAM, "{server}");
            served += u32::from(frame.kind == h2::DATA && frame.payload == b"late");
        }
        // The connection takes new requests again.
        client
            .send(streams(max_streams + 50..max_streams + 51, "/"))
            .await
            .unwrap();
        assert_eq!(
            h2::next(&mut client.stream, h2::DATA, 2 * max_streams + 101).await,
            b"served"
        );
        drop(client);
        neighbour.was_served().await;
        all_gone(&guard).await;
    }
}

/// Returns a hundred requests for an endless response, each with `header_kib` KiB of headers.
fn large_header_requests(window: u32, header_kib: usize) -> Vec<u8> {
    let large = "b".repeat(header_kib << 10);
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/endless"),
        (":authority", "x"),
        ("a", &large),
    ];
    let streams = (0..100).flat_map(|n| h2::headers(2 * n + 1, h2::END_STREAM, &fields));
    h2::hello(window).into_iter().chain(streams).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_a_hundred_streams_with_shut_windows_is_reset_in_time() {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .write_timeout(SECOND)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = ServerKind::Serve.serve(&guard, app()).await;
    let neighbour = Neighbour::start(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(large_header_requests(0, 30)).await.unwrap();
    wait_until("all requests are in flight", || {
        guard.snapshot().in_flight >= 100
    })
    .await;
    let started = Instant::now();
    let mut reset = 0;
    while reset < 100 {
        let frame = h2::read(&mut client.stream).await;
        reset += u32::from(frame.code() == Some(h2::CANCEL));
    }
    // The heads of a hundred responses count as more than 500 B/s for the last ten streams, which
    // may therefore take twice the time.
    assert!(
        started.elapsed() < 2 * SECOND + SLACK,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        journal
            .cut()
            .iter()
            .filter(|cut| cut.1 == Reason::WindowStall)
            .count(),
        100
    );
    // The connection stays open.
    client
        .send([h2::get(201, "/"), h2::open(201, 100)].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 201).await, b"served");
    drop(client);
    neighbour.was_served().await;
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_all_windows_and_reads_nothing_is_reset_in_time() {
    for server in ServerKind::ALL {
        let journal = Journal::default();
        let builder = ConnGuard::builder()
            .write_timeout(SECOND)
            .metrics(journal.clone());
        let guard = builder.build().unwrap();
        let served = server.serve(&guard, app()).await;
        let neighbour = Neighbour::start(served.addr);
        let mut client = RawClient::connect(served.addr).await.unwrap();
        let started = Instant::now();
        // hyper by default takes 16 KiB of headers.
        let header_kib = if server == ServerKind::Axum { 14 } else { 30 };
        client
            .send(large_header_requests(0x7fff_ffff, header_kib))
            .await
            .unwrap();
        // On a busy machine the first request may stall before the last has arrived.
        let is_closed = || journal.closed().contains(&Some(Reason::WriteStall));
        wait_until("the requests are in flight", || {
            guard.snapshot().in_flight >= 100 || is_closed()
        })
        .await;
        wait_until("the connection is closed", is_closed).await;
        assert!(
            started.elapsed() < SECOND + SLACK,
            "{server}: {:?}",
            started.elapsed()
        );
        neighbour.was_served().await;
        all_gone(&guard).await;
        drop(client);
    }
}
