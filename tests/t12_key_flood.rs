//! T12: a flood of keys against the rate limit's own table. The table takes no more memory than
//! before, no client loses its debt by the flood, and an honest client is served throughout.
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

/// Ten requests per second with a burst of forty, over a table of 32 KiB.
fn limit(journal: &Journal) -> RateLimitLayer {
    let limiter = TableLimiter::new(Quota::per_second(10).burst(40)).unwrap();
    RateLimitLayer::with_limiter(limiter.capacity(CAPACITY as usize)).metrics(journal.clone())
}

/// Returns the address of client number `client`, each in a /64 of its own.
fn client_address(client: u32) -> SocketAddr {
    let network = 0x2001_0db8_u128 << 96 | u128::from(client) << 64;
    (Ipv6Addr::from_bits(network | 1), 4711).into()
}

fn info(client: u32) -> Arc<ConnInfo> {
    ConnInfo::new(client_address(client), None, Prefix::default())
}

/// One test, because both parts measure the allocations of the whole process.
#[tokio::test]
async fn a_flood_of_keys_takes_no_memory_and_erases_no_debt() {
    flood_a_million_keys_in_process().await;
    flood_twenty_thousand_keys_over_a_socket().await;
}

async fn flood_a_million_keys_in_process() {
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
    // Ten seconds with a hundred thousand new keys in each. Every half second the abuser checks
    // whether its debt is gone; the honest client sends a request once a second.
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
    // The journal stores every refusal. Nothing else may have grown.
    let journal_bytes = journal.refusals().len() * 128 + (64 << 10);
    let grown = ALLOCATOR.live().saturating_sub(before);
    assert!(grown <= journal_bytes, "{grown} bytes for a million keys");
    assert!(admitted as f64 <= 1.02 * (40.0 + 10.0 * 10.0), "{admitted}");
    assert!(journal.gauge(GUARD, Gauge::Keys).unwrap() <= CAPACITY);
    assert!(journal.gauge(GUARD, Gauge::KeysEvicted).unwrap() > 0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(0));
    tokio::time::resume();
}

async fn flood_twenty_thousand_keys_over_a_socket() {
    // Loopback does not have that many addresses, so the server takes them from a header.
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
    assert!(journal.gauge(GUARD, Gauge::Keys).unwrap() <= CAPACITY);
}
