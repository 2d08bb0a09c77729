//! T12: a flood of keys against the rate limit's own table. The table takes no more memory than
//! before, no client loses its debt by the flood, and an honest client is served throughout.
//!
//! `PALISADE_FLOOD_KEYS` sets how many clients the flood invents; without the variable, a million.
//! A tenth as many come through a trusted proxy.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use palisade::client_ip::{ClientIpLayer, Network, Trust};
use palisade_core::{ConnInfo, Gauge, Guard, Metrics, Prefix, Reason};
use palisade_metrics::Snapshot;
use palisade_rate_limit::{Quota, RateLimitLayer, TableLimiter};
use palisade_testkit::{Journal, alloc::CountingAllocator, clients, servers};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const GUARD: Guard = Guard::RateLimit;
const CAPACITY: u64 = 1 << 12;
const RATE: u32 = 10;
const BURST: u32 = 40;
/// How many clients the flood invents in each millisecond: the table is full within 41 ms.
const KEYS_PER_MILLI: u32 = 100;

/// Clients that send more than their quota: the milliseconds between two bursts, and the requests
/// of a burst. The first one is steady. The others wait until the flood has filled the table twice
/// and twelve times, and try whether their debt is gone.
const ABUSERS: [(u32, usize); 3] = [(7, 1), (100, 50), (500, 60)];
/// Clients that stay below their quota, in the same form: one request a second, and a page of
/// thirty files.
const HONEST: [(u32, usize); 2] = [(1000, 1), (4000, 30)];

type NoBody = Empty<Bytes>;
type Answer = Ready<Result<Response<Full<Bytes>>, Infallible>>;

/// Ten requests per second with a burst of forty, over a table of 32 KiB.
fn limit(metrics: impl Metrics) -> RateLimitLayer {
    let limiter = TableLimiter::new(Quota::per_second(RATE).burst(BURST)).unwrap();
    RateLimitLayer::with_limiter(limiter.capacity(CAPACITY as usize)).metrics(metrics)
}

/// The client of every request that a proxy on 127.0.0.1 passes on.
fn behind_a_proxy() -> ClientIpLayer {
    let proxy = Network::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    ClientIpLayer::new(Trust::networks(proxy)).unwrap()
}

/// Returns the address of client number `client`, each in a /64 of its own.
fn address(client: u32) -> Ipv6Addr {
    let network = 0x2001_0db8_u128 << 96 | u128::from(client) << 64;
    Ipv6Addr::from_bits(network | 1)
}

/// A request on a connection of the client's own.
fn direct(client: u32) -> Request<NoBody> {
    let peer = SocketAddr::from((address(client), 4711));
    let mut request = Request::new(NoBody::new());
    let info = ConnInfo::new(peer, None, Prefix::default());
    request.extensions_mut().insert(info);
    request
}

/// The same through a proxy, which adds the address to one that the client has invented.
fn proxied(client: u32) -> Request<NoBody> {
    let chain = format!("2001:db8:ffff:{:x}::1, {}", client % 4096, address(client));
    let mut request = Request::new(NoBody::new());
    request
        .headers_mut()
        .insert("x-forwarded-for", chain.parse().unwrap());
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4711));
    request.extensions_mut().insert(peer);
    request
}

/// Returns how many clients the flood invents.
fn flood_keys() -> u32 {
    let keys = std::env::var("PALISADE_FLOOD_KEYS").ok();
    keys.map_or(1_000_000, |keys| keys.parse().unwrap())
}

/// One test, because all parts measure the allocations of the whole process.
#[tokio::test]
async fn a_flood_of_keys_takes_no_memory_and_erases_no_debt() {
    let handler = |_: Request<NoBody>| -> Answer { ready(Ok(Response::default())) };
    let keys = flood_keys();
    let snapshot = Snapshot::new();
    let service = limit(snapshot.clone()).layer(service_fn(handler));
    flood(service, direct, keys, &snapshot).await;
    let snapshot = Snapshot::new();
    let limited = limit(snapshot.clone()).layer(service_fn(handler));
    let service = behind_a_proxy().layer(limited);
    flood(service, proxied, keys / 10, &snapshot).await;
    flood_twenty_thousand_keys_through_a_proxy_over_a_socket().await;
}

/// Floods `service` with so many clients of one request each, beside the abusers and the honest
/// clients.
async fn flood<S, B>(
    mut service: S,
    request: fn(u32) -> Request<NoBody>,
    keys: u32,
    snapshot: &Snapshot,
) where
    S: Service<Request<NoBody>, Response = Response<B>, Error = Infallible>,
{
    tokio::time::pause();
    let mut ask = |client: u32| {
        let future = pin!(service.call(request(client)));
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(response)) => response.status() == StatusCode::OK,
            Poll::Pending => false,
        }
    };
    let millis = keys / KEYS_PER_MILLI;
    let mut admitted = [0; ABUSERS.len()];
    let mut live = [0; 10];
    for milli in 0..millis {
        for (abuser, (interval, requests)) in ABUSERS.into_iter().enumerate() {
            if milli % interval == 0 {
                let ask = (0..requests).filter(|_| ask(1 + abuser as u32));
                admitted[abuser] += ask.count();
            }
        }
        for (honest, (interval, requests)) in HONEST.into_iter().enumerate() {
            if milli % interval == interval / 4 {
                let is_served = (0..requests).all(|_| ask(100 + honest as u32));
                assert!(is_served, "honest client {honest} after {milli} ms");
            }
        }
        for number in 0..KEYS_PER_MILLI {
            assert!(ask(1000 + milli * KEYS_PER_MILLI + number));
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        if milli % (millis / 10) == 0 {
            live[(milli / (millis / 10)) as usize] = ALLOCATOR.live();
        }
    }
    assert_eq!(live, [live[0]; 10], "the live bytes after each tenth");
    // What one client is granted in the time of the flood.
    let bound = f64::from(BURST) + f64::from(RATE) * f64::from(millis) / 1000.0;
    for (abuser, admitted) in admitted.into_iter().enumerate() {
        let part = admitted as f64 / bound;
        assert!((0.85..=1.02).contains(&part), "abuser {abuser}: {part:.3}");
    }
    // It was a flood: most keys have pushed another one out that was still in debt.
    let gauge = |gauge| snapshot.gauge(GUARD, gauge).unwrap();
    assert!(gauge(Gauge::Keys) <= CAPACITY);
    assert!(gauge(Gauge::KeysEvicted) > u64::from(keys) / 2);
    assert!(snapshot.refused(GUARD, Reason::RateExceeded) > 0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(gauge(Gauge::Keys), 0);
    tokio::time::resume();
}

/// The proxy is this test: loopback does not have that many addresses.
async fn flood_twenty_thousand_keys_through_a_proxy_over_a_socket() {
    let journal = Journal::default();
    let limited = limit(journal.clone());
    let limited = limited.layer(service_fn(async |_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
    }));
    let server = servers::hyper(behind_a_proxy().layer(limited)).await;
    let mut clients = tokio::task::JoinSet::new();
    for connection in 0..4u32 {
        let addr = server.addr;
        clients.spawn(async move {
            let from = Ipv4Addr::LOCALHOST;
            let mut http2 = clients::http2::<NoBody>(from, addr).await.unwrap();
            let mut ask = async |client: u32| {
                let request = Request::get("http://test/")
                    .header("x-forwarded-for", address(client).to_string());
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
