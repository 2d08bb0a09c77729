//! The whole stack on real servers: every guard sends its own response, in the order of the stack,
//! and admitted requests and responses pass unchanged.

use axum::{Router, routing::post};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade::{Guard, Mode, Quota, Reason, Stack, StackLayer, slow_body::Pace};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers,
};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::time::sleep;
use tower::{Layer, ServiceBuilder, service_fn};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// To the server, a different client than [`LOCALHOST`].
const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A stack with small limits, so that every guard refuses soon.
fn guards(journal: &Journal) -> StackLayer {
    Stack::edge()
        .rate_limit(Quota::per_hour(10).burst(10))
        .timeout(Duration::from_millis(300))
        .max_body(1000)
        .pace(Pace::builder().gap(Duration::from_millis(300)))
        .max_requests(1)
        .metrics(journal.clone())
        .build()
        .unwrap()
}

fn router() -> Router {
    let length = async |body: Bytes| body.len().to_string();
    let slow = async || {
        sleep(Duration::from_secs(60)).await;
        "too late"
    };
    Router::new()
        .route("/", post(length).get("hello"))
        .route("/slow", post(length).get(slow))
}

/// Checks the response of each guard in turn. The server responds to `GET /` at once, to `POST /`
/// with the length of the body, and to `GET /slow` after a minute.
async fn assert_every_guard_responds(addr: SocketAddr, journal: &Journal) {
    let send_raw = async |head: &str| {
        let mut client = RawClient::connect(addr).await.unwrap();
        client.send(head).await.unwrap();
        let head = client.head().await.unwrap();
        (
            head.status.as_u16(),
            head.header("connection").unwrap_or("keep-alive").to_owned(),
        )
    };
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length:";
    assert_eq!(
        send_raw(&format!("{post} 4\r\n\r\nfour")).await,
        (200, "keep-alive".to_owned())
    );
    // A body with a declared length over the limit is refused before its bytes arrive.
    assert_eq!(
        send_raw(&format!("{post} 100000\r\n\r\n")).await,
        (413, "close".to_owned())
    );
    // A body that stalls in the middle.
    assert_eq!(
        send_raw(&format!("{post} 4\r\n\r\nfo")).await,
        (408, "close".to_owned())
    );
    // A handler that takes too long. It holds the only permit until the timeout.
    let slow = tokio::spawn(clients::get(LOCALHOST, addr, "/slow"));
    let busy =
        || journal.gauge(Guard::ConcurrencyLimit, palisade::types::Gauge::Working) == Some(1);
    clients::wait_until("the permit is held", busy).await;
    let full = clients::get(LOCALHOST, addr, "/").await.unwrap();
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        slow.await.unwrap().unwrap().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    // The client exceeds its quota. Another client is served.
    for _ in 0..5 {
        assert_eq!(
            clients::get(LOCALHOST, addr, "/").await.unwrap().status(),
            StatusCode::OK
        );
    }
    let denied = clients::get(LOCALHOST, addr, "/").await.unwrap();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(denied.headers()["retry-after"], "360");
    assert_eq!(
        clients::get(OTHER_CLIENT, addr, "/")
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    assert_eq!(
        journal.refused(),
        [
            (Guard::BodyLimit, Reason::TooLarge),
            (Guard::SlowBody, Reason::Gap),
            (Guard::ConcurrencyLimit, Reason::Full),
            (Guard::Timeout, Reason::Deadline),
            (Guard::RateLimit, Reason::RateExceeded),
        ]
    );
    assert!(!busy());
}

#[tokio::test]
async fn every_guard_responds_on_axum_as_a_router_layer() {
    let journal = Journal::default();
    let server = servers::axum(router().layer(guards(&journal))).await;
    assert_every_guard_responds(server.addr, &journal).await;
}

#[tokio::test]
async fn every_guard_responds_on_axum_around_the_router() {
    let journal = Journal::default();
    let app = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(axum::body::Body::new))
        .layer(guards(&journal))
        .service(router());
    let server = servers::axum(Router::new().fallback_service(app)).await;
    assert_every_guard_responds(server.addr, &journal).await;
}

#[tokio::test]
async fn every_guard_responds_on_bare_hyper() {
    let journal = Journal::default();
    let handler = service_fn(async |request: Request<_>| {
        if request.uri().path() == "/slow" {
            sleep(Duration::from_secs(60)).await;
        }
        let status = match BodyExt::collect(request.into_body()).await {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::BAD_REQUEST,
        };
        let response = Response::builder()
            .status(status)
            .body(Full::<Bytes>::default());
        Ok::<_, Infallible>(response.unwrap())
    });
    let server = servers::hyper(guards(&journal).layer(handler)).await;
    assert_every_guard_responds(server.addr, &journal).await;
}

