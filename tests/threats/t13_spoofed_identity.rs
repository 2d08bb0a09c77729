//! T13: invented identities. A client that writes every field of a proxy that is known, with a new
//! value in each request, is one client: by itself, and through a trusted proxy that appends. Its
//! neighbour behind the same proxy keeps its own quota, and its place among the requests in flight.

use axum::{
    Router,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{Empty, Full};
use palisade::{
    Budget, Quota, Stack,
    client_ip::{Client, Network, NetworkSet, Trust},
    conn::{ConnGuard, ConnGuardBuilder},
};
use palisade_core::{ClientKey, Gauge, Guard, Prefix, Reason};
use palisade_testkit::{
    Journal,
    clients::{self, wait_until},
    guarded::{self, ServerKind, all_gone},
    on_servers,
    servers::Server,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{sync::Semaphore, task::JoinSet};

/// A client that connects by itself.
const DIRECT: Ipv4Addr = Ipv4Addr::new(127, 0, 13, 2);
/// The address of the trusted proxy.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 13, 1);
const BURST: usize = 20;
/// How many identities are invented.
const VALUES: u32 = 10_000;
/// How many more through the proxy.
const PROXIED_VALUES: u32 = 1_000;
/// The fields in which a client could write an address, beside the one that is read.
const OTHER_FIELDS: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "fly-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
];

fn trust() -> Trust {
    let proxy = Network::new(IpAddr::from(PROXY), 32).unwrap();
    Trust::networks(NetworkSet::from_iter([proxy]))
}

/// A server that admits [`BURST`] requests of each client and answers with the client's address.
async fn server(kind: ServerKind) -> (ConnGuard, Server, Journal) {
    let journal = Journal::default();
    let guard = ConnGuard::builder().trust(trust()).max_requests(None);
    let guard = guard.metrics(journal.clone()).build().unwrap();
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1).burst(BURST as u32))
        .metrics(journal.clone());
    let address = async |client: Client| client.address().unwrap().to_string();
    let app = Router::new().route("/", get(address));
    let server = kind.serve(&guard, app.layer(stack.build().unwrap())).await;
    (guard, server, journal)
}

/// Sends a request with these fields. Returns the status, and the body if it is 200.
async fn ask(
    client: &mut guarded::Client,
    fields: impl IntoIterator<Item = (&'static str, String)>,
) -> (StatusCode, Bytes) {
    let mut request = Request::get("http://x/").header("host", "x");
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).unwrap();
    let response = match client {
        guarded::Client::Http1(client) => {
            client.ready().await.unwrap();
            client.send_request(request).await
        }
        guarded::Client::Http2(client) => client.send_request(request).await,
    };
    let response = clients::whole(response.unwrap()).await.unwrap();
    (response.status(), response.into_body())
}

/// Sends a request for each of so many addresses, in every field. `appended` is what a proxy adds
/// to the field that is read. Returns how many were served, each as the same client.
async fn invent(
    client: &mut guarded::Client,
    values: u32,
    appended: Option<&str>,
) -> (usize, Bytes) {
    let (mut served, mut seen) = (0, None);
    for value in 1..=values {
        let invented = Ipv4Addr::from(0x0600_0000 + value);
        let chain = match appended {
            Some(appended) => format!("{invented}, {appended}"),
            None => invented.to_string(),
        };
        let other = OTHER_FIELDS.map(|name| match name {
            "forwarded" => (name, format!("for={invented}")),
            _ => (name, invented.to_string()),
        });
        let (status, body) = ask(
            client,
            other.into_iter().chain([("x-forwarded-for", chain)]),
        )
        .await;
        if status == StatusCode::OK {
            served += 1;
            assert_eq!(*seen.get_or_insert(body.clone()), body);
        } else {
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        }
    }
    (served, seen.unwrap())
}

async fn ten_thousand_invented_identities_are_one_client(kind: ServerKind) {
    let (guard, server, journal) = server(kind).await;
    let keys = || journal.gauge(Guard::RateLimit, Gauge::Keys);
    let mut direct = kind.connect(DIRECT, server.addr).await.unwrap();
    let (served, seen) = invent(&mut direct, VALUES, None).await;
    assert_eq!((served, &seen[..]), (BURST, DIRECT.to_string().as_bytes()));
    wait_until("one key is counted", || keys() == Some(1)).await;
    // The same client as before, by its address, through a proxy that appends.
    let mut proxied = kind.connect(PROXY, server.addr).await.unwrap();
    let appended = DIRECT.to_string();
    let (status, _) = ask(&mut proxied, [("x-forwarded-for", appended)]).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let (served, seen) = invent(&mut proxied, PROXIED_VALUES, Some("203.0.113.7")).await;
    assert_eq!((served, &seen[..]), (BURST, &b"203.0.113.7"[..]));
    wait_until("two keys are counted", || keys() == Some(2)).await;
    // A request that names no client is the proxy's own, and is reported.
    let level = |gauge| journal.gauge(Guard::Connection, gauge);
    assert_eq!(level(Gauge::ClientsUnnamed), Some(0));
    assert_eq!(ask(&mut proxied, []).await.0, StatusCode::OK);
    assert_eq!(level(Gauge::ClientsUnnamed), Some(1));
    assert_eq!(
        (
            level(Gauge::TrustedNetworks),
            level(Gauge::ProxyProtocolNetworks)
        ),
        (Some(1), None)
    );
    // Its neighbour, on the same connection.
    for _ in 0..BURST {
        let (status, _) = ask(&mut proxied, [("x-forwarded-for", "203.0.113.8".into())]).await;
        assert_eq!(status, StatusCode::OK);
    }
    let refused = journal.refused();
    assert_eq!(
        refused.len(),
        (VALUES + PROXIED_VALUES) as usize - 2 * BURST + 1
    );
    let by_rate = (Guard::RateLimit, Reason::RateExceeded);
    assert!(refused.iter().all(|one| *one == by_rate));
    // Each refusal names the client, if that is not the peer.
    let clients = journal.clients();
    let count = |client: Option<IpAddr>| clients.iter().filter(|one| **one == client).count();
    assert_eq!(count(None), VALUES as usize - BURST);
    assert_eq!(count(Some(DIRECT.into())), 1);
    assert_eq!(
        count(Some([203, 0, 113, 7].into())),
        PROXIED_VALUES as usize - BURST
    );
    drop((direct, proxied));
    all_gone(&guard).await;
}

