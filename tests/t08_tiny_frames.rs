//! T08, one-byte chunks and small segments: what ten uploads make a server hold that collects its
//! bodies. One test: the allocator counts for the whole process.
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

/// Ten uploads, and the most that was held for them at a time.
async fn held(
    app: Router,
    head: &'static str,
    piece: &'static str,
    count: usize,
    apart: bool,
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
                while apart && sent.elapsed() < Duration::from_micros(50) {
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
async fn ten_uploads_in_small_pieces_hold_little() {
    let open = || Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let guarded = || open().layer(BodyLimitLayer::default());
    let chunked = "transfer-encoding: chunked";
    let ones: &'static str = "1\r\nx\r\n".repeat(1000).leak();

    let bare = held(open(), chunked, ones, 150, false, "0\r\n\r\n").await;
    assert!(bare > 30 * MIB, "the attack is real: {bare}");
    let calm = held(guarded(), chunked, ones, 150, false, "0\r\n\r\n").await;
    assert!(calm < 5 * MIB, "{calm}");

    // Segments of 64 bytes: each holds a block of 8 KiB where nobody copies it.
    let segment: &'static str = "x".repeat(64).leak();
    let length = "content-length: 64000";
    let bare = held(open(), length, segment, 1000, true, "").await;
    let calm = held(guarded(), length, segment, 1000, true, "").await;
    let sent = UPLOADS * 1000 * 64;
    assert!(bare > 10 * sent, "the attack is real: {bare}");
    // Twice the bytes and 256 KiB each, and once more for the handler's copy.
    assert!(calm < 3 * sent + UPLOADS * MIB / 4, "{calm}");
}
