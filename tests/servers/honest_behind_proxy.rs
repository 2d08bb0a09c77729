//! Honest clients behind a trusted proxy, with a limit per client. Each counts by itself, whichever
//! connection of the proxy its requests come on, and no more than one client.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode, request};
use http_body_util::Empty;
use palisade::{
    Quota, Stack,
    client_ip::{Client, Network, NetworkSet, Source, Trust},
    conn::ConnGuard,
};
use palisade_core::{Gauge, Guard};
use palisade_testkit::{
    Journal,
    clients::{self, wait_until},
    guarded::{self, ServerKind, all_gone},
    on_servers,
    servers::Server,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::{sync::Semaphore, task::JoinSet};

/// The address of a trusted proxy, one of a /24, and that of a client that connects by itself.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 14, 1);
const DIRECT: Ipv4Addr = Ipv4Addr::new(127, 0, 15, 1);
/// How many requests a client may send at once, and the files of a page.
const BURST: u32 = 40;
/// How many requests may be in flight in [`waiting_server`], and how many one client may have: half
/// of three quarters.
const MAX_IN_FLIGHT: usize = 80;
const SHARE: u64 = 30;

fn trust() -> Trust {
    let proxies = Network::new(IpAddr::from(PROXY), 24).unwrap();
    Trust::networks(NetworkSet::from_iter([proxies]))
}

/// A server that admits [`BURST`] requests of each client and answers with the client's address.
async fn server(kind: ServerKind, trust: Trust) -> (ConnGuard, Server, Journal) {
    let journal = Journal::default();
    let guard = ConnGuard::builder().behind_proxy().trust(trust);
    let guard = guard.build().unwrap();
    let stack = Stack::behind_proxy()
        .rate_limit(Quota::per_hour(1).burst(BURST))
        .metrics(journal.clone());
    let address = async |client: Client| client.address().unwrap().to_string();
    let app = Router::new().route("/", get(address));
    let server = kind.serve(&guard, app.layer(stack.build().unwrap())).await;
    (guard, server, journal)
}

/// Sends a request, and returns the status and the body.
async fn send(conn: &mut guarded::Client, request: request::Builder) -> (StatusCode, Bytes) {
    let request = request.header("host", "x").body(Empty::new()).unwrap();
    let response = match conn {
        guarded::Client::Http1(conn) => {
            conn.ready().await.unwrap();
            conn.send_request(request).await
        }
        guarded::Client::Http2(conn) => conn.send_request(request).await,
    };
    let response = clients::whole(response.unwrap()).await.unwrap();
    (response.status(), response.into_body())
}

/// Sends a request with these lines of a field.
async fn ask_by(conn: &mut guarded::Client, field: &str, lines: &[&str]) -> (StatusCode, Bytes) {
    let request = Request::get("http://x/");
    let add = |request: request::Builder, line: &&str| request.header(field, *line);
    send(conn, lines.iter().fold(request, add)).await
}

/// Sends a request for `path` of a client that the proxy names.
async fn ask_path(conn: &mut guarded::Client, path: &str, client: &str) -> (StatusCode, Bytes) {
    let request = Request::get(format!("http://x{path}"));
    send(conn, request.header("x-forwarded-for", client)).await
}

/// Sends a request of a client that the proxy names, and returns the status.
async fn ask(conn: &mut guarded::Client, client: &str) -> StatusCode {
    ask_path(conn, "/", client).await.0
}

/// Sends a request of `client` on a connection of its own, by one proxy after the other: a single
/// address would run out of ports.
async fn ask_anew(kind: ServerKind, to: SocketAddr, client: &str) -> StatusCode {
    static PROXIES: AtomicU32 = AtomicU32::new(0);
    let number = PROXIES.fetch_add(1, Relaxed) % 250;
    let from = Ipv4Addr::from_bits(PROXY.to_bits() + number);
    let mut conn = kind.connect(from, to).await.unwrap();
    ask(&mut conn, client).await
}

/// Waits until so many clients are counted.
async fn assert_counted(journal: &Journal, clients: u64) {
    let keys = || journal.gauge(Guard::RateLimit, Gauge::Keys);
    wait_until("the clients are counted", || keys() == Some(clients)).await;
}

async fn a_phone_whose_address_changes_midway_goes_on(kind: ServerKind) {
    let (guard, server, journal) = server(kind, trust()).await;
    let mut conn = kind.connect(PROXY, server.addr).await.unwrap();
    // From the train's network to the carrier's, on the same connection of the proxy.
    let addresses = ["198.51.100.7", "2001:db8:40:1::7", "203.0.113.7"];
    for address in addresses {
        for _ in 0..BURST / 2 {
            assert_eq!(ask(&mut conn, address).await, StatusCode::OK);
        }
    }
    assert_counted(&journal, addresses.len() as u64).await;
    // A client that comes back has what it had left, no more: it earned no quota by leaving.
    for _ in 0..BURST / 2 {
        assert_eq!(ask(&mut conn, addresses[0]).await, StatusCode::OK);
    }
    let refused = ask(&mut conn, addresses[0]).await;
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    drop(conn);
    all_gone(&guard).await;
}

async fn privacy_addresses_in_one_64_are_one_client(kind: ServerKind) {
    let (guard, server, journal) = server(kind, trust()).await;
    let mut conn = kind.connect(PROXY, server.addr).await.unwrap();
    // A new one for every request, as an operating system may have in a day.
    for number in 0..BURST {
        let address = format!("2001:db8:0:7:{:x}:{number:x}:1:1", 0xa000 + number);
        assert_eq!(ask(&mut conn, &address).await, StatusCode::OK);
    }
    assert_counted(&journal, 1).await;
    let refused = ask(&mut conn, "2001:db8:0:7:ffff::1").await;
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    // The neighbour's network is another client.
    assert_eq!(ask(&mut conn, "2001:db8:0:8::1").await, StatusCode::OK);
    drop(conn);
    all_gone(&guard).await;
}

async fn a_page_of_forty_files_is_served_at_once(kind: ServerKind) {
    let (guard, server, journal) = server(kind, trust()).await;
    let addr = server.addr;
    // The proxy has a connection for each, and two browsers load the page.
    let mut files = JoinSet::new();
    for client in ["203.0.113.7", "203.0.113.8"] {
        for _ in 0..BURST {
            files.spawn(ask_anew(kind, addr, client));
        }
    }
    for status in files.join_all().await {
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(journal.refused(), []);
    assert_counted(&journal, 2).await;
    all_gone(&guard).await;
}

async fn the_servers_own_address_is_a_client_of_its_own(kind: ServerKind) {
    let (guard, server, journal) = server(kind, trust()).await;
    let own = server.addr.ip().to_string();
    let mut conn = kind.connect(PROXY, server.addr).await.unwrap();
    // The server calls itself through its proxy, as a service that uses its public name does.
    let (status, body) = ask_by(&mut conn, "x-forwarded-for", &[&own]).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, own.as_bytes()));
    // A client that writes the address of the server gains nothing, and takes nothing from it.
    for _ in 0..BURST {
        let chain = format!("{own}, 203.0.113.7");
        let (status, body) = ask_by(&mut conn, "x-forwarded-for", &[&chain]).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"203.0.113.7"[..]));
    }
    let refused = ask(&mut conn, "203.0.113.7").await;
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    for _ in 1..BURST {
        assert_eq!(ask(&mut conn, &own).await, StatusCode::OK);
    }
    // Nor does a direct client that writes it.
    let mut direct = kind.connect(DIRECT, server.addr).await.unwrap();
    let (status, body) = ask_by(&mut direct, "x-forwarded-for", &[&own]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, DIRECT.to_string());
    assert_counted(&journal, 3).await;
    drop((conn, direct));
    all_gone(&guard).await;
}

