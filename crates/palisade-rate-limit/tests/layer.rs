//! The layer around a service: which requests it refuses, and with which response.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{Gauge, Guard, GuardBody, Reason};
use palisade_rate_limit::{
    ClientIp, ClientKey, Decision, KeyExtractor, KeyOutcome, Limiter, Missing, Mode, Quota,
    RateLimit, RateLimitLayer, RequestHead, TableLimiter,
};
use palisade_testkit::Journal;
use std::{convert::Infallible, future::Ready, net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

const GUARD: Guard = Guard::RateLimit;
const CLIENT: &str = "192.0.2.1";
const NEIGHBOUR: &str = "192.0.2.2";

type GuardedResponse = Response<GuardBody<Full<Bytes>>>;

fn limiter(quota: Quota) -> TableLimiter {
    TableLimiter::new(quota).unwrap().capacity(1 << 10)
}

fn layer() -> RateLimitLayer {
    RateLimitLayer::with_limiter(limiter(Quota::per_second(10).burst(3)))
}

fn respond_ok(_: Request<Full<Bytes>>) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    std::future::ready(Ok(Response::new(Full::new(Bytes::from("served")))))
}

fn request_from(address: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    request
        .extensions_mut()
        .insert(SocketAddr::new(address.parse().unwrap(), 4711));
    request
}

async fn send<S>(service: &mut S, request: Request<Full<Bytes>>) -> GuardedResponse
where
    S: Service<Request<Full<Bytes>>, Response = GuardedResponse, Error = Infallible>,
{
    service.ready().await.unwrap().call(request).await.unwrap()
}

