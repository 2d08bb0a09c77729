//! T22, leaks over time: clients that do everything wrong in every order, for some seconds, or for
//! as many as `PALISADE_SOAK_SECONDS` says. Then every level is back at zero, and live bytes are
//! back where they were to within a mebibyte.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{get, post},
};
use http::Request;
use http_body_util::{BodyExt, Full};
use palisade::{Guard, Quota, Stack, slow_body::Pace, types::Gauge};
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
const MEBIBYTE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_every_misdeed_everything_is_given_back() {
    let seconds = std::env::var("PALISADE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let journal = Journal::default();
    let metrics = palisade::Snapshot::new();
    let guards = Stack::edge()
        .rate_limit(Quota::per_second(50).burst(50))
        .timeout(Duration::from_millis(400))
        .total_timeout(Duration::from_secs(1))
        .max_body(100_000)
        .pace(Pace::builder().gap(Duration::from_millis(200)))
        .max_requests(16)
        .tune_concurrency_limit(|layer| layer.present(32).per_client(8))
        .tune_body_limit(|layer| layer.response(500_000))
        .metrics((GaugeSource(journal.clone()), metrics.clone()))
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
    // A panic on purpose is not worth a page of backtrace.
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload_as_str() != Some("on purpose") {
            eprintln!("{panic}");
        }
    }));

    // Whatever is made once and kept is made in the first round.
    misbehave(server.addr, Duration::from_secs(1)).await;
    at_rest(&journal).await;
    let before = ALLOCATOR.live();
    misbehave(server.addr, Duration::from_secs(seconds.unwrap_or(4))).await;
    at_rest(&journal).await;
    let back = || ALLOCATOR.live() <= before + MEBIBYTE;
    clients::until("live bytes are back", back).await;

    // It was no idle time: each guard had something to do. The connections' own has a soak of its
    // own, in `guarded_elsewhere.rs`.
    for guard in Guard::ALL
        .iter()
        .filter(|guard| **guard != Guard::Connection)
    {
        let refused: u64 = palisade::Reason::ALL
            .iter()
            .map(|r| metrics.refused(*guard, *r))
            .sum();
        assert!(refused > 0, "{guard} had nothing to do:\n{metrics}");
    }
}

/// The journal's view of the levels, without its pages, which grow by design.
struct GaugeSource(Journal);

impl palisade::Metrics for GaugeSource {
    fn record(&self, _event: &palisade::types::Event<'_>) {}

    fn register(&self, levels: std::sync::Weak<dyn palisade::types::GaugeSource>) {
        self.0.register(levels);
    }
}

async fn at_rest(journal: &Journal) {
    for level in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        let held = || journal.level(Guard::ConcurrencyLimit, level);
        clients::until("nothing is held", || held() == Some(0)).await;
    }
}

async fn misbehave(addr: SocketAddr, time: Duration) {
    let end = Instant::now() + time;
    let mut crowd = JoinSet::new();
    for client in 0..CLIENTS {
        crowd.spawn(async move {
            let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + client % 7);
            let mut deed = client;
            while Instant::now() < end {
                deed = deed.wrapping_add(7);
                // Whether a deed works out is not what this is about.
                let _ = match deed % 12 {
                    0..6 => raw(from, addr, deed % 6).await,
                    6..9 => http2(from, addr, deed % 3).await,
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

/// Over HTTP/1, by hand.
async fn raw(from: Ipv4Addr, addr: SocketAddr, deed: u32) -> Outcome {
    let mut client = RawClient::connect_from(from, addr).await?;
    match deed {
        // Half a head, and gone.
        0 => client.send("POST / HTTP/1.1\r\nho").await?,
        // Half a body, and either gone or cut.
        1 => {
            client
                .send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.head().await?;
        }
        2 => {
            client
                .send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
        }
        // Far too much, by chunks.
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
        // A handler that panics, and one that does not care.
        4 => {
            client
                .send("POST /panic HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.rest().await;
        }
        _ => {
            client
                .send("POST /ignore HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf")
                .await?;
            client.rest().await;
        }
    }
    Ok(())
}

/// Several streams over one HTTP/2 connection, some of them reset.
async fn http2(from: Ipv4Addr, addr: SocketAddr, deed: u32) -> Outcome {
    let client = clients::http2::<Full<Bytes>>(from, addr).await?;
    let mut streams = JoinSet::new();
    for stream in 0..6u32 {
        let mut client = client.clone();
        streams.spawn(async move {
            let (path, bytes) = match (deed + stream) % 4 {
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
                response.body_mut().frame().await; // One piece, and then a reset.
                return Outcome::Ok(());
            }
            response.into_body().collect().await?;
            Ok(())
        });
    }
    if deed == 0 {
        sleep(Duration::from_millis(20)).await;
        streams.shutdown().await;
    }
    while streams.join_next().await.is_some() {}
    Ok(())
}
