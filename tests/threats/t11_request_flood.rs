//! T11: a request flood from one client, from all addresses of a /64, and from all networks of a
//! /48. The flood gets its quota and no more, over any number of routes, connections and protocols.
//! An honest neighbour is served throughout.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use palisade_core::{ConnInfo, Gauge, Guard, Mode, Prefix, Reason};
use palisade_rate_limit::{ClientIp, Missing, Quota, RateLimitLayer, TableLimiter};
use palisade_testkit::{
    Journal, clients,
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers,
};
use std::{
    convert::Infallible,
    future::Ready,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::ServiceFn};

const GUARD: Guard = Guard::RateLimit;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HONEST_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const BURST: usize = 20;

/// One request per minute with a burst of twenty. No test here runs long enough to earn one back.
fn limit(journal: &Journal) -> RateLimitLayer {
    let quota = Quota::per_minute(1).burst(BURST as u32);
    let limiter = TableLimiter::new(quota).unwrap().capacity(1 << 10);
    RateLimitLayer::with_limiter(limiter).metrics(journal.clone())
}

fn router() -> Router {
    Router::new()
        .route("/a", get(|| async { "a" }))
        .route("/b", get(|| async { "b" }))
        .route("/c", get(|| async { "c" }))
}

/// Requests `path` on a connection of its own and returns the status.
async fn ask(from: Ipv4Addr, to: SocketAddr, path: &str) -> StatusCode {
    let response = clients::get(from, to, path).await.unwrap();
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        let wait: u64 = response.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    response.status()
}

