//! T08, one-byte chunks and small segments: the memory that ten uploads occupy on a server that
//! collects its bodies. One test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, routing::post};
use bytes::Bytes;
use palisade_body_limit::BodyLimitLayer;
use palisade_testkit::{alloc::CountingAllocator, clients::RawClient, servers};
use std::time::Duration;
use tokio::{task::JoinSet, time::Instant};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const UPLOADS: usize = 10;
const MIB: usize = 1 << 20;

/// Sends ten uploads and returns the most bytes held for them at a time.
async fn peak_bytes(
    app: Router,
    head: &'static str,
    piece: &'static str,
    count: usize,
    pause: bool,
    end: &'static str,
) -> usize {
    let server = servers::axum_bare(app).await;
    let addr = server.addr;
    let before = ALLOCATOR.reset_peak();
    let mut uploads = JoinSet::new();
    for _ in 0..UPLOADS {
        uploads.spawn(async move {
            let mut client = RawClient::connect(addr).await.unwrap();
            client.stream.set_nodelay(true).unwrap();
            client
                .send(format!("POST / HTTP/1.1\r\nhost: test\r\n{head}\r\n\r\n"))
                .await
                .unwrap();
            for _ in 0..count {
                if client.send(piece).await.is_err() {
                    break;
                }
                let sent = Instant::now();
                while pause && sent.elapsed() < Duration::from_micros(50) {
                    tokio::task::yield_now().await;
                }
            }
            let _ = client.send(end).await;
            client.head().await.unwrap()
        });
    }
    uploads.join_all().await;
    ALLOCATOR.peak() - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_uploads_in_small_pieces_occupy_little_memory() {
    let unguarded = || Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let guarded = || unguarded().layer(BodyLimitLayer::default());
    let chunked = "transfer-encoding: chunked";
    let ones: &'static str = "1\r\nx\r\n".repeat(1000).leak();

    let unguarded_bytes = peak_bytes(unguarded(), chunked, ones, 150, false, "0\r\n\r\n").await;
    assert!(
        unguarded_bytes > 30 * MIB,
        "the attack is real: {unguarded_bytes}"
    );
    let guarded_bytes = peak_bytes(guarded(), chunked, ones, 150, false, "0\r\n\r\n").await;
    assert!(guarded_bytes < 5 * MIB, "{guarded_bytes}");

    // Segments of 64 bytes: each holds a block of 8 KiB unless it is copied.
    let segment: &'static str = "x".repeat(64).leak();
    let length = "content-length: 64000";
    let unguarded_bytes = peak_bytes(unguarded(), length, segment, 1000, true, "").await;
    let guarded_bytes = peak_bytes(guarded(), length, segment, 1000, true, "").await;
    let sent = UPLOADS * 1000 * 64;
    assert!(
        unguarded_bytes > 10 * sent,
        "the attack is real: {unguarded_bytes}"
    );
    // Twice the bytes sent and 256 KiB per upload, and the bytes once more for the handler's copy.
    assert!(
        guarded_bytes < 3 * sent + UPLOADS * MIB / 4,
        "{guarded_bytes}"
    );
}
