//! The layer around a service: what is refused, how, and what it costs nobody.
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
const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";

type Answer = Response<GuardBody<Full<Bytes>>>;

fn limiter(quota: Quota) -> TableLimiter {
    TableLimiter::new(quota).unwrap().capacity(1 << 10)
}

fn layer() -> RateLimitLayer {
    RateLimitLayer::with_limiter(limiter(Quota::per_second(10).burst(3)))
}

fn ok(_: Request<Full<Bytes>>) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    std::future::ready(Ok(Response::new(Full::new(Bytes::from("served")))))
}

fn from(address: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    request
        .extensions_mut()
        .insert(SocketAddr::new(address.parse().unwrap(), 4711));
    request
}

async fn send<S>(service: &mut S, request: Request<Full<Bytes>>) -> Answer
where
    S: Service<Request<Full<Bytes>>, Response = Answer, Error = Infallible>,
{
    service.ready().await.unwrap().call(request).await.unwrap()
}

async fn statuses<S>(service: &mut S, address: &str, count: usize) -> Vec<u16>
where
    S: Service<Request<Full<Bytes>>, Response = Answer, Error = Infallible>,
{
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(send(service, from(address)).await.status().as_u16());
    }
    statuses
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_is_answered_429_and_the_neighbour_is_served() {
    let journal = Journal::default();
    let mut service = layer().metrics(journal.clone()).layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 4).await, [200, 200, 200, 429]);
    assert_eq!(statuses(&mut service, THERE, 3).await, [200, 200, 200]);

    let refused = send(&mut service, from(HERE)).await;
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
    assert_eq!(statuses(&mut service, HERE, 2).await, [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_rounded_up_and_true() {
    let mut service =
        RateLimitLayer::with_limiter(limiter(Quota::period(Duration::from_millis(2500))))
            .layer(service_fn(ok));
    assert_eq!(
        send(&mut service, from(HERE)).await.status(),
        StatusCode::OK
    );
    assert_eq!(
        send(&mut service, from(HERE)).await.headers()["retry-after"],
        "3"
    );
    advance(Duration::from_secs(3)).await;
    assert_eq!(
        send(&mut service, from(HERE)).await.status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_64_is_one_client() {
    let mut service = layer().layer(service_fn(ok));
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
    let mut service = layer.layer(service_fn(ok));
    let mut clone = service.clone();
    let mut other = layer.clone().layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 1).await, [200]);
    assert_eq!(statuses(&mut clone, HERE, 1).await, [200]);
    assert_eq!(statuses(&mut other, HERE, 2).await, [200, 429]);
    // Nor do options set afterwards split it.
    let mut late = layer.mode(Mode::Enforce).cost(|_| 1).layer(service_fn(ok));
    assert_eq!(statuses(&mut late, HERE, 1).await, [429]);
}

#[tokio::test(start_paused = true)]
async fn shadow_tells_and_lets_pass() {
    let journal = Journal::default();
    let shadow = layer().metrics(journal.clone()).mode(Mode::Shadow);
    let mut service = shadow.layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 5).await, [200; 5]);
    let modes: Vec<_> = journal.refusals().iter().map(|(_, mode)| *mode).collect();
    assert_eq!(modes, [Mode::Shadow; 2]);
}

