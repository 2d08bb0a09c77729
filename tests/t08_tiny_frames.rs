//! T08, one-byte chunks and small segments: the memory that ten uploads occupy on a server that
//! collects its bodies. One test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{Router, routing::post};
use bytes::Bytes;
use palisade::{Budget, conn::ConnGuard};
use palisade_body_limit::BodyLimitLayer;
use palisade_testkit::{
    alloc::CountingAllocator,
    clients::RawClient,
    guarded::ServerKind,
    servers::{self, Server},
};
use std::time::Duration;
use tokio::{task::JoinSet, time::sleep};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const UPLOADS: usize = 10;
const MIB: usize = 1 << 20;

/// An upload in small pieces.
#[derive(Clone, Copy)]
struct Upload {
    head: &'static str,
    piece: &'static str,
    count: usize,
    /// The time between two pieces, so that most are read by themselves.
    pause: Duration,
    end: &'static str,
}

impl Upload {
    async fn send(self, mut client: RawClient) {
        client.stream.set_nodelay(true).unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: test\r\n{}\r\n\r\n", self.head);
        client.send(head).await.unwrap();
        for _ in 0..self.count {
            if client.send(self.piece).await.is_err() {
                break;
            }
            if !self.pause.is_zero() {
                sleep(self.pause).await;
            }
        }
        let _ = client.send(self.end).await;
        client.head().await.unwrap();
    }

    /// Sends it ten times at once, and returns the most bytes held at a time.
    async fn peak_bytes(self, server: Server) -> usize {
        let before = ALLOCATOR.reset_peak();
        let mut uploads = JoinSet::new();
        for _ in 0..UPLOADS {
            let client = RawClient::connect(server.addr).await.unwrap();
            uploads.spawn(self.send(client));
        }
        uploads.join_all().await;
        ALLOCATOR.peak() - before
    }
}

fn app() -> Router {
    Router::new().route("/", post(async |body: Bytes| body.len().to_string()))
}

async fn bare() -> Server {
    servers::axum_bare(app()).await
}

async fn limited() -> Server {
    servers::axum_bare(app().layer(BodyLimitLayer::default())).await
}

/// `palisade::serve` without a layer, with a budget for what is held.
async fn charged(bytes: usize) -> Server {
    let budget = Budget::new(bytes as u64).unwrap();
    let guard = ConnGuard::builder().byte_budget(budget).memory(None);
    ServerKind::Serve
        .serve(&guard.build().unwrap(), app())
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_uploads_in_small_pieces_occupy_little_memory() {
    let chunks = Upload {
        head: "transfer-encoding: chunked",
        piece: "1\r\nx\r\n".repeat(1000).leak(),
        count: 150,
        pause: Duration::ZERO,
        end: "0\r\n\r\n",
    };
    let held = chunks.peak_bytes(bare().await).await;
    assert!(held > 30 * MIB, "the attack is real: {held}");
    let held = chunks.peak_bytes(limited().await).await;
    assert!(held < 5 * MIB, "{held}");
    let held = chunks.peak_bytes(charged(8 * MIB).await).await;
    assert!(held < 10 * MIB, "{held}");

    // Segments of 64 bytes, and of a slow line: each holds a block of 8 KiB unless it is copied.
    for (head, length, count) in [
        ("content-length: 64000", 64, 1000),
        ("content-length: 434400", 1448, 300),
    ] {
        let segments = Upload {
            head,
            piece: "x".repeat(length).leak(),
            count,
            pause: Duration::from_millis(1),
            end: "",
        };
        let sent = UPLOADS * count * length;
        let held = segments.peak_bytes(bare().await).await;
        assert!(held > 4 * sent, "the attack is real: {held}");
        // Twice the bytes sent and 256 KiB per upload, and the bytes once more for the handler's
        // copy.
        let most = 3 * sent + UPLOADS * MIB / 4;
        let held = segments.peak_bytes(limited().await).await;
        assert!(held < most, "{held}");
        let held = segments.peak_bytes(charged(64 * MIB).await).await;
        assert!(held < most, "{held}");
    }
}
