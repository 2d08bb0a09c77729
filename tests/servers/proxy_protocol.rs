//! Connections of a load balancer that names its clients in a header of the PROXY protocol.

use axum::{Router, extract::ConnectInfo, routing::get};
use http::{Request, StatusCode};
use palisade::{
    Ban, Quota, Stack,
    conn::{ConnGuard, ConnGuardBuilder},
    types::Networks,
};
use palisade_core::{Client, ConnInfo, Guard, Prefix, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{SECOND, ServerKind, all_gone, assert_served},
    on_servers,
    servers::Server,
};
use std::net::{Ipv4Addr, SocketAddr};
use tonic::transport::server::TcpConnectInfo;

const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);
const DIRECT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);
const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
/// The health check of `HAProxy`.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x07\x03\x00\x04\xa9\xb8\x7e\x8f";

on_servers!(
    [axum, serve, tonic]
    every_layer_and_handler_sees_the_client_of_the_header,
    a_balancer_that_sends_nothing_keeps_no_client_waiting,
    a_rate_limit_counts_the_clients_behind_the_balancer,
    a_banned_client_gets_no_connection_through_the_balancer,
);

/// A guard that reads headers of [`BALANCER`] and of no other peer.
fn guard(builder: ConnGuardBuilder) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let balancers = Networks::parse("127.0.0.7/32").unwrap();
    let builder = builder.proxy_protocol(balancers).metrics(journal.clone());
    (builder.build().unwrap(), journal)
}

/// A server whose answer has all addresses that a handler can find.
async fn server(kind: ServerKind, guard: &ConnGuard) -> Server {
    let addresses = async |request: Request<axum::body::Body>| {
        let extensions = request.extensions();
        let conn = ConnInfo::from_extensions(extensions).unwrap();
        let of_axum = extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|info| info.0);
        let of_tonic = extensions
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        for peer in [of_axum, of_tonic].into_iter().flatten() {
            assert_eq!(peer, conn.peer());
        }
        assert!(of_axum.or(of_tonic).is_some());
        format!("{} to {}", conn.peer(), conn.local().unwrap())
    };
    kind.serve(guard, Router::new().route("/", get(addresses)))
        .await
}

/// Connects from the balancer, which names this client.
async fn connect_as(client: &str, to: SocketAddr) -> RawClient {
    let mut balancer = RawClient::connect_from(BALANCER, to).await.unwrap();
    let header = format!("PROXY TCP4 {client} 198.51.100.1 56324 443\r\n");
    balancer.send(header).await.unwrap();
    balancer
}

/// Sends a request. Returns the status and the body.
async fn ask(client: &mut RawClient) -> (StatusCode, String) {
    client.send(GET).await.unwrap();
    let head = client.head().await.unwrap();
    let length = head.header("content-length").unwrap().parse().unwrap();
    let body = client.body(length).await.unwrap();
    (head.status, String::from_utf8(body).unwrap())
}

async fn every_layer_and_handler_sees_the_client_of_the_header(kind: ServerKind) {
    let (guard, journal) = guard(ConnGuard::builder());
    let server = server(kind, &guard).await;
    let mut proxied = connect_as("203.0.113.7", server.addr).await;
    for _ in 0..3 {
        let expected = "203.0.113.7:56324 to 198.51.100.1:443";
        assert_eq!(ask(&mut proxied).await, (StatusCode::OK, expected.into()));
    }
    // What a direct client writes is its request.
    let mut direct = RawClient::connect_from(DIRECT, server.addr).await.unwrap();
    let (status, addresses) = ask(&mut direct).await;
    assert!(
        status == 200 && addresses.starts_with("127.0.0.8:"),
        "{addresses}"
    );
    let mut liar = RawClient::connect_from(DIRECT, server.addr).await.unwrap();
    liar.send("PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n")
        .await
        .unwrap();
    liar.send(GET).await.unwrap();
    assert!(!String::from_utf8_lossy(&liar.rest().await).contains("203.0.113.7"));
    // The balancer's own request has its own address.
    let mut check = RawClient::connect_from(BALANCER, server.addr)
        .await
        .unwrap();
    check.send(LOCAL).await.unwrap();
    let (status, addresses) = ask(&mut check).await;
    assert!(
        status == 200 && addresses.starts_with("127.0.0.7:"),
        "{addresses}"
    );
    assert_eq!(journal.disconnected(), []);
    // Without a header there is nothing to serve.
    let mut bare = RawClient::connect_from(BALANCER, server.addr)
        .await
        .unwrap();
    bare.send(GET).await.unwrap();
    assert_eq!(bare.rest().await, b"");
    let bad = journal.disconnected();
    assert_eq!((bad.len(), bad[0].0.reason), (1, Reason::ProxyHeader));
    drop((proxied, direct, liar, check, bare));
    all_gone(&guard).await;
    assert_eq!(journal.closed().len(), journal.opened());
}

