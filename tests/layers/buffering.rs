//! The stack with a buffer: short request bodies are read before the handler is called, outside of
//! the concurrency limit and inside of the other guards.

use axum::{Router, routing::post};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade::{
    Budget, Guard, Reason, Snapshot, Stack, StackLayer, body_limit::BufferLayer, conn::ConnGuard,
    types::Gauge,
};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, PATIENCE, RawClient, wait_until},
    guarded::{ServerKind, all_gone, build_guard},
};
use std::{
    convert::Infallible,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SECOND: Duration = Duration::from_secs(1);

/// A stack with one permit, a handler that works for a second, and what they report.
struct Service {
    stack: StackLayer,
    metrics: Snapshot,
    budget: Budget,
    calls: Arc<AtomicUsize>,
}

impl Service {
    fn new() -> Self {
        let (metrics, budget) = (Snapshot::new(), Budget::new(1 << 20).unwrap());
        let stack = Stack::internal()
            .max_requests(1)
            .byte_budget(budget.clone())
            .metrics(metrics.clone());
        Self {
            stack: stack.build().unwrap(),
            metrics,
            budget,
            calls: Arc::default(),
        }
    }

    /// Sends a request in a task of its own. Returns its status and the time that it took.
    fn send(&self, body: Pieces) -> JoinHandle<(StatusCode, Duration)> {
        let calls = self.calls.clone();
        let layer = self.stack.clone().buffered(BufferLayer::default());
        let service = layer.layer(service_fn(move |request: Request<_>| {
            calls.fetch_add(1, SeqCst);
            async move {
                let body = BodyExt::collect(Request::into_body(request)).await;
                sleep(SECOND).await;
                let length = body.map_or(0, |body| body.to_bytes().len());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(length.to_string()))))
            }
        }));
        tokio::spawn(async move {
            let started = Instant::now();
            let response = service.oneshot(Request::new(body)).await.unwrap();
            let status = response.status();
            drop(response.into_body().collect().await);
            (status, started.elapsed())
        })
    }

    fn working(&self) -> Option<u64> {
        self.metrics.gauge(Guard::ConcurrencyLimit, Gauge::Working)
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_phone_holds_no_permit_and_is_served() {
    let service = Service::new();
    // 30 KiB at 1 KiB/s.
    let phone = service.send(Pieces::new(30, 1024).declared().every(SECOND));
    for _ in 0..10 {
        sleep(SECOND).await;
        assert_eq!(
            (service.working(), service.calls.load(SeqCst)),
            (Some(0), 0)
        );
    }
    assert!(service.budget.held() >= 2 * 8 * 1024);
    for _ in 0..10 {
        let other = service.send(Pieces::new(0, 0)).await.unwrap();
        assert_eq!(other, (StatusCode::OK, SECOND));
    }
    assert_eq!(service.calls.load(SeqCst), 10);
    assert_eq!(phone.await.unwrap(), (StatusCode::OK, 31 * SECOND));
    assert_eq!(service.metrics.total_refused(palisade::Mode::Enforce), 0);
    assert_eq!((service.working(), service.budget.held()), (Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_while_all_permits_are_taken_and_asks_for_one_at_its_end() {
    let service = Service::new();
    let upload = |pieces, pause| Pieces::new(pieces, 1024).declared().every(pause);
    // The handlers work for a second, one after the other.
    let ends_in_work = service.send(upload(3, SECOND / 2));
    sleep(SECOND).await;
    let other = service.send(Pieces::new(0, 0));
    let ends_after_work = service.send(upload(3, SECOND / 2));
    assert_eq!(
        ends_in_work.await.unwrap(),
        (StatusCode::SERVICE_UNAVAILABLE, 3 * SECOND / 2)
    );
    assert_eq!(other.await.unwrap(), (StatusCode::OK, SECOND));
    assert_eq!(
        ends_after_work.await.unwrap(),
        (StatusCode::OK, 5 * SECOND / 2)
    );
    assert_eq!(
        service
            .metrics
            .refused(Guard::ConcurrencyLimit, Reason::Full),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn uploads_that_do_not_arrive_are_ended_and_no_handler_is_called() {
    let service = Service::new();
    let silent = service.send(Pieces::new(1, 64 << 10).declared().every(3600 * SECOND));
    // One byte, and then a byte in two seconds.
    let dripping = service.send(Pieces::new(64 << 10, 1).declared().every(2 * SECOND));
    for upload in [silent, dripping] {
        let (status, after) = upload.await.unwrap();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(after <= 16 * SECOND, "{after:?}");
    }
    assert_eq!(service.calls.load(SeqCst), 0);
    let refused = |reason| service.metrics.refused(Guard::SlowBody, reason);
    assert_eq!((refused(Reason::Gap), refused(Reason::Rate)), (1, 1));
    assert_eq!((service.working(), service.budget.held()), (Some(0), 0));
}

/// A server with one permit and a buffer, whose handler answers with the length of the body.
async fn serve(
    kind: ServerKind,
) -> (
    palisade_testkit::servers::Server,
    ConnGuard,
    Arc<AtomicUsize>,
) {
    let (guard, _) = build_guard(ConnGuard::builder());
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let length = post(async move |body: Bytes| {
        count.fetch_add(1, SeqCst);
        body.len().to_string()
    });
    let stack = Stack::edge().max_requests(1).metrics(Journal::default());
    let buffered = stack.build().unwrap().buffered(BufferLayer::default());
    let app = Router::new().route("/", length).layer(buffered);
    (kind.serve(&guard, app).await, guard, calls)
}

async fn send(is_http2: bool, to: std::net::SocketAddr, body: Pieces) -> http::Response<Bytes> {
    let response = async {
        if is_http2 {
            let request = Request::post(format!("http://{to}/")).body(body).unwrap();
            let mut client = clients::http2(LOCALHOST, to).await.unwrap();
            clients::whole(client.send_request(request).await.unwrap()).await
        } else {
            let request = Request::post("/")
                .header("host", "test")
                .body(body)
                .unwrap();
            let mut client = clients::http1(LOCALHOST, to).await.unwrap();
            clients::whole(client.send_request(request).await.unwrap()).await
        }
    };
    timeout(PATIENCE, response).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_uploads_and_other_requests_are_served_over_http1_and_http2() {
    for kind in [ServerKind::Serve, ServerKind::Axum] {
        let (server, guard, calls) = serve(kind).await;
        for is_http2 in [false, true] {
            let before = calls.load(SeqCst);
            let (pause, addr) = (Duration::from_millis(100), server.addr);
            let slow = Pieces::new(20, 1024).declared().every(pause);
            let slow = tokio::spawn(async move { send(is_http2, addr, slow).await });
            for _ in 0..5 {
                let response = send(is_http2, addr, Pieces::new(2, 100).declared()).await;
                assert_eq!(response.body(), "200");
            }
            // One that streams, because it is too long.
            let response = send(is_http2, addr, Pieces::new(100, 1024).declared()).await;
            assert_eq!(response.body(), "102400");
            assert_eq!(slow.await.unwrap().body(), "20480");
            assert_eq!(calls.load(SeqCst) - before, 7);
        }
        all_gone(&guard).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_within_its_upload_leaves_nothing() {
    let (server, guard, _) = serve(ServerKind::Serve).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\nbegin";
    client.send(head).await.unwrap();
    wait_until("the request is in flight", || {
        guard.snapshot().in_flight == 1
    })
    .await;
    drop(client);
    all_gone(&guard).await;
    wait_until("nothing is in flight", || guard.snapshot().in_flight == 0).await;
    // The permit is free.
    let response = send(false, server.addr, Pieces::new(1, 5).declared()).await;
    assert_eq!(response.body(), "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_gets_it_before_the_handler_is_called() {
    let (server, _guard, calls) = serve(ServerKind::Serve).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\n";
    client
        .send(format!("{head}content-length: 5\r\n\r\n"))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, StatusCode::CONTINUE);
    assert_eq!(calls.load(SeqCst), 0);
    client.send("12345").await.unwrap();
    assert_eq!(client.head().await.unwrap().status, StatusCode::OK);
    assert_eq!(client.body(1).await.unwrap(), b"5");
    // One that declares too much gets none.
    client
        .send(format!("{head}content-length: 9999999\r\n\r\n"))
        .await
        .unwrap();
    assert_eq!(
        client.head().await.unwrap().status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
}