async fn a_field_on_two_lines_is_one_list(kind: ServerKind) {
    for (source, field, lines) in [
        (
            Source::XForwardedFor,
            "x-forwarded-for",
            ["6.6.6.6", "203.0.113.7"],
        ),
        (
            Source::Forwarded,
            "forwarded",
            ["for=6.6.6.6", "for=203.0.113.7;proto=https"],
        ),
    ] {
        let (guard, server, _) = server(kind, trust().source(source)).await;
        let mut conn = kind.connect(PROXY, server.addr).await.unwrap();
        let (status, body) = ask_by(&mut conn, field, &lines).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"203.0.113.7"[..]));
        drop(conn);
        all_gone(&guard).await;
    }
}

/// A server with a share of the requests in flight for each client. The handlers of `/` wait.
async fn waiting_server(kind: ServerKind) -> (ConnGuard, Server, Arc<Semaphore>) {
    let builder = ConnGuard::builder().behind_proxy().trust(trust());
    // The proxy opens a connection for each request.
    let builder = builder.max_connections(2_000).max_in_flight(MAX_IN_FLIGHT);
    let (guard, _) = guarded::build_guard(builder);
    let release = Arc::new(Semaphore::new(0));
    let wait = release.clone();
    let handler = async move || drop(wait.acquire().await);
    let app = Router::new()
        .route("/", get(handler))
        .route("/at-once", get("served"));
    let server = kind.serve(&guard, app).await;
    (guard, server, release)
}

async fn a_thousand_requests_of_one_client_leave_room_for_the_others(kind: ServerKind) {
    let (guard, server, release) = waiting_server(kind).await;
    let addr = server.addr;
    // Each is the only request of its connection, as a proxy over HTTP/1 sends them.
    let mut greedy = JoinSet::new();
    for _ in 0..1_000 {
        greedy.spawn(ask_anew(kind, addr, "203.0.113.7"));
    }
    for _ in 0..1_000 - SHARE {
        let status = greedy.join_next().await.unwrap().unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(guard.snapshot().in_flight, SHARE);
    // It asks again as soon as it is refused.
    let mut conn = kind.connect(PROXY, addr).await.unwrap();
    let asks_again = tokio::spawn(async move {
        let mut refused = 0;
        while ask(&mut conn, "203.0.113.7").await == StatusCode::SERVICE_UNAVAILABLE {
            refused += 1;
        }
        refused
    });
    // A client with one request at a time has each of them served.
    let mut honest = kind.connect(PROXY, addr).await.unwrap();
    for _ in 0..100 {
        let (status, body) = ask_path(&mut honest, "/at-once", "203.0.113.8").await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"served"[..]));
    }
    release.add_permits(10_000);
    assert!(asks_again.await.unwrap() > 0);
    for status in greedy.join_all().await {
        assert_eq!(status, StatusCode::OK);
    }
    drop(honest);
    all_gone(&guard).await;
}

on_servers!([axum, serve, tonic]
    a_phone_whose_address_changes_midway_goes_on,
    privacy_addresses_in_one_64_are_one_client,
    a_page_of_forty_files_is_served_at_once,
    the_servers_own_address_is_a_client_of_its_own,
    a_field_on_two_lines_is_one_list,
    a_thousand_requests_of_one_client_leave_room_for_the_others,
);