#[tokio::test(start_paused = true)]
async fn off_does_not_look() {
    let journal = Journal::default();
    let off = layer()
        .metrics(journal.clone())
        .mode(Mode::Off)
        .key(|_: &RequestHead<'_>| -> KeyOutcome { panic!("asked for a key") });
    let mut service = off.layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 5).await, [200; 5]);
    assert_eq!(journal.refused(), []);
    assert_eq!(journal.level(GUARD, Gauge::Keys), Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_peer_shares_is_refused_or_passes_and_never_in_silence() {
    let journal = Journal::default();
    let layer = layer().metrics(journal.clone());
    let nobody = || Request::new(Full::default());
    let mut shared = layer.clone().layer(service_fn(ok));
    for expected in [200, 200, 200, 429] {
        assert_eq!(send(&mut shared, nobody()).await.status(), expected);
    }
    let refuse = ClientIp::peer().missing(Missing::Refuse);
    let mut refusing = layer.clone().key(refuse).layer(service_fn(ok));
    let refused = send(&mut refusing, nobody()).await;
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!refused.headers().contains_key("retry-after"));
    assert_eq!(journal.refused()[1], (GUARD, Reason::PeerMissing));
    assert_eq!(statuses(&mut refusing, HERE, 1).await, [200]);
    let pass = ClientIp::peer().missing(Missing::Pass);
    let mut passing = layer.key(pass).layer(service_fn(ok));
    for _ in 0..9 {
        assert_eq!(send(&mut passing, nobody()).await.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn anything_can_be_the_key_and_some_are_exempt() {
    let by_ip = ClientIp::peer();
    let layer = layer().key(move |head: &RequestHead<'_>| match head.uri.path() {
        "/health" => KeyOutcome::Exempt,
        "/tenant" => KeyOutcome::Key(ClientKey::of("tenant")),
        _ => by_ip.extract(head),
    });
    let mut service = layer.layer(service_fn(ok));
    let mut to = async |path: &'static str, address| {
        let mut request = from(address);
        *request.uri_mut() = http::Uri::from_static(path);
        send(&mut service, request).await.status().as_u16()
    };
    for _ in 0..10 {
        assert_eq!(to("/health", HERE).await, 200);
    }
    assert_eq!(to("/tenant", HERE).await, 200);
    assert_eq!(to("/tenant", THERE).await, 200);
    assert_eq!(to("/tenant", HERE).await, 200);
    assert_eq!(to("/tenant", THERE).await, 429);
    assert_eq!(to("/", HERE).await, 200);
}

#[tokio::test(start_paused = true)]
async fn what_costs_more_than_the_burst_is_refused_for_good() {
    let journal = Journal::default();
    let cost = |head: &RequestHead<'_>| head.uri.path().len() as u32 - 1;
    let mut service = layer()
        .metrics(journal.clone())
        .cost(cost)
        .layer(service_fn(ok));
    let mut to = async |path: &'static str, grpc: bool| {
        let mut request = from(HERE);
        *request.uri_mut() = http::Uri::from_static(path);
        if grpc {
            *request.method_mut() = http::Method::POST;
            *request.version_mut() = http::Version::HTTP_2;
            let kind = http::HeaderValue::from_static("application/grpc");
            request.headers_mut().insert("content-type", kind);
        }
        send(&mut service, request).await
    };
    let refused = to("/four", false).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!refused.headers().contains_key("retry-after"));
    let refused = to("/four", true).await;
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(refused.headers()["grpc-retry-pushback-ms"], "-1");
    let (violation, _) = journal.refusals()[0];
    assert_eq!(violation.reason, Reason::CostOverBurst);
    assert_eq!((violation.limit, violation.observed), (3, 4));
    // Neither was charged for, and what costs nothing passes whatever is owed.
    assert_eq!(to("/abc", false).await.status(), StatusCode::OK);
    assert_eq!(
        to("/a", false).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(to("/", false).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn grpc_gets_resource_exhausted_and_when_to_come_back() {
    let mut service = layer().layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 3).await, [200; 3]);
    let mut request = from(HERE);
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
async fn the_answer_can_be_ones_own() {
    let mut service = layer()
        .on_reject(|rejection| {
            let text = format!("slow down for {:?}", rejection.wait().unwrap());
            Response::new(Bytes::from(text))
        })
        .layer(service_fn(ok));
    statuses(&mut service, HERE, 3).await;
    let refused = send(&mut service, from(HERE)).await;
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
    // The error comes through as it is.
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(from(HERE))
            .await
            .err()
            .unwrap()
            .len(),
        23
    );
    drop(service.ready().await.unwrap().call(from(HERE)));
    let panicking = service_fn(
        |_: Request<Full<Bytes>>| -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
            panic!("the handler")
        },
    );
    let mut panics = layer.clone().layer(panicking);
    let call = std::panic::AssertUnwindSafe(|| drop(panics.call(from(HERE))));
    std::panic::catch_unwind(call).unwrap_err();
    assert_eq!(
        statuses(&mut layer.layer(service_fn(ok)), HERE, 1).await,
        [429]
    );
}