#[tokio::test]
async fn over_http2_a_refusal_does_not_affect_the_connection_and_its_other_streams() {
    let journal = Journal::default();
    let stack = Stack::edge()
        .max_body(1000)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = servers::axum(router().layer(stack)).await;
    let client = clients::http2::<Full<Bytes>>(LOCALHOST, server.addr)
        .await
        .unwrap();
    let send = |bytes: usize| {
        let request = Request::post("http://test/").body(Full::new(Bytes::from(vec![0; bytes])));
        let mut client = client.clone();
        async move { clients::whole(client.send_request(request.unwrap()).await.unwrap()).await }
    };
    for _ in 0..20 {
        let (refused, served) = tokio::join!(send(100_000), send(1000));
        assert_eq!(refused.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(served.unwrap().into_body(), "1000");
    }
}

#[tokio::test]
async fn on_tonic_the_client_sees_codes_messages_and_pushback() {
    let journal = Journal::default();
    let router = tonic::transport::Server::builder()
        .layer(
            Stack::edge()
                .rate_limit(Quota::per_hour(3).burst(3))
                .max_body(1000)
                .metrics(journal.clone())
                .build()
                .unwrap(),
        )
        .add_service(EchoServer::new(Lengths));
    let server = servers::tonic(router).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = |bytes: usize| Piece {
        data: Bytes::from(vec![0; bytes]),
    };
    assert_eq!(client.unary(piece(900)).await.unwrap().get_ref().bytes, 900);
    let status = client.unary(piece(5000)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.message(), "body too large");
    let pieces = tokio_stream::iter((0..9).map(move |_| piece(100)));
    assert_eq!(client.collect(pieces).await.unwrap().get_ref().bytes, 900);
    let status = client.unary(piece(1)).await.unwrap_err();
    assert_eq!(status.message(), "too many requests");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert!((1_000_000..=1_200_000).contains(&pushback.to_str().unwrap().parse().unwrap()));
    assert_eq!(
        journal.refused(),
        [
            (Guard::BodyLimit, Reason::TooLarge),
            (Guard::RateLimit, Reason::RateExceeded)
        ]
    );
}

#[tokio::test]
async fn in_shadow_mode_every_request_is_served_and_every_violation_is_counted() {
    let journal = Journal::default();
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1).burst(1))
        .max_body(10)
        .timeout(Duration::from_millis(1))
        .mode(Mode::Shadow)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let handler = async |body: Bytes| {
        sleep(Duration::from_millis(50)).await;
        body.len().to_string()
    };
    let server = servers::axum(Router::new().route("/", post(handler)).layer(stack)).await;
    let mut client = clients::http1::<Full<Bytes>>(LOCALHOST, server.addr)
        .await
        .unwrap();
    for _ in 0..2 {
        let request = Request::post("/")
            .header("host", "test")
            .body(Full::from("twenty bytes of body"));
        let response = clients::whole(client.send_request(request.unwrap()).await.unwrap()).await;
        assert_eq!(response.unwrap().into_body(), "20");
    }
    let refusals = journal.refusals();
    assert!(refusals.iter().all(|(_, mode)| *mode == Mode::Shadow));
    for reason in [Reason::RateExceeded, Reason::TooLarge, Reason::Deadline] {
        assert!(
            refusals
                .iter()
                .any(|(violation, _)| violation.reason == reason),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn layers_that_share_a_limiter_count_its_keys_once() {
    use palisade::{
        Snapshot,
        rate_limit::{RateLimitLayer, TableLimiter},
    };
    let limiter = TableLimiter::new(Quota::per_second(1))
        .unwrap()
        .capacity(1 << 10);
    let (limiter, metrics) = (std::sync::Arc::new(limiter), Snapshot::new());
    let layer = || RateLimitLayer::with_limiter(limiter.clone()).metrics(metrics.clone());
    let (first, second) = (layer(), layer());
    let capacity = || metrics.gauge(Guard::RateLimit, palisade_core::Gauge::KeyCapacity);
    assert_eq!(capacity(), Some(1 << 10));
    drop(first);
    assert_eq!(capacity(), Some(1 << 10));
    drop(second);
    assert_eq!(capacity(), Some(0));
}

/// A log writer into memory.
#[derive(Clone, Default)]
struct MemoryLog(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for MemoryLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_body_limit_above_axum_s_own_or_above_what_is_charged_is_logged_once() {
    let log = MemoryLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let logged = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let _ = Stack::edge().build().unwrap();
    assert_eq!(logged(), "");
    let charged = Stack::edge()
        .max_body(10 << 20)
        .tune_body_budget(|budget| budget.max_held(20 << 20));
    let _ = charged.build().unwrap();
    assert!(!logged().contains("max_held"));
    for _ in 0..2 {
        let _ = Stack::edge().max_body(10 << 20).build().unwrap();
        for name in ["DefaultBodyLimit", "max_held"] {
            assert_eq!(logged().matches(name).count(), 1, "{}", logged());
        }
    }
}
