//! T11 on three servers that count together: a flood to all of them gets one quota and what nodes
//! may admit before they have reported it, from one address or from many. An honest neighbour is
//! served throughout.
//!
//! A request that waits in vain, on a machine that is busy, is refused with 503 here. Otherwise it
//! would be admitted beyond the bound.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use palisade::fleet::{Fleet, FleetBuilder, MemoryStore, OnFailure, QuotaStore};
use palisade_core::{Gauge, Guard};
use palisade_metrics::Snapshot;
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{clients, servers};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const NODES: u32 = 3;
const SECRET: &str = "a secret of the tests";
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HONEST_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Three servers of one fleet.
struct Nodes {
    servers: Vec<servers::Server>,
    metrics: Snapshot,
    burst: u32,
    started: Instant,
}

/// The responses to the requests of one client.
#[derive(Debug, Default)]
struct Tally {
    served: u32,
    refused: u32,
    unavailable: u32,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.served += other.served;
        self.refused += other.refused;
        self.unavailable += other.unavailable;
    }
}

impl Nodes {
    /// Starts servers with this burst, and one request a minute, on a store of the tests.
    async fn start<S: QuotaStore>(burst: u32, fleet: impl Fn() -> FleetBuilder<S>) -> Self {
        let (mut servers, metrics) = (Vec::new(), Snapshot::new());
        for _ in 0..NODES {
            let fleet = fleet().nodes(NODES).secret(SECRET).metrics(metrics.clone());
            let fleet = fleet.start().unwrap().on_failure(OnFailure::Deny);
            let policy = Quota::per_minute(1).burst(burst).fleet(&fleet);
            let limit = RateLimitLayer::new(policy).unwrap();
            let app = Router::new().route("/", get("served")).layer(limit);
            servers.push(servers::axum(app).await);
        }
        Self {
            servers,
            metrics,
            burst,
            started: Instant::now(),
        }
    }

    fn addrs(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.addr).collect()
    }

    /// What a node may admit of one client before it has reported it.
    fn allowance(&self) -> u32 {
        (self.burst / (4 * NODES)).max(1)
    }

    /// The fewest requests that a client gets that has used up its burst. What was granted to a
    /// node that got no request for it in half a second is lost.
    fn least(&self) -> u32 {
        self.burst - self.allowance()
    }

    /// Asserts that one client has used up its burst, and got no more than is allowed by now.
    fn assert_bound(&self, tally: &Tally) {
        let earned = u32::try_from(self.started.elapsed().as_secs() / 60).unwrap() + 1;
        // What is reported by a call that fails may be lost.
        let failures = u32::try_from(self.gauge(Gauge::FleetFailures)).unwrap();
        let most = self.burst + earned + (2 * NODES + failures) * self.allowance();
        let served = self.least()..=most;
        assert!(served.contains(&tally.served), "{tally:?}, at most {most}");
        assert!(tally.refused > 0, "{tally:?}");
    }

    fn gauge(&self, gauge: Gauge) -> u64 {
        self.metrics.gauge(Guard::RateLimit, gauge).unwrap()
    }
}

/// Sends requests to these servers in turn, one after another on kept connections.
async fn send(from: Ipv4Addr, to: Vec<SocketAddr>, requests: usize, pause: Duration) -> Tally {
    let mut connections = Vec::new();
    for addr in to {
        connections.push(clients::http1::<Empty<Bytes>>(from, addr).await.unwrap());
    }
    let (mut tally, count) = (Tally::default(), connections.len());
    for request in 0..requests {
        let connection = &mut connections[request % count];
        connection.ready().await.unwrap();
        let request = Request::get("/").header("host", "test");
        let response = connection.send_request(request.body(Empty::new()).unwrap());
        let response = clients::whole(response.await.unwrap()).await.unwrap();
        match response.status() {
            StatusCode::OK => tally.served += 1,
            StatusCode::TOO_MANY_REQUESTS => tally.refused += 1,
            StatusCode::SERVICE_UNAVAILABLE => tally.unavailable += 1,
            status => panic!("{status}"),
        }
        if response.status() != StatusCode::OK {
            let wait = response.headers()["retry-after"].to_str().unwrap();
            assert!(wait.parse::<u64>().unwrap() >= 1, "{wait}");
        }
        sleep(pause).await;
    }
    tally
}

/// Sends 1,200 requests of one address over twelve connections, four to each server.
async fn flood(to: &[SocketAddr]) -> Tally {
    let mut connections = JoinSet::new();
    for addr in to.iter().cycle().take(4 * to.len()) {
        connections.spawn(send(ATTACKER, vec![*addr], 100, Duration::from_millis(1)));
    }
    let mut sum = Tally::default();
    for tally in connections.join_all().await {
        sum.add(&tally);
    }
    sum
}

/// Sends as many requests of the honest client as no server need ask about, while it is flooded.
fn neighbour(nodes: &Nodes) -> tokio::task::JoinHandle<Tally> {
    let requests = (NODES * nodes.allowance()) as usize;
    tokio::spawn(send(
        HONEST_CLIENT,
        nodes.addrs(),
        requests,
        Duration::from_millis(10),
    ))
}

#[tokio::test]
async fn a_flood_of_one_address_to_three_nodes_gets_one_burst() {
    let store = MemoryStore::new();
    let nodes = Nodes::start(60, || Fleet::with_store(store.clone())).await;
    let honest = neighbour(&nodes);
    let flood = flood(&nodes.addrs()).await;
    nodes.assert_bound(&flood);
    let honest = honest.await.unwrap();
    assert_eq!(
        (honest.served, honest.refused, honest.unavailable),
        (15, 0, 0)
    );
    assert_eq!(nodes.gauge(Gauge::FleetAlone), 0);
    assert_eq!(nodes.gauge(Gauge::FleetLocalOnly), 0);
}

#[tokio::test]
async fn a_flood_of_many_addresses_to_three_nodes_gets_one_burst_each() {
    let store = MemoryStore::new();
    let nodes = Nodes::start(24, || Fleet::with_store(store.clone())).await;
    let honest = neighbour(&nodes);
    let mut clients = JoinSet::new();
    for number in 0..50 {
        let from = Ipv4Addr::new(127, 0, 1, number + 1);
        clients.spawn(send(from, nodes.addrs(), 90, Duration::from_millis(1)));
    }
    for tally in clients.join_all().await {
        nodes.assert_bound(&tally);
    }
    let honest = honest.await.unwrap();
    assert_eq!(
        (honest.served, honest.refused, honest.unavailable),
        (6, 0, 0)
    );
    assert_eq!(nodes.gauge(Gauge::FleetLocalOnly), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn on_a_real_redis_a_flood_to_three_nodes_gets_one_burst() {
    let Some(redis) = palisade_testkit::redis::RedisServer::start().await else {
        return;
    };
    let nodes = Nodes::start(60, || Fleet::redis(redis.url()).unwrap()).await;
    let (honest, mut sum) = (neighbour(&nodes), Tally::default());
    // A Redis that gets no processor time for 40 ms counts as one that is dead, and all requests
    // are then refused with 503 for a while.
    while sum.served < nodes.least() && nodes.started.elapsed() < Duration::from_secs(20) {
        sum.add(&flood(&nodes.addrs()).await);
    }
    nodes.assert_bound(&sum);
    let honest = honest.await.unwrap();
    assert_eq!(honest.refused, 0, "{honest:?}");
}