async fn a_balancer_that_sends_nothing_keeps_no_client_waiting(kind: ServerKind) {
    let (guard, journal) = guard(ConnGuard::builder().first_request_timeout(2 * SECOND));
    let server = server(kind, &guard).await;
    let mut silent = Vec::new();
    for number in 0..50 {
        let mut client = RawClient::connect_from(BALANCER, server.addr)
            .await
            .unwrap();
        client.send(&"PROXY TCP4 "[..number % 11]).await.unwrap();
        silent.push(client);
    }
    let mut proxied = connect_as("203.0.113.7", server.addr).await;
    assert_eq!(ask(&mut proxied).await.0, 200);
    let mut direct = RawClient::connect_from(DIRECT, server.addr).await.unwrap();
    assert_eq!(ask(&mut direct).await.0, 200);
    wait_until("the silent ones are closed", || {
        journal.disconnected().len() == 50
    })
    .await;
    let disconnected = journal.disconnected();
    assert!(
        disconnected
            .iter()
            .all(|(v, _)| v.reason == Reason::FirstRequest)
    );
    assert_eq!(ask(&mut proxied).await.0, 200);
    drop((silent, proxied, direct));
    all_gone(&guard).await;
}

async fn a_rate_limit_counts_the_clients_behind_the_balancer(kind: ServerKind) {
    let (guard, journal) = guard(ConnGuard::builder());
    let stack = Stack::edge().rate_limit(Quota::per_hour(1).burst(5));
    let stack = stack.metrics(journal.clone()).build().unwrap();
    let app = Router::new()
        .route("/", get(async || "served"))
        .layer(stack);
    let server = kind.serve(&guard, app).await;
    for client in ["203.0.113.7", "203.0.113.8"] {
        let mut served = 0;
        for _ in 0..10 {
            served += u32::from(ask(&mut connect_as(client, server.addr).await).await.0 == 200);
        }
        assert_eq!(served, 5);
    }
    assert_eq!(
        journal.refused(),
        [(Guard::RateLimit, Reason::RateExceeded); 10]
    );
    let mut direct = RawClient::connect_from(DIRECT, server.addr).await.unwrap();
    assert_served(&mut direct).await;
    drop(direct);
    all_gone(&guard).await;
}

async fn a_banned_client_gets_no_connection_through_the_balancer(kind: ServerKind) {
    let ban = Ban::builder().build().unwrap();
    let (guard, journal) = guard(ConnGuard::builder().gate(ban.clone()));
    let server = server(kind, &guard).await;
    let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    assert!(ban.ban(&client, 60 * SECOND));
    let mut banned = connect_as("203.0.113.7", server.addr).await;
    let _ = banned.send(GET).await; // It may be reset already.
    assert_eq!(banned.rest().await, b"");
    // Neither the balancer nor its other clients are.
    let mut neighbour = connect_as("203.0.113.8", server.addr).await;
    assert_eq!(ask(&mut neighbour).await.0, StatusCode::OK);
    let reasons = journal.disconnected();
    assert_eq!((reasons.len(), reasons[0].0.reason), (1, Reason::Banned));
    ban.unban(&client);
    let mut again = connect_as("203.0.113.7", server.addr).await;
    assert_eq!(ask(&mut again).await.0, StatusCode::OK);
    drop((banned, neighbour, again));
    all_gone(&guard).await;
}