/// A guard for so many requests in flight, and a server whose handlers wait.
async fn waiting_server(
    kind: ServerKind,
    builder: ConnGuardBuilder,
) -> (ConnGuard, Server, Arc<Semaphore>) {
    let guard = builder.trust(trust()).max_in_flight(40).build().unwrap();
    let release = Arc::new(Semaphore::new(0));
    let wait = release.clone();
    let handler = async move || drop(wait.acquire().await);
    let server = kind
        .serve(&guard, Router::new().route("/", get(handler)))
        .await;
    (guard, server, release)
}

async fn one_client_of_a_proxy_cannot_take_all_requests_in_flight(kind: ServerKind) {
    for builder in [ConnGuard::builder(), ConnGuard::builder().behind_proxy()] {
        let journal = Journal::default();
        let (guard, server, release) = waiting_server(kind, builder.metrics(journal.clone())).await;
        let addr = server.addr;
        // Each request of the client is on a connection of the proxy of its own.
        let mut greedy = JoinSet::new();
        for _ in 0..100 {
            greedy.spawn(async move {
                let mut client = kind.connect(PROXY, addr).await.unwrap();
                ask(&mut client, [("x-forwarded-for", "203.0.113.7".into())])
                    .await
                    .0
            });
        }
        let mut refused = 0;
        while guard.snapshot().in_flight + refused < 100 {
            let status = greedy.join_next().await.unwrap().unwrap();
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            refused += 1;
        }
        // What a client leaves of three quarters is as much as it has: 15 of 40.
        assert_eq!(guard.snapshot().in_flight, 15);
        // Others have their requests, one at a time, up to the limit of all.
        let mut honest = JoinSet::new();
        for client in 1..=25 {
            honest.spawn(async move {
                let mut conn = kind.connect(PROXY, addr).await.unwrap();
                ask(
                    &mut conn,
                    [("x-forwarded-for", format!("198.51.100.{client}"))],
                )
                .await
                .0
            });
        }
        wait_until("all others are served", || guard.snapshot().in_flight == 40).await;
        let now = guard.snapshot();
        assert!(now.clients[0].is_proxy && now.most_in_flight.len() == 10);
        let most = now.most_in_flight[0];
        let client = ClientKey::address([203, 0, 113, 7].into(), Prefix::default());
        assert_eq!(
            (most.key, most.in_flight, most.is_forwarded),
            (client, 15, true)
        );
        let refused_clients = journal.clients();
        assert!(
            refused_clients
                .iter()
                .all(|one| *one == Some([203, 0, 113, 7].into()))
        );
        assert_eq!(refused_clients.len() as u64, refused);
        release.add_permits(1000);
        for status in honest.join_all().await {
            assert_eq!(status, StatusCode::OK);
        }
        for status in greedy.join_all().await {
            assert_eq!(status, StatusCode::OK);
        }
        all_gone(&guard).await;
    }
}

/// Sends a body of so many bytes for `client` through the proxy on a new connection, and returns
/// the status.
async fn upload(to: SocketAddr, client: &str, bytes: usize) -> StatusCode {
    let request = Request::post("http://x/")
        .header("host", "x")
        .header("x-forwarded-for", client);
    let request = request.body(Full::new(Bytes::from(vec![b'x'; bytes])));
    let request = request.unwrap();
    let mut conn = clients::http1(PROXY, to).await.unwrap();
    conn.send_request(request).await.unwrap().status()
}

#[tokio::test]
async fn one_client_of_a_proxy_has_a_share_of_the_byte_budget() {
    let kind = ServerKind::Serve;
    let budget = Budget::new(256 << 10).unwrap();
    let journal = Journal::default();
    let guard = ConnGuard::builder().trust(trust()).byte_budget(budget);
    let guard = guard.metrics(journal.clone()).build().unwrap();
    let length = async |body: Bytes| body.len().to_string();
    let server = kind
        .serve(&guard, Router::new().route("/", post(length)))
        .await;
    // Charged twice, it is more than what a client leaves of three quarters.
    for client in ["203.0.113.7", "203.0.113.8"] {
        let status = upload(server.addr, client, 100 << 10).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(upload(server.addr, client, 40 << 10).await, StatusCode::OK);
    }
    let named = [7, 8].map(|last| Some(IpAddr::from([203, 0, 113, last])));
    assert_eq!(journal.clients(), named);
    all_gone(&guard).await;
}

on_servers!([axum, serve, tonic]
    ten_thousand_invented_identities_are_one_client,
    one_client_of_a_proxy_cannot_take_all_requests_in_flight,
);