async fn statuses<S>(service: &mut S, address: &str, count: usize) -> Vec<u16>
where
    S: Service<Request<Full<Bytes>>, Response = GuardedResponse, Error = Infallible>,
{
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(send(service, request_from(address)).await.status().as_u16());
    }
    statuses
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_limit_is_answered_429_and_the_neighbour_is_served() {
    let journal = Journal::default();
    let mut service = layer()
        .metrics(journal.clone())
        .layer(service_fn(respond_ok));
    assert_eq!(
        statuses(&mut service, CLIENT, 4).await,
        [200, 200, 200, 429]
    );
    assert_eq!(statuses(&mut service, NEIGHBOUR, 3).await, [200, 200, 200]);

    let refused = send(&mut service, request_from(CLIENT)).await;
    assert_eq!(refused.headers()["retry-after"], "1"); // 100 ms, rounded up.
    assert_eq!(
        refused.into_body().collect().await.unwrap().to_bytes(),
        "too many requests"
    );
    let (violation, mode) = journal.refusals()[0];
    assert_eq!(
        (violation.guard, violation.reason),
        (GUARD, Reason::RateExceeded)
    );
    assert_eq!(
        (violation.limit, violation.observed, mode),
        (0, 100, Mode::Enforce)
    );

    advance(Duration::from_millis(100)).await;
    assert_eq!(statuses(&mut service, CLIENT, 2).await, [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_admitted_after_retry_after_which_is_rounded_up() {
    let mut service =
        RateLimitLayer::with_limiter(limiter(Quota::period(Duration::from_millis(2500))))
            .layer(service_fn(respond_ok));
    assert_eq!(
        send(&mut service, request_from(CLIENT)).await.status(),
        StatusCode::OK
    );
    assert_eq!(
        send(&mut service, request_from(CLIENT)).await.headers()["retry-after"],
        "3"
    );
    advance(Duration::from_secs(3)).await;
    assert_eq!(
        send(&mut service, request_from(CLIENT)).await.status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn all_addresses_of_a_64_are_one_client() {
    let mut service = layer().layer(service_fn(respond_ok));
    for host in 0..3 {
        let address = format!("2001:db8::{host}");
        assert_eq!(statuses(&mut service, &address, 1).await, [200]);
    }
    assert_eq!(
        statuses(&mut service, "2001:db8::ffff:1:2:3", 1).await,
        [429]
    );
    assert_eq!(statuses(&mut service, "2001:db8:0:1::1", 1).await, [200]);
}

#[tokio::test(start_paused = true)]
async fn all_services_and_clones_share_one_limit() {
    let layer = layer();
    let mut service = layer.layer(service_fn(respond_ok));
    let mut clone = service.clone();
    let mut other = layer.clone().layer(service_fn(respond_ok));
    assert_eq!(statuses(&mut service, CLIENT, 1).await, [200]);
    assert_eq!(statuses(&mut clone, CLIENT, 1).await, [200]);
    assert_eq!(statuses(&mut other, CLIENT, 2).await, [200, 429]);
    // A layer with options set afterwards still shares the limit.
    let mut late = layer
        .mode(Mode::Enforce)
        .cost(|_| 1)
        .layer(service_fn(respond_ok));
    assert_eq!(statuses(&mut late, CLIENT, 1).await, [429]);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_records_refusals_and_admits_the_requests() {
    let journal = Journal::default();
    let shadow = layer().metrics(journal.clone()).mode(Mode::Shadow);
    let mut service = shadow.layer(service_fn(respond_ok));
    assert_eq!(statuses(&mut service, CLIENT, 5).await, [200; 5]);
    let modes: Vec<_> = journal.refusals().iter().map(|(_, mode)| *mode).collect();
    assert_eq!(modes, [Mode::Shadow; 2]);
}

#[tokio::test(start_paused = true)]
async fn off_mode_extracts_no_key_and_records_nothing() {
    let journal = Journal::default();
    let off = layer()
        .metrics(journal.clone())
        .mode(Mode::Off)
        .key(|_: &RequestHead<'_>| -> KeyOutcome { panic!("key requested in mode off") });
    let mut service = off.layer(service_fn(respond_ok));
    assert_eq!(statuses(&mut service, CLIENT, 5).await, [200; 5]);
    assert_eq!(journal.refused(), []);
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_peer_is_counted_as_shared_refused_or_admitted() {
    let journal = Journal::default();
    let layer = layer().metrics(journal.clone());
    let without_peer = || Request::new(Full::default());
    let mut shared = layer.clone().layer(service_fn(respond_ok));
    for expected in [200, 200, 200, 429] {
        assert_eq!(send(&mut shared, without_peer()).await.status(), expected);
    }
    let refuse = ClientIp::peer().missing(Missing::Refuse);
    let mut refusing = layer.clone().key(refuse).layer(service_fn(respond_ok));
    let refused = send(&mut refusing, without_peer()).await;
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!refused.headers().contains_key("retry-after"));
    assert_eq!(journal.refused()[1], (GUARD, Reason::PeerMissing));
    assert_eq!(statuses(&mut refusing, CLIENT, 1).await, [200]);
    let pass = ClientIp::peer().missing(Missing::Pass);
    let mut passing = layer.key(pass).layer(service_fn(respond_ok));
    for _ in 0..9 {
        assert_eq!(
            send(&mut passing, without_peer()).await.status(),
            StatusCode::OK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_chooses_the_key_and_exempts_requests() {
    let by_ip = ClientIp::peer();
    let layer = layer().key(move |head: &RequestHead<'_>| match head.uri.path() {
        "/health" => KeyOutcome::Exempt,
        "/tenant" => KeyOutcome::Key(ClientKey::of("tenant")),
        _ => by_ip.extract(head),
    });
    let mut service = layer.layer(service_fn(respond_ok));
    let mut status_of = async |path: &'static str, address| {
        let mut request = request_from(address);
        *request.uri_mut() = http::Uri::from_static(path);
        send(&mut service, request).await.status().as_u16()
    };
    for _ in 0..10 {
        assert_eq!(status_of("/health", CLIENT).await, 200);
    }
    assert_eq!(status_of("/tenant", CLIENT).await, 200);
    assert_eq!(status_of("/tenant", NEIGHBOUR).await, 200);
    assert_eq!(status_of("/tenant", CLIENT).await, 200);
    assert_eq!(status_of("/tenant", NEIGHBOUR).await, 429);
    assert_eq!(status_of("/", CLIENT).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_costs_more_than_the_burst_is_refused_without_retry_after() {
    let journal = Journal::default();
    let cost = |head: &RequestHead<'_>| head.uri.path().len() as u32 - 1;
    let mut service = layer()
        .metrics(journal.clone())
        .cost(cost)
        .layer(service_fn(respond_ok));
    let mut send_to = async |path: &'static str, grpc: bool| {
        let mut request = request_from(CLIENT);
        *request.uri_mut() = http::Uri::from_static(path);
        if grpc {
            *request.method_mut() = http::Method::POST;
            *request.version_mut() = http::Version::HTTP_2;
            let kind = http::HeaderValue::from_static("application/grpc");
            request.headers_mut().insert("content-type", kind);
        }
        send(&mut service, request).await
    };
    let refused = send_to("/four", false).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!refused.headers().contains_key("retry-after"));
    let refused = send_to("/four", true).await;
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(refused.headers()["grpc-retry-pushback-ms"], "-1");
    let (violation, _) = journal.refusals()[0];
    assert_eq!(violation.reason, Reason::CostOverBurst);
    assert_eq!((violation.limit, violation.observed), (3, 4));
    // Neither request was charged. A request that costs nothing is admitted despite the debt.
    assert_eq!(send_to("/abc", false).await.status(), StatusCode::OK);
    assert_eq!(
        send_to("/a", false).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(send_to("/", false).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_request_is_answered_resource_exhausted_with_a_pushback() {
    let mut service = layer().layer(service_fn(respond_ok));
    assert_eq!(statuses(&mut service, CLIENT, 3).await, [200; 3]);
    let mut request = request_from(CLIENT);
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    let kind = http::HeaderValue::from_static("application/grpc+proto");
    request.headers_mut().insert("content-type", kind);
    let refused = send(&mut service, request).await;
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(refused.headers()["grpc-message"], "too many requests");
    assert_eq!(refused.headers()["grpc-retry-pushback-ms"], "100");
}

#[tokio::test(start_paused = true)]
async fn on_reject_replaces_the_response() {
    let mut service = layer()
        .on_reject(|rejection| {
            let text = format!("slow down for {:?}", rejection.retry_delay().unwrap());
            Response::new(Bytes::from(text))
        })
        .layer(service_fn(respond_ok));
    statuses(&mut service, CLIENT, 3).await;
    let refused = send(&mut service, request_from(CLIENT)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.into_body().collect().await.unwrap().to_bytes(),
        "slow down for 100ms"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_or_failed_request_stays_charged() {
    let failing = service_fn(async |_: Request<Full<Bytes>>| {
        Err::<Response<Full<Bytes>>, _>("the handler's own error")
    });
    let layer = layer();
    let mut service = layer.clone().layer(failing);
    // The handler's error passes through unchanged.
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(request_from(CLIENT))
            .await
            .err()
            .unwrap()
            .len(),
        23
    );
    drop(service.ready().await.unwrap().call(request_from(CLIENT)));
    let panicking = service_fn(
        |_: Request<Full<Bytes>>| -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
            panic!("the handler")
        },
    );
    let mut panicking = layer.clone().layer(panicking);
    let call = std::panic::AssertUnwindSafe(|| drop(panicking.call(request_from(CLIENT))));
    std::panic::catch_unwind(call).unwrap_err();
    assert_eq!(
        statuses(&mut layer.layer(service_fn(respond_ok)), CLIENT, 1).await,
        [429]
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_policy_applies_to_a_running_service() {
    let limiter = Arc::new(limiter(Quota::per_second(10).burst(3)));
    let mut service = RateLimitLayer::with_limiter(limiter.clone()).layer(service_fn(respond_ok));
    assert_eq!(
        statuses(&mut service, CLIENT, 4).await,
        [200, 200, 200, 429]
    );
    limiter.set(Quota::per_second(10).burst(5)).unwrap();
    assert_eq!(statuses(&mut service, CLIENT, 3).await, [200, 200, 429]);
}

#[tokio::test(start_paused = true)]
async fn the_gauges_show_that_the_table_empties_as_debts_are_paid() {
    let journal = Journal::default();
    let mut service = layer()
        .metrics(journal.clone())
        .layer(service_fn(respond_ok));
    statuses(&mut service, CLIENT, 2).await;
    statuses(&mut service, NEIGHBOUR, 1).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(2));
    assert_eq!(journal.gauge(GUARD, Gauge::KeyCapacity), Some(1 << 10));
    assert_eq!(journal.gauge(GUARD, Gauge::KeysEvicted), Some(0));
    advance(Duration::from_millis(200)).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(0));
    drop(service);
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), None);
}

#[tokio::test(start_paused = true)]
async fn the_layer_works_with_any_limiter() {
    struct AlwaysDeny;
    impl Limiter for AlwaysDeny {
        fn check(&self, _: ClientKey, _: u32) -> Decision {
            Decision::Deny {
                wait: Duration::MAX,
            }
        }
    }
    let mut service = RateLimitLayer::with_limiter(AlwaysDeny).layer(service_fn(respond_ok));
    let refused = send(&mut service, request_from(CLIENT)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn the_layer_adds_no_extension_to_the_request() {
    let handler = service_fn(async |request: Request<Empty<Bytes>>| {
        assert!(request.extensions().is_empty());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    layer()
        .layer(handler)
        .oneshot(Request::new(Empty::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn readiness_is_that_of_the_inner_service() {
    let (mock, handle) = tower_test::mock::pair::<Request<Full<Bytes>>, Response<Full<Bytes>>>();
    drop(handle);
    let mut service = layer().layer(mock);
    let ready = service.ready().await;
    assert!(ready.is_err(), "the inner service is closed");
}

#[test]
fn the_layer_and_service_meet_their_bounds_and_the_future_adds_16_bytes_at_most() {
    fn assert_bounds<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    assert_bounds::<RateLimitLayer>();
    assert_bounds::<RateLimit<()>>();
    type Pending = std::future::Pending<[u64; 32]>;
    struct Inner(#[allow(dead_code)] [u64; 32], Pending);
    impl Future for Inner {
        type Output = Result<Response<Full<Bytes>>, Infallible>;
        fn poll(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Self::Output> {
            std::task::Poll::Pending
        }
    }
    let added = size_of::<palisade_rate_limit::ResponseFuture<Inner>>() - size_of::<Inner>();
    assert!(added <= 16, "{added} bytes");
}

/// A limiter that returns the number of its occupancy reads as its number of keys.
struct CountedReads(std::sync::atomic::AtomicU64);

impl Limiter for CountedReads {
    fn check(&self, _: ClientKey, _: u32) -> Decision {
        Decision::Admit
    }

    fn occupancy(&self) -> Option<palisade_guard::Occupancy> {
        let keys = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Some(palisade_guard::Occupancy::new(keys, 1 << 20, 0))
    }
}

#[tokio::test(start_paused = true)]
async fn the_occupancy_of_a_large_table_is_read_once_a_second_at_most() {
    let journal = Journal::default();
    let _layer = RateLimitLayer::with_limiter(CountedReads(0.into())).metrics(journal.clone());
    for second in 1..4 {
        for _ in 0..100 {
            assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(second));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}
