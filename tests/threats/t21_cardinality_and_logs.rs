//! T21: metric cardinality and the log as targets.
//!
//! A client at its concurrency limit sends ten thousand different paths, methods and header values,
//! with escapes and line breaks in every form that a server admits. It must not add a time series,
//! forge or flood the log, or keep its neighbour from being served.

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Empty;
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{ConnInfo, Gauge, Guard, Prefix, Reason, Recorder};
use palisade_metrics::{Log, Snapshot};
use palisade_testkit::{clients, servers};
use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::time::{Instant, timeout};
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt};

const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const HOSTILE_REQUESTS: u64 = 10_000;
/// A part of every text that the hostile client sends.
const HOSTILE_TEXT: &str = "forged";

/// An in-memory log.
#[derive(Clone, Debug, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("the lock is not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogBuffer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Adds the [`ConnInfo`] of the peer to the request, as the connection guard does.
async fn conn(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let conn = ConnInfo::new(peer, None, Prefix::default());
    request.extensions_mut().insert(conn);
    next.run(request).await
}

/// Returns the series in `text`, without their values.
fn series(text: &str) -> BTreeSet<&str> {
    text.lines()
        .map(|line| line.rsplit_once(' ').expect("a line ends with a value").0)
        .collect()
}

#[tokio::test]
async fn hostile_text_adds_no_series_and_forges_no_log_line_and_the_neighbour_is_served() {
    // The tasks of this runtime run on this thread, so the subscriber receives their events.
    let log_buffer = LogBuffer::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log_buffer.clone())
        .finish();
    let _subscriber = subscriber.set_default();

    let snapshot = Snapshot::new();
    let metrics = Recorder::from((snapshot.clone(), Log::new()));
    // A client may have one request at a time, and that of the hostile client is in flight.
    let guard = ConcurrencyLimitLayer::new(16)
        .per_client(1)
        .metrics(metrics);
    let router = Router::new()
        .route("/", get(|| async { "served" }))
        .route("/hold", get(std::future::pending::<()>))
        .layer(guard)
        .layer(from_fn(conn));
    let server = servers::axum(router).await;
    let mut held = clients::RawClient::connect_from(HOSTILE, server.addr)
        .await
        .unwrap();
    held.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let taken = async {
        while snapshot.gauge(Guard::ConcurrencyLimit, Gauge::Working) != Some(1) {
            tokio::task::yield_now().await;
        }
    };
    timeout(clients::PATIENCE, taken).await.unwrap();
    let before = snapshot.prometheus();
    let started = Instant::now();

    // hyper answers what is not HTTP before any guard; the guard refuses the rest.
    for raw in [
        "GET /forged%0d%0alevel=ERROR%1b[31m HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /?q=forged\u{202e}\u{85}\u{2028} HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\u{1b}[2Jforged HTTP/1.1\r\nhost: a\r\n\r\n",
        "forged / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: forged\"} 1\r\nx-forwarded-for: forged\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nuser-agent: forged\tpeer=10.0.0.1\\n\u{9b}31m\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nuser-agent: forged\u{1b}[31m\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nuser-agent: one\r\n forged: folded\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ngrpc-message: forged\r\n\
         content-length: 0\r\n\r\n",
    ] {
        let mut client = clients::RawClient::connect_from(HOSTILE, server.addr)
            .await
            .unwrap();
        client.send(raw).await.unwrap();
        // A gRPC client gets its refusal in trailers with status 200.
        let head = client.head().await.unwrap();
        let refused = head.status == 429 || head.header("grpc-status") == Some("8");
        assert!(refused || head.status == 400, "{raw:?}: {}", head.text);
    }
    let raw_refused = snapshot.refused(Guard::ConcurrencyLimit, Reason::ClientFull);
    assert!(raw_refused >= 4, "{raw_refused}");

    let mut hostile = clients::http1::<Empty<Bytes>>(HOSTILE, server.addr)
        .await
        .unwrap();
    let mut honest_served = 0;
    for n in 0..HOSTILE_REQUESTS {
        let request = http::Request::builder()
            .method(format!("FORGED{n}").as_str())
            .uri(format!("/{HOSTILE_TEXT}/{n}%0A?{HOSTILE_TEXT}={n}%1B"))
            .header("host", format!("{HOSTILE_TEXT}-{n}"))
            .header("user-agent", format!("{HOSTILE_TEXT} {n}\tlevel=ERROR"))
            .header(
                "x-request-id",
                &[&n.to_be_bytes().map(|byte| byte | 0x80)[..], b"forged"].concat()[..],
            )
            .body(Empty::new())
            .unwrap();
        hostile.ready().await.unwrap();
        let answer = clients::whole(hostile.send_request(request).await.unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        if n % 100 == 0 {
            let answer = clients::get(HONEST, server.addr, "/").await.unwrap();
            assert_eq!(
                (answer.status(), &answer.body()[..]),
                (StatusCode::OK, &b"served"[..])
            );
            honest_served += 1;
        }
    }
    assert_eq!(honest_served, HOSTILE_REQUESTS / 100);

    // All refusals were counted, and no series was added.
    let refused = snapshot.refused(Guard::ConcurrencyLimit, Reason::ClientFull);
    assert_eq!(refused, raw_refused + HOSTILE_REQUESTS);
    let after = snapshot.prometheus();
    assert_eq!(series(&after), series(&before));
    assert!(!after.to_lowercase().contains(HOSTILE_TEXT));

    let seconds = started.elapsed().as_secs() + 1;
    let log = String::from_utf8(log_buffer.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert!(!lines.is_empty() && lines.len() as u64 <= Log::LINES as u64 * seconds);
    let mut suppressed = 0;
    for line in &lines {
        assert!(
            line.len() < 512 && !line.contains(char::is_control),
            "{line:?}"
        );
        assert!(!line.to_lowercase().contains(HOSTILE_TEXT), "{line}");
        // The line has the fields that an operator needs.
        for field in [
            "WARN palisade: request refused",
            "peer=127.0.0.2:",
            "ConcurrencyLimitLayer::per_client",
        ] {
            assert!(line.contains(field), "{line}");
        }
        let (_, count) = line.rsplit_once("suppressed=").unwrap();
        suppressed += count.parse::<u64>().unwrap();
    }
    assert!(lines.len() as u64 + suppressed <= refused);
    drop(held);
}
