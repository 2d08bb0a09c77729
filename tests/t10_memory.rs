//! T10 in bytes: what bombs of gzip take on `palisade::serve`, while they are refused and while
//! they are held open.
//!
//! One test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, routing::post};
use bytes::Bytes;
use palisade::{Budget, Stack, body_limit::BodyLimitLayer, conn::ConnGuard};
use palisade_testkit::{
    alloc::CountingAllocator,
    bodies::zero_bomb,
    clients::{RawClient, wait_until},
    guarded::{ServerKind, all_gone, build_guard},
    servers::Server,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{task::JoinSet, time::timeout};
use tower::ServiceBuilder;
use tower_http::decompression::RequestDecompressionLayer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const MAX_DECOMPRESSED_BYTES: usize = MIB;
/// What the body limit charges for a decoder.
const DECODER_BYTES: usize = 48 * KIB;
/// Uploads that are held open at a time.
const UPLOADS: usize = 100;

/// `palisade::serve` with an app that collects bodies of up to 1 MiB.
struct Target {
    addr: SocketAddr,
    guard: ConnGuard,
    budget: Budget,
    _server: Server,
}

impl Target {
    async fn start() -> Self {
        let (guard, _) = build_guard(ConnGuard::builder().max_per_client(None).accept_rate(None));
        let budget = Budget::new(16 * MIB as u64).unwrap();
        let stack = Stack::edge().byte_budget(budget.clone());
        let guarded = ServiceBuilder::new()
            .layer(stack.build().unwrap())
            .layer(RequestDecompressionLayer::new())
            .layer(BodyLimitLayer::decompressed(MAX_DECOMPRESSED_BYTES as u64));
        let collect = post(async |body: Bytes| body.len().to_string());
        let app = Router::new().route("/", collect).layer(guarded);
        let server = ServerKind::Serve.serve(&guard, app).await;
        Self {
            addr: server.addr,
            guard,
            budget,
            _server: server,
        }
    }

    /// Waits until nothing is held of all requests.
    async fn assert_at_rest(&self) {
        all_gone(&self.guard).await;
        wait_until("nothing is charged", || self.budget.held() == 0).await;
    }
}

/// Sends a part of an upload that declares more.
async fn upload(addr: SocketAddr, coding: &str, bytes: &Bytes) -> RawClient {
    let mut client = RawClient::connect(addr).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-encoding: {coding}\r\n\
        content-length: 1000000\r\n\r\n"
    );
    client.send(head).await.unwrap();
    // The server may have refused it already.
    let _ = client.send(bytes).await;
    client
}

/// Returns the bytes that one upload takes of which nothing arrives.
async fn measure_silent(target: &Target, coding: &str) -> usize {
    let before = ALLOCATOR.live();
    let mut held = Vec::new();
    for _ in 0..UPLOADS {
        held.push(upload(target.addr, coding, &Bytes::new()).await);
    }
    wait_until("all uploads have begun", || {
        target.guard.snapshot().in_flight >= UPLOADS as u64
    })
    .await;
    let each = (ALLOCATOR.live() - before) / UPLOADS;
    drop(held);
    target.assert_at_rest().await;
    each
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_take_no_more_memory_than_the_limit_and_the_budget_allow() {
    let target = Target::start().await;
    // The first requests allocate what is kept.
    measure_silent(&target, "gzip").await;

    // 1 GiB, of which 1 MiB arrives.
    let bomb = zero_bomb(1024);
    let before = ALLOCATOR.reset_peak();
    let head = upload(target.addr, "gzip", &bomb)
        .await
        .head()
        .await
        .unwrap();
    assert_eq!(head.status, 413);
    let peak = ALLOCATOR.peak() - before;
    assert!(peak < 2 * MAX_DECOMPRESSED_BYTES, "{peak}");
    target.assert_at_rest().await;

    // A decoder takes what is charged for it.
    let plain = measure_silent(&target, "identity").await;
    let decoder = measure_silent(&target, "gzip").await - plain;
    assert!(
        (DECODER_BYTES / 2..DECODER_BYTES).contains(&decoder),
        "{decoder}"
    );

    // Bombs that become almost as much as they may, and are then held open.
    let bomb = zero_bomb(1);
    let bomb = bomb.slice(..bomb.len() - 20);
    let before = ALLOCATOR.reset_peak();
    let mut uploads = JoinSet::new();
    for _ in 0..UPLOADS {
        let bomb = bomb.clone();
        uploads.spawn(async move { upload(target.addr, "gzip", &bomb).await });
    }
    let mut uploads = uploads.join_all().await;
    let mut refused = 0;
    for client in &mut uploads {
        if let Ok(head) = timeout(Duration::from_millis(50), client.head()).await {
            assert_eq!(head.unwrap().status, 503);
            refused += 1;
        }
    }
    let peak = ALLOCATOR.peak() - before;
    let budget = target.budget.limit() as usize;
    assert!(
        refused >= UPLOADS - budget / MAX_DECOMPRESSED_BYTES,
        "{refused}"
    );
    assert!(peak < budget + UPLOADS * (plain + DECODER_BYTES), "{peak}");
    drop(uploads);
    target.assert_at_rest().await;
}
