//! T14 in part, on real servers: a handler that takes too long is dropped and the timeout responds
//! in its place. A handler that waits for its client, or that responds in time, is not affected.

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_core::{Guard, Reason};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, RawClient},
    demo::{
        Piece, Total,
        echo_client::EchoClient,
        echo_server::{Echo, EchoServer},
    },
    servers,
};
use palisade_timeout::TimeoutLayer;
use std::{convert::Infallible, future::pending, net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tower::{ServiceBuilder, service_fn};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LIMIT: Duration = Duration::from_millis(400);
/// The tolerance beyond the exact time, for a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// The refusal of a request that takes too long.
const LATE: (Guard, Reason) = (Guard::Timeout, Reason::Deadline);

#[tokio::test]
async fn on_axum_a_late_handler_is_dropped_and_other_requests_are_served() {
    let journal = Journal::default();
    // Each handler at work holds one permit.
    let permits = Arc::new(Semaphore::new(10));
    let hang = {
        let permits = permits.clone();
        move || {
            let permits = permits.clone();
            async move {
                let _at_work = permits.acquire().await;
                pending::<()>().await;
            }
        }
    };
    let router = Router::new()
        .route("/hang", get(hang.clone()).post(hang))
        .route("/upload", post(async |body: Bytes| body.len().to_string()))
        .layer(TimeoutLayer::new(LIMIT).metrics(journal.clone()));
    let server = servers::axum_bare(router).await;

    // The upload takes twice the limit, but the handler only waits for its client.
    let upload = async {
        let mut sender = clients::http1::<Pieces>(LOCALHOST, server.addr)
            .await
            .unwrap();
        let body = Pieces::new(8, 100).every(LIMIT / 4);
        let request = Request::post("/upload")
            .header("host", "test")
            .body(body)
            .unwrap();
        clients::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap()
    };
    let hang = async {
        let started = Instant::now();
        let response = clients::get(LOCALHOST, server.addr, "/hang").await.unwrap();
        assert!(
            (LIMIT..LIMIT + SLACK).contains(&started.elapsed()),
            "{:?}",
            started.elapsed()
        );
        response
    };
    // The handler does not read the body: the client sees the response, and the connection is
    // closed.
    let unread = async {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client
            .send("POST /hang HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n")
            .await
            .unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(head.header("connection"), Some("close"));
        client.rest().await;
        head.status
    };
    let (upload, hang, unread) = tokio::join!(upload, hang, unread);
    assert_eq!(
        (upload.status(), &upload.body()[..]),
        (StatusCode::OK, &b"800"[..])
    );
    assert_eq!(hang.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(hang.body(), "request took too long");
    assert_eq!(unread, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(journal.refused(), [LATE; 2]);
    assert_eq!(permits.available_permits(), 10);
}

#[tokio::test]
async fn on_hyper_the_wait_for_a_permit_counts_toward_the_timeout() {
    let journal = Journal::default();
    let handler = service_fn(|_| async {
        sleep(LIMIT * 3 / 4).await;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
    });
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(LIMIT).metrics(journal.clone()))
        .layer(ConcurrencyLimitLayer::new(1).queue(10, Duration::from_secs(60)))
        .service(handler);
    let server = servers::hyper(service).await;
    let status = async || {
        clients::get(LOCALHOST, server.addr, "/")
            .await
            .unwrap()
            .status()
    };
    let (first, second) = tokio::join!(status(), status());
    let mut both = [first, second];
    both.sort();
    assert_eq!(both, [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE]);
    assert_eq!(journal.refused(), [LATE]);
    // The request that timed out has left the queue.
    assert_eq!(status().await, StatusCode::OK);
}

/// A service with a unary call that never responds.
struct HangingEcho;

#[tonic::async_trait]
impl Echo for HangingEcho {
    async fn unary(
        &self,
        _: tonic::Request<Piece>,
    ) -> Result<tonic::Response<Total>, tonic::Status> {
        pending().await
    }

    async fn collect(
        &self,
        _: tonic::Request<tonic::Streaming<Piece>>,
    ) -> Result<tonic::Response<Total>, tonic::Status> {
        Ok(tonic::Response::new(Total { bytes: 7 }))
    }
}

#[tokio::test]
async fn on_tonic_the_client_sees_deadline_exceeded() {
    let journal = Journal::default();
    let mut router = tonic::transport::Server::builder()
        .layer(TimeoutLayer::new(LIMIT).metrics(journal.clone()));
    let server = servers::tonic(router.add_service(EchoServer::new(HangingEcho))).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let started = Instant::now();
    let status = client.unary(Piece::default()).await.unwrap_err();
    assert!(
        (LIMIT..LIMIT + SLACK).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(status.message(), "request took too long");
    assert_eq!(journal.refused(), [LATE]);
    let pieces = tokio_stream::iter([Piece::default()]);
    assert_eq!(client.collect(pieces).await.unwrap().get_ref().bytes, 7);
}

#[tokio::test]
async fn on_http2_a_shorter_grpc_timeout_of_the_client_holds() {
    let handler = service_fn(|_| async {
        pending::<()>().await;
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let layer = TimeoutLayer::new(Duration::from_secs(60));
    let server = servers::hyper(tower::Layer::layer(&layer, handler)).await;
    let mut sender = clients::http2::<Pieces>(LOCALHOST, server.addr)
        .await
        .unwrap();
    let request = Request::post("http://test/demo.Echo/Unary")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "200m")
        .body(Pieces::new(1, 5))
        .unwrap();
    let response = timeout(SLACK, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test]
async fn a_response_is_cut_at_the_total_deadline() {
    let journal = Journal::default();
    let events = || async { Body::new(Pieces::new(u64::MAX, 10).every(LIMIT / 10)) };
    let short = || async { Body::new(Pieces::new(4, 10).every(LIMIT / 10)) };
    let big = || async { Body::new(Pieces::new(256, 65_536)) };
    let layer = TimeoutLayer::new(LIMIT)
        .total(2 * LIMIT)
        .metrics(journal.clone());
    let router = Router::new()
        .route("/events", get(events))
        .route("/short", get(short))
        .route("/big", get(big));
    let server = servers::axum_bare(router.layer(layer)).await;
    let started = Instant::now();
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send("GET /events HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, StatusCode::OK);
    let received = client.rest().await;
    assert!(
        (2 * LIMIT..2 * LIMIT + SLACK).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    // The last chunk, which would end the body properly, did not arrive.
    assert!(!received.is_empty() && !received.ends_with(b"0\r\n\r\n"));

    // The response to a client that reads nothing is cut as well.
    let mut stalled = RawClient::connect(server.addr).await.unwrap();
    stalled
        .send("GET /big HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let started = Instant::now();
    while journal.cut().len() < 2 {
        assert!(
            started.elapsed() < 2 * LIMIT + SLACK,
            "the response is not cut"
        );
        sleep(Duration::from_millis(10)).await;
    }

    let mut sender = clients::http2::<Pieces>(LOCALHOST, server.addr)
        .await
        .unwrap();
    let mut get = |path: &str| {
        let request = Request::get(format!("http://test{path}"))
            .body(Pieces::new(0, 0))
            .unwrap();
        sender.send_request(request)
    };
    let (long, short) = (get("/events"), get("/short"));
    let (long, short) = tokio::join!(async { clients::whole(long.await.unwrap()).await }, async {
        clients::whole(short.await.unwrap()).await
    },);
    long.unwrap_err();
    assert_eq!(short.unwrap().body().len(), 40);
    assert_eq!(journal.cut(), [(Guard::Timeout, Reason::TotalDeadline); 3]);
}
