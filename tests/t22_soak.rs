//! T22, leaks over time: clients misbehave in every way and order for some seconds, or for
//! `PALISADE_SOAK_SECONDS`. Then every gauge is back at zero, and the live bytes are back to within
//! a mebibyte of where they were.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{get, post},
};
use http::Request;
use http_body_util::{BodyExt, Full};
use palisade::{
    Ban, Guard, Memory, Quota, Stack,
    slow_body::Pace,
    types::{Client, Gauge, Prefix},
};
use palisade_testkit::{
    Journal,
    alloc::CountingAllocator,
    clients::{self, RawClient},
    servers,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const CLIENTS: u32 = 60;
const MIB: usize = 1 << 20;
const MEMORY_BYTES: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_released_after_every_kind_of_misbehaviour() {
    let seconds = std::env::var("PALISADE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let journal = Journal::default();
    let metrics = palisade::Snapshot::new();
    let memory = Memory::reported(MEMORY_BYTES).unwrap();
    let ban = Ban::builder().build().unwrap();
    let growth = tokio::spawn(grow_and_ban_now_and_then(memory.clone(), ban.clone()));
    let guards = Stack::edge()
        .ban(ban)
        .memory(memory)
        .rate_limit(Quota::per_second(50).burst(50))
        .timeout(Duration::from_millis(400))
        .total_timeout(Duration::from_secs(1))
        .max_body(100_000)
        .pace(Pace::builder().gap(Duration::from_millis(200)))
        .max_requests(16)
        .tune_concurrency_limit(|layer| layer.present(32).per_client(8))
        .tune_body_limit(|layer| layer.response(500_000))
        .metrics((GaugesOnly(journal.clone()), metrics.clone()))
        .build()
        .unwrap();
    let length = async |body: Bytes| body.len().to_string();
    let app = Router::new()
        .route("/", get("hello").post(length))
        .route("/slow", get(async || sleep(Duration::from_secs(9)).await))
        .route("/big", get(async || Body::from(vec![7; 400_000])))
        .route("/ignore", post(async || "did not look at the body"))
        .route(
            "/panic",
            post(async |_body: Body| -> &'static str { panic!("on purpose") }),
        )
        .layer(guards);
    let server = servers::axum(app).await;
    // Do not print the panics that the test causes on purpose.
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload_as_str() != Some("on purpose") {
            eprintln!("{panic}");
        }
    }));

    // The first round makes the allocations that are made once and kept.
    misbehave(server.addr, Duration::from_secs(1)).await;
    wait_until_nothing_is_held(&journal).await;
    let before = ALLOCATOR.live();
    misbehave(server.addr, Duration::from_secs(seconds.unwrap_or(4))).await;
    wait_until_nothing_is_held(&journal).await;
    let released = || ALLOCATOR.live() <= before + MIB;
    clients::wait_until("live bytes are released", released).await;
    growth.abort();

    // Each guard had something to do. The connection guard has its own soak test in
    // `t22_connections.rs`.
    for guard in Guard::ALL
        .iter()
        .filter(|guard| **guard != Guard::Connection)
    {
        let refused: u64 = palisade::Reason::ALL
            .iter()
            .map(|reason| metrics.refused(*guard, *reason))
            .sum();
        assert!(refused > 0, "{guard} had nothing to do:\n{metrics}");
    }
}

/// Reports memory that is short. Four times a second it is freed and grows again, and one of the
/// clients is banned for a while.
async fn grow_and_ban_now_and_then(memory: Memory, ban: Ban) {
    let client = Client::from_peer(Some([127, 0, 1, 7].into()), Prefix::default());
    for look in 0.. {
        if look % 25 == 0 {
            ban.ban(&client, Duration::from_millis(100));
        }
        let percent = if look % 25 == 0 { 95 } else { 99 };
        memory.report(MEMORY_BYTES / 100 * percent);
        sleep(Duration::from_millis(10)).await;
    }
}