#[tokio::test(start_paused = true)]
async fn the_limit_changes_under_a_running_service() {
    let limiter = Arc::new(limiter(Quota::per_second(10).burst(3)));
    let mut service = RateLimitLayer::with_limiter(limiter.clone()).layer(service_fn(ok));
    assert_eq!(statuses(&mut service, HERE, 4).await, [200, 200, 200, 429]);
    limiter.set(Quota::per_second(10).burst(5)).unwrap();
    assert_eq!(statuses(&mut service, HERE, 3).await, [200, 200, 429]);
}

#[tokio::test(start_paused = true)]
async fn the_metrics_see_the_table_empty_itself() {
    let journal = Journal::default();
    let mut service = layer().metrics(journal.clone()).layer(service_fn(ok));
    statuses(&mut service, HERE, 2).await;
    statuses(&mut service, THERE, 1).await;
    assert_eq!(journal.level(GUARD, Gauge::Keys), Some(2));
    assert_eq!(journal.level(GUARD, Gauge::KeyCapacity), Some(1 << 10));
    assert_eq!(journal.level(GUARD, Gauge::KeysEvicted), Some(0));
    advance(Duration::from_millis(200)).await;
    assert_eq!(journal.level(GUARD, Gauge::Keys), Some(0));
    drop(service);
    assert_eq!(journal.level(GUARD, Gauge::Keys), None);
}

#[tokio::test(start_paused = true)]
async fn any_limiter_will_do() {
    struct Moody;
    impl Limiter for Moody {
        fn check(&self, _: ClientKey, _: u32) -> Decision {
            Decision::Deny {
                wait: Duration::MAX,
            }
        }
    }
    let mut service = RateLimitLayer::with_limiter(Moody).layer(service_fn(ok));
    let refused = send(&mut service, from(HERE)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_put_into_the_request() {
    let looks = service_fn(async |request: Request<Empty<Bytes>>| {
        assert!(request.extensions().is_empty());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    layer()
        .layer(looks)
        .oneshot(Request::new(Empty::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn readiness_is_the_inner_service_s_own() {
    let (mock, _handle) = tower_test::mock::pair::<Request<Full<Bytes>>, Response<Full<Bytes>>>();
    drop(_handle);
    let mut service = layer().layer(mock);
    let ready = service.ready().await;
    assert!(ready.is_err(), "the inner service is gone and says so");
}

#[test]
fn layer_and_service_go_anywhere_and_the_future_is_slim() {
    fn anywhere<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    anywhere::<RateLimitLayer>();
    anywhere::<RateLimit<()>>();
    type Big = std::future::Pending<[u64; 32]>;
    struct Inner(#[allow(dead_code)] [u64; 32], Big);
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

/// A limiter that counts how often somebody asks how full it is.
struct Asked(std::sync::atomic::AtomicU64);

impl Limiter for Asked {
    fn check(&self, _: ClientKey, _: u32) -> Decision {
        Decision::Admit
    }

    fn occupancy(&self) -> Option<palisade_guard::Occupancy> {
        let keys = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Some(palisade_guard::Occupancy {
            keys,
            capacity: 1 << 20,
            evicted: 0,
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_table_is_looked_at_once_a_second_however_many_ask() {
    let journal = Journal::default();
    let _layer = RateLimitLayer::with_limiter(Asked(0.into())).metrics(journal.clone());
    for second in 1..4 {
        for _ in 0..100 {
            assert_eq!(journal.level(GUARD, Gauge::Keys), Some(second));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}
