//! T12: a flood of keys against the rate limit's own table. It takes no more memory than it had,
//! nobody gets rid of a debt by it, and an honest client beside it is served throughout.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use palisade_core::{ConnInfo, Gauge, Guard, Prefix};
use palisade_rate_limit::{Quota, RateLimitLayer, TableLimiter};
use palisade_testkit::{Journal, alloc::CountingAllocator, clients, servers};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const GUARD: Guard = Guard::RateLimit;
const CAPACITY: u64 = 1 << 12;

/// Ten requests a second and forty at once, over a table of 32 KiB.
fn limit(journal: &Journal) -> RateLimitLayer {
    let limiter = TableLimiter::new(Quota::per_second(10).burst(40)).unwrap();
    RateLimitLayer::with_limiter(limiter.capacity(CAPACITY as usize)).metrics(journal.clone())
}

/// The address number `client`, each in a /64 of its own.
fn address(client: u32) -> SocketAddr {
    let network = 0x2001_0db8_u128 << 96 | u128::from(client) << 64;
    (Ipv6Addr::from_bits(network | 1), 4711).into()
}

fn info(client: u32) -> Arc<ConnInfo> {
    ConnInfo::new(address(client), None, Prefix::default())
}

/// Not two tests, because both look at what the whole process has allocated.
#[tokio::test]
async fn a_flood_of_keys_takes_no_memory_and_washes_no_debt_off() {
    a_million_keys_in_one_process().await;
    twenty_thousand_keys_over_a_socket().await;
}

async fn a_million_keys_in_one_process() {
    tokio::time::pause();
    let journal = Journal::default();
    let handler = |_: Request<Empty<Bytes>>| {
        std::future::ready(Ok::<_, Infallible>(Response::<Full<Bytes>>::default()))
    };
    let mut service = limit(&journal).layer(service_fn(handler));
    let mut ask = |client: &Arc<ConnInfo>| {
        let mut request = Request::new(Empty::<Bytes>::new());
        request.extensions_mut().insert(client.clone());
        let future = pin!(service.call(request));
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(response)) => response.status() == StatusCode::OK,
            Poll::Pending => false,
        }
    };
    let (abuser, honest) = (info(1), info(2));
    let mut admitted = 0;
    let before = ALLOCATOR.live();
    // Ten seconds, a hundred thousand new keys in each. Every half second the abuser tries to find
    // his debt gone; the honest client asks once a second.
    for millis in 0..10_000u32 {
        if millis % 500 == 0 {
            admitted += (0..60).filter(|_| ask(&abuser)).count();
        }
        if millis % 1000 == 250 {
            assert!(ask(&honest), "after {millis} ms");
        }
        for number in 0..100 {
            assert!(ask(&info(1000 + millis * 100 + number)));
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // Refusals are written down in the journal; nothing else may have grown.
    let journal_bytes = journal.refusals().len() * 128 + (64 << 10);
    let grown = ALLOCATOR.live().saturating_sub(before);
    assert!(grown <= journal_bytes, "{grown} bytes for a million keys");
    assert!(admitted as f64 <= 1.02 * (40.0 + 10.0 * 10.0), "{admitted}");
    assert!(journal.level(GUARD, Gauge::Keys).unwrap() <= CAPACITY);
    assert!(journal.level(GUARD, Gauge::KeysEvicted).unwrap() > 0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(journal.level(GUARD, Gauge::Keys), Some(0));
    tokio::time::resume();
}

async fn twenty_thousand_keys_over_a_socket() {
    // Nobody has so many addresses on loopback, so whoever accepts here takes them from a header.
    let journal = Journal::default();
    let limited = limit(&journal).layer(service_fn(async |_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
    }));
    let service = tower::ServiceExt::map_request(limited, |mut request: Request<_>| {
        let client: &HeaderValue = &request.headers()["test-client"];
        let client = client.to_str().unwrap().parse().unwrap();
        request.extensions_mut().insert(info(client));
        request
    });
    let server = servers::hyper(service).await;
    let mut clients = tokio::task::JoinSet::new();
    for connection in 0..4u32 {
        let addr = server.addr;
        clients.spawn(async move {
            let from = Ipv4Addr::LOCALHOST;
            let mut http2 = clients::http2::<Empty<Bytes>>(from, addr).await.unwrap();
            let mut ask = async |client: u32| {
                let request = Request::get("http://test/").header("test-client", client);
                let request = request.body(Empty::new()).unwrap();
                http2.send_request(request).await.unwrap().status()
            };
            for number in 0..5000 {
                let client = 10_000_000 + connection * 5000 + number;
                assert_eq!(ask(client).await, StatusCode::OK);
                if number % 500 == 0 {
                    assert_eq!(ask(connection).await, StatusCode::OK, "the honest client");
                }
            }
        });
    }
    clients.join_all().await;
    assert_eq!(journal.refused(), []);
    assert!(journal.level(GUARD, Gauge::Keys).unwrap() <= CAPACITY);
}