/// Sends 200 requests for all paths, some over fresh connections and most over ten that are kept.
/// Returns how many were served. Every other one must have been answered 429.
async fn flood(from: Ipv4Addr, to: SocketAddr, paths: [&'static str; 3]) -> usize {
    let mut clients = JoinSet::new();
    for client in 0..10 {
        clients.spawn(async move {
            let mut served = Vec::new();
            let mut kept = clients::http1::<Empty<Bytes>>(from, to).await.unwrap();
            for number in 0..20 {
                let path = paths[(client + number) % 3];
                served.push(if number % 5 == 0 {
                    ask(from, to, path).await
                } else {
                    let request = Request::get(path).header("host", "test");
                    kept.ready().await.unwrap();
                    let response = kept.send_request(request.body(Empty::new()).unwrap()).await;
                    clients::whole(response.unwrap()).await.unwrap().status()
                });
            }
            served
        });
    }
    let statuses = clients.join_all().await.concat();
    assert_eq!(statuses.len(), 200);
    let served = statuses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    let refused = statuses
        .iter()
        .filter(|status| **status == StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(served + refused.count(), 200, "{statuses:?}");
    served
}

/// Asserts that the flood gets its burst, and that meanwhile another client gets as many requests
/// as its own burst has.
async fn assert_flood_gets_its_burst(to: SocketAddr, journal: &Journal, paths: [&'static str; 3]) {
    let honest = tokio::spawn(async move {
        for number in 0..BURST {
            assert_eq!(
                ask(HONEST_CLIENT, to, paths[number % 3]).await,
                StatusCode::OK
            );
        }
    });
    assert_eq!(flood(ATTACKER, to, paths).await, BURST);
    honest.await.unwrap();
    assert_eq!(
        journal.refused(),
        vec![(GUARD, Reason::RateExceeded); 200 - BURST]
    );
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(2));
}

#[tokio::test]
async fn on_axum_routes_and_connections_share_the_limit() {
    let journal = Journal::default();
    let server = servers::axum(router().layer(limit(&journal))).await;
    assert_flood_gets_its_burst(server.addr, &journal, ["/a", "/b", "/c"]).await;
}

#[tokio::test]
async fn a_layer_around_the_axum_router_shares_the_limit_too() {
    let journal = Journal::default();
    let guarded = ServiceBuilder::new()
        .layer(limit(&journal))
        .service(router());
    let server = servers::axum(Router::new().fallback_service(guarded)).await;
    assert_flood_gets_its_burst(server.addr, &journal, ["/a", "/b", "/c"]).await;
}

#[tokio::test]
async fn on_axum_without_connect_info_a_missing_peer_is_handled_as_configured() {
    let journal = Journal::default();
    let refuse = ClientIp::peer().missing(Missing::Refuse);
    let server = servers::axum_bare(router().layer(limit(&journal).key(refuse))).await;
    assert_eq!(
        ask(HONEST_CLIENT, server.addr, "/a").await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(journal.refused(), [(GUARD, Reason::PeerMissing)]);

    // By default all unknown peers are one client, also over connections and routes.
    let journal = Journal::default();
    let server = servers::axum_bare(router().layer(limit(&journal))).await;
    for number in 0..BURST {
        let from = [ATTACKER, HONEST_CLIENT][number % 2];
        let path = ["/a", "/b", "/c"][number % 3];
        assert_eq!(ask(from, server.addr, path).await, StatusCode::OK);
    }
    for path in ["/a", "/b", "/c"] {
        assert_eq!(
            ask(HONEST_CLIENT, server.addr, path).await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
}

#[tokio::test]
async fn on_hyper_http1_and_http2_share_the_limit() {
    let journal = Journal::default();
    let handler = service_fn(async |_| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
    });
    let server = servers::hyper(limit(&journal).layer(handler)).await;
    assert_flood_gets_its_burst(server.addr, &journal, ["/a", "/b", "/c"]).await;

    // Quota used up over HTTP/1 is used up over HTTP/2, and the stream of a refusal ends normally.
    let mut attacker = clients::http2::<Empty<Bytes>>(ATTACKER, server.addr)
        .await
        .unwrap();
    let newcomer = Ipv4Addr::new(127, 0, 0, 4);
    let mut newcomer = clients::http2::<Empty<Bytes>>(newcomer, server.addr)
        .await
        .unwrap();
    let request = || Request::get("http://test/").body(Empty::new()).unwrap();
    for _ in 0..BURST {
        let refused = clients::whole(attacker.send_request(request()).await.unwrap()).await;
        let refused = refused.unwrap();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.body(), "too many requests");
        let served = newcomer.send_request(request()).await.unwrap();
        assert_eq!(served.status(), StatusCode::OK);
    }
    assert_eq!(
        newcomer.send_request(request()).await.unwrap().status(),
        429
    );
}

/// Starts a server that takes the peer address from the header `test-peer`, because loopback has
/// only one IPv6 address.
async fn serve_with_peer_from_header<L, S, B>(layers: L) -> servers::Server
where
    L: Layer<Handler, Service = S>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<palisade_core::BoxError>,
{
    let handler: Handler = service_fn(|_| {
        std::future::ready(Ok(Response::new(Full::new(Bytes::from_static(b"served")))))
    });
    let service = layers
        .layer(handler)
        .map_request(|mut request: Request<_>| {
            let peer: &HeaderValue = &request.headers()["test-peer"];
            let peer = SocketAddr::new(peer.to_str().unwrap().parse().unwrap(), 4711);
            let info = ConnInfo::new(peer, None, Prefix::default());
            request.extensions_mut().insert(info);
            request
        });
    servers::hyper(service).await
}

type Handler = ServiceFn<fn(Request<Incoming>) -> Ready<Result<Response<Full<Bytes>>, Infallible>>>;

#[tokio::test]
async fn all_addresses_of_a_64_are_one_client() {
    let journal = Journal::default();
    let server = serve_with_peer_from_header(limit(&journal)).await;
    let mut client = clients::http2::<Empty<Bytes>>(ATTACKER, server.addr)
        .await
        .unwrap();
    let mut ask = async |peer: String| {
        let request = Request::get("http://test/").header("test-peer", peer);
        client
            .send_request(request.body(Empty::new()).unwrap())
            .await
            .unwrap()
            .status()
    };
    let mut served = 0;
    for host in 0..500u32 {
        served += usize::from(ask(format!("2001:db8::{host:x}:{host:x}")).await == StatusCode::OK);
        if host % 50 == 0 {
            assert_eq!(ask("2001:db8:0:1::1".to_owned()).await, StatusCode::OK);
        }
    }
    assert_eq!(served, BURST);
    assert_eq!(journal.gauge(GUARD, Gauge::Keys), Some(2));
}

/// Three times the quota of a client for a whole /48.
fn limit_per_48(journal: &Journal) -> RateLimitLayer {
    limit(journal).wider(Prefix::new(32, 48).unwrap(), 3)
}

#[tokio::test]
async fn a_client_with_a_48_gets_no_fresh_quota_for_every_64() {
    let journal = Journal::default();
    let layer = limit_per_48(&journal).wider_mode(Mode::Enforce);
    let server = serve_with_peer_from_header(layer).await;
    let mut client = clients::http2::<Empty<Bytes>>(ATTACKER, server.addr)
        .await
        .unwrap();
    let mut ask = async |peer: String| {
        let request = Request::get("http://test/").header("test-peer", peer);
        client
            .send_request(request.body(Empty::new()).unwrap())
            .await
            .unwrap()
            .status()
    };
    // One noisy /64 takes its own burst from the /48, however long it continues.
    for request in 0..100 {
        let status = ask("2001:db8:a:1::1".to_owned()).await;
        assert_eq!(status == StatusCode::OK, request < BURST);
    }
    // Other networks of the /48 are served until they have used up its quota.
    let mut served = 0;
    for network in 0..300u32 {
        let status = ask(format!("2001:db8:a:{:x}::1", network + 2)).await;
        served += usize::from(status == StatusCode::OK);
        if network % 30 == 0 {
            assert_eq!(ask("2001:db8:b:1::1".to_owned()).await, StatusCode::OK);
            assert_eq!(ask("192.0.2.1".to_owned()).await, StatusCode::OK);
        }
    }
    assert_eq!(served, 2 * BURST);
    let mut refused = vec![(GUARD, Reason::RateExceeded); 100 - BURST];
    refused.resize(400 - 3 * BURST, (GUARD, Reason::NetworkRateExceeded));
    assert_eq!(journal.refused(), refused);
}

#[tokio::test]
async fn until_it_is_enforced_a_wide_limit_records_refusals_and_admits_all_requests() {
    let journal = Journal::default();
    let server = serve_with_peer_from_header(limit_per_48(&journal)).await;
    let mut client = clients::http2::<Empty<Bytes>>(ATTACKER, server.addr)
        .await
        .unwrap();
    for network in 0..100u32 {
        let request = Request::get("http://test/");
        let request = request.header("test-peer", format!("2001:db8:a:{network:x}::1"));
        let answer = client
            .send_request(request.body(Empty::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let refusals = journal.refusals();
    assert_eq!(refusals.len(), 100 - 3 * BURST);
    let modes = refusals
        .into_iter()
        .map(|(violation, mode)| (violation.reason, mode));
    assert!(
        modes
            .into_iter()
            .all(|it| it == (Reason::NetworkRateExceeded, Mode::Shadow))
    );
}

#[tokio::test]
async fn on_tonic_the_client_gets_resource_exhausted_with_message_pushback_and_retry_info() {
    let journal = Journal::default();
    let service = EchoServer::new(Lengths);
    let router = tonic::transport::Server::builder()
        .layer(limit(&journal))
        .add_service(service);
    let server = servers::tonic(router).await;
    let client = async |from: Ipv4Addr| {
        let endpoint = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
        EchoClient::new(
            endpoint
                .local_address(Some(from.into()))
                .connect()
                .await
                .unwrap(),
        )
    };
    let piece = || Piece {
        data: Bytes::from_static(b"four"),
    };
    let (mut one, mut other) = (client(ATTACKER).await, client(ATTACKER).await);
    let mut honest = client(HONEST_CLIENT).await;
    for _ in 0..BURST / 2 {
        assert_eq!(one.unary(piece()).await.unwrap().into_inner().bytes, 4);
        assert_eq!(other.unary(piece()).await.unwrap().into_inner().bytes, 4);
    }
    for _ in 0..BURST {
        for attacker in [&mut one, &mut other] {
            let status = attacker.unary(piece()).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            assert_eq!(status.message(), "too many requests");
            let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
            let wait = Duration::from_millis(pushback.to_str().unwrap().parse().unwrap());
            assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&wait));
            // tonic has decoded the base64 of `grpc-status-details-bin`.
            let name = b"type.googleapis.com/google.rpc.RetryInfo";
            let mut parts = status.details().windows(name.len());
            assert!(parts.any(|part| part == name), "{status:?}");
        }
        assert_eq!(honest.unary(piece()).await.unwrap().into_inner().bytes, 4);
    }
    // A stream of messages is refused in the same way, before any message is read.
    let pieces = tokio_stream::iter((0..100).map(|_| Piece {
        data: Bytes::from_static(b"x"),
    }));
    let status = one.collect(pieces).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
}
