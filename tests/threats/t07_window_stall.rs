//! T07 and T16 on HTTP/2 under `palisade::serve`: a stream is reset when its client takes nothing
//! of the response, and the connection stays open.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use palisade::{
    Guard,
    conn::{ConnGuard, Reason},
};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{SECOND, SLACK, ServerKind, all_gone, app},
    h2,
    servers::Server,
};
use std::{convert::Infallible, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, interval},
};

const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

async fn serve_with_write_timeout(
    app: Router,
    write_timeout: Duration,
) -> (Server, ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .write_timeout(write_timeout)
        .metrics(journal.clone())
        .build()
        .unwrap();
    (ServerKind::Serve.serve(&guard, app).await, guard, journal)
}

/// The payload of `RST_STREAM` with the code CANCEL.
const CANCEL_PAYLOAD: [u8; 4] = [0, 0, 0, 8];

#[tokio::test]
async fn a_stream_with_a_shut_window_is_reset_and_another_stream_is_served() {
    let (server, guard, journal) = serve_with_write_timeout(app(), WRITE_TIMEOUT).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(0), h2::get(1, "/endless")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    let reset = h2::next(&mut client.stream, h2::RST_STREAM, 1).await;
    let took = started.elapsed();
    assert_eq!(reset, CANCEL_PAYLOAD);
    assert!(
        took >= WRITE_TIMEOUT && took < WRITE_TIMEOUT + SLACK,
        "{took:?}"
    );
    client
        .send([h2::get(3, "/"), h2::open(3, 100)].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 3).await, b"served");
    assert_eq!(journal.cut(), [(Guard::Connection, Reason::WindowStall)]);
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_response_of_one_frame_behind_a_shut_window_is_reset_in_time() {
    // hyper takes the whole body at once, and the handler is done.
    let (server, guard, journal) = serve_with_write_timeout(app(), WRITE_TIMEOUT).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(0), h2::get(1, "/")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    wait_until("the request is in flight", || {
        guard.snapshot().in_flight == 1
    })
    .await;
    assert_eq!(
        h2::next(&mut client.stream, h2::RST_STREAM, 1).await,
        CANCEL_PAYLOAD
    );
    assert!(started.elapsed() >= WRITE_TIMEOUT && started.elapsed() < WRITE_TIMEOUT + SLACK);
    wait_until("the request has ended", || guard.snapshot().in_flight == 0).await;
    assert_eq!(journal.cut(), [(Guard::Connection, Reason::WindowStall)]);
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_window_that_opens_by_single_bytes_counts_as_shut() {
    let (server, guard, _) = serve_with_write_timeout(app(), WRITE_TIMEOUT).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(0), h2::get(1, "/endless")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    let (mut reader, mut writer) = client.stream.into_split();
    let updates = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            writer.write_all(&h2::open(1, 1)).await.unwrap();
        }
    });
    assert_eq!(
        h2::next(&mut reader, h2::RST_STREAM, 1).await,
        CANCEL_PAYLOAD
    );
    assert!(started.elapsed() < WRITE_TIMEOUT + SLACK);
    updates.abort();
    drop((reader, updates.await));
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_slow_reader_and_a_quiet_response_are_not_reset() {
    let quiet = async || {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
        Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
    };
    let (server, guard, journal) =
        serve_with_write_timeout(app().route("/quiet", get(quiet)), 2 * WRITE_TIMEOUT).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let requests = [
        h2::hello(0),
        h2::get(1, "/endless"),
        h2::get(3, "/quiet"),
        h2::open(3, 100),
    ];
    client.send(requests.concat()).await.unwrap();
    // 12 KiB/s on stream 1: a piece of 16 KiB takes two thirds of the write timeout.
    let mut ticks = interval(Duration::from_millis(250));
    let started = Instant::now();
    let mut taken = 0;
    while started.elapsed() < 5 * SECOND {
        ticks.tick().await;
        client
            .send([h2::open(1, 3 * 1024), h2::open(3, 1)].concat())
            .await
            .unwrap();
        taken += h2::next(&mut client.stream, h2::DATA, 1).await.len();
    }
    assert!(taken >= 16 * 1024, "{taken}");
    assert_eq!((guard.snapshot().in_flight, journal.cut().len()), (2, 0));
    drop(client);
    all_gone(&guard).await;
}