/// Registers the gauges with the journal and records no events, because its lists grow by design.
struct GaugesOnly(Journal);

impl palisade::Metrics for GaugesOnly {
    fn record(&self, _event: &palisade::types::Event<'_>) {}

    fn register(&self, levels: std::sync::Weak<dyn palisade::types::GaugeSource>) {
        self.0.register(levels);
    }
}

async fn wait_until_nothing_is_held(journal: &Journal) {
    for gauge in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        let held = || journal.gauge(Guard::ConcurrencyLimit, gauge);
        clients::wait_until("no request is present", || held() == Some(0)).await;
    }
}

async fn misbehave(addr: SocketAddr, time: Duration) {
    let end = Instant::now() + time;
    let mut crowd = JoinSet::new();
    for client in 0..CLIENTS {
        crowd.spawn(async move {
            let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + client % 7);
            let mut kind = client;
            while Instant::now() < end {
                kind = kind.wrapping_add(7);
                // The outcome of a misbehaviour does not matter here.
                let _ = match kind % 12 {
                    0..6 => misbehave_over_http1(from, addr, kind % 6).await,
                    6..9 => misbehave_over_http2(from, addr, kind % 3).await,
                    9 => clients::get(from, addr, "/big").await.map(drop),
                    10 => clients::get(from, addr, "/slow").await.map(drop),
                    _ => clients::get(from, addr, "/").await.map(drop),
                };
            }
        });
    }
    while crowd.join_next().await.is_some() {}
}

type Outcome = Result<(), tower::BoxError>;

/// Misbehaves over HTTP/1, with raw bytes.
async fn misbehave_over_http1(from: Ipv4Addr, addr: SocketAddr, kind: u32) -> Outcome {
    let mut client = RawClient::connect_from(from, addr).await?;
    match kind {
        // Half a head, then the client closes.
        0 => client.send("POST / HTTP/1.1\r\nho").await?,
        // Half a body, then the client waits for the response.
        1 => {
            client
                .send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.head().await?;
        }
        // Half a body, then the client closes.
        2 => {
            client
                .send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
        }
        // A chunked body far over the limit.
        3 => {
            client
                .send("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
                .await?;
            for _ in 0..40 {
                client
                    .send(format!("1000\r\n{}\r\n", "x".repeat(0x1000)))
                    .await?;
            }
            client.rest().await;
        }
        // A handler that panics.
        4 => {
            client
                .send("POST /panic HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.rest().await;
        }
        // A handler that ignores its body.
        _ => {
            client
                .send("POST /ignore HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.rest().await;
        }
    }
    Ok(())
}

/// Sends several requests over one HTTP/2 connection and resets some of them.
async fn misbehave_over_http2(from: Ipv4Addr, addr: SocketAddr, kind: u32) -> Outcome {
    let client = clients::http2::<Full<Bytes>>(from, addr).await?;
    let mut streams = JoinSet::new();
    for stream in 0..6u32 {
        let mut client = client.clone();
        streams.spawn(async move {
            let (path, bytes) = match (kind + stream) % 4 {
                0 => ("/", 10),
                1 => ("/", 200_000),
                2 => ("/slow", 0),
                _ => ("/big", 0),
            };
            let method = if bytes > 0 { "POST" } else { "GET" };
            let request = Request::builder()
                .method(method)
                .uri(format!("http://t{path}"));
            let request = request.body(Full::new(Bytes::from(vec![1; bytes])))?;
            let mut response = client.send_request(request).await?;
            if stream % 2 == 0 {
                response.body_mut().frame().await; // One piece, then a reset.
                return Outcome::Ok(());
            }
            response.into_body().collect().await?;
            Ok(())
        });
    }
    if kind == 0 {
        sleep(Duration::from_millis(20)).await;
        streams.shutdown().await;
    }
    while streams.join_next().await.is_some() {}
    Ok(())
}
