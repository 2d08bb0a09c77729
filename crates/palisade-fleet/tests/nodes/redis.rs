//! Nodes on a real Redis.

use crate::{SECRET, node::Node, status};
use palisade_core::{Gauge, Guard};
use palisade_fleet::{ClientKey, Fleet, OnFailure};
use palisade_rate_limit::{KeyOutcome, Quota, RateLimitLayer, RequestHead};
use palisade_testkit::{Journal, clients::wait_until, redis::RedisServer};
use std::time::Duration;
use tokio::time::{Instant, sleep};

fn node(redis: &RedisServer, nodes: u32) -> Fleet {
    let fleet = Fleet::redis(redis.url()).unwrap();
    fleet.nodes(nodes).secret(SECRET).start().unwrap()
}

fn layer(quota: Quota, fleet: &Fleet) -> RateLimitLayer {
    RateLimitLayer::new(quota.fleet(fleet)).unwrap()
}

#[tokio::test]
async fn a_client_has_one_limit_over_all_nodes() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_minute(40);
    let fleets: Vec<_> = (0..4).map(|_| node(&redis, 4)).collect();
    let nodes: Vec<_> = fleets.iter().map(|fleet| layer(quota, fleet)).collect();
    let mut served = 0;
    for _ in 0..40 {
        for node in &nodes {
            served += u32::from(status(node, 1).await == 200);
        }
        sleep(Duration::from_millis(5)).await;
    }
    // 40, what four nodes may admit before they have reported, and one that a second brings.
    assert!((40..=40 + 16 + 1).contains(&served), "{served}");
    assert_eq!(status(&nodes[0], 2).await, 200);
    fleets[0].shutdown().await; // Reports it.
    let keys = redis.command(&["KEYS", "*"]).await;
    assert!(keys.starts_with("*2\r\n"), "{keys}");
    assert!(keys.contains("palisade:{default:0}:"), "{keys}");
}

#[tokio::test]
async fn a_flushed_script_is_sent_again_in_the_same_call() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    for client in [1, 2, 3] {
        let builder = Fleet::redis(redis.url()).unwrap();
        let node = Node::start(builder, 1, Quota::per_hour(8), OnFailure::Deny);
        let mut served = 0;
        for _ in 0..12 {
            assert_eq!(redis.command(&["SCRIPT", "FLUSH"]).await, "+OK\r\n");
            served += u32::from(status(&node.layer, client).await == 200);
        }
        if node.journal.fleet().is_empty() {
            assert_eq!(node.gauge(Gauge::FleetFailures), 0);
            assert_eq!(served, 8);
            return;
        }
        println!("once more: this machine had no time for an answer within 40 ms");
    }
    panic!("this machine is too busy");
}

#[tokio::test]
async fn a_node_without_its_redis_admits_its_share_at_once_and_reports_again_when_it_is_back() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let layer = layer(Quota::per_minute(40), &node(&redis, 4));
    assert_eq!(status(&layer, 1).await, 200);
    redis.kill();
    let (mut served, mut longest) = (0, Duration::ZERO);
    for _ in 0..60 {
        let sent = Instant::now();
        served += u32::from(status(&layer, 2).await == 200);
        longest = longest.max(sent.elapsed());
        sleep(Duration::from_millis(2)).await;
    }
    // Twice the share of a node. At first it does not know that it is alone.
    assert!((18..=26).contains(&served), "{served}");
    assert!(longest < Duration::from_millis(400), "{longest:?}");
    redis.restart().await;
    let back = Instant::now();
    while redis.command(&["KEYS", "*"]).await == "*0\r\n" {
        let _ = status(&layer, 3).await;
        assert!(back.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
    println!("reported {:?} after it was back", back.elapsed());
}

/// The variable by which a test tells another process of its Redis.
const URL: &str = "PALISADE_TEST_REDIS";

/// Sends a request of a tenant and one of an address, as one of two nodes.
async fn serve_tenant_and_address(url: &str) -> u64 {
    let journal = Journal::default();
    let fleet = Fleet::redis(url).unwrap().nodes(2).secret(SECRET);
    let fleet = fleet.metrics(journal.clone()).start().unwrap();
    let layer = layer(Quota::per_minute(10), &fleet.named("addresses"));
    assert_eq!(status(&layer, 1).await, 200);
    for key in [fleet.key("tenant"), ClientKey::of("tenant")] {
        let name = if key == fleet.key("tenant") {
            "tenants"
        } else {
            "own"
        };
        let quota = Quota::per_minute(10).fleet(&fleet.named(name));
        let layer = RateLimitLayer::new(quota).unwrap();
        let layer = layer.key(move |_: &RequestHead<'_>| KeyOutcome::Key(key));
        assert_eq!(status(&layer, 1).await, 200);
    }
    fleet.shutdown().await;
    let local_only = journal.gauge(Guard::RateLimit, Gauge::FleetLocalOnly);
    local_only.unwrap()
}

#[tokio::test]
async fn two_processes_have_the_same_key_for_an_address_and_for_a_name() {
    if let Ok(url) = std::env::var(URL) {
        serve_tenant_and_address(&url).await;
        return;
    }
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    // The key of this process alone is counted here, and is not in Redis.
    assert_eq!(serve_tenant_and_address(&redis.url()).await, 1);
    let value = redis.command(&["KEYS", "*"]).await;
    assert!(value.starts_with("*2\r\n"), "{value}");
    let this = std::env::current_exe().unwrap();
    let name = "redis::two_processes_have_the_same_key_for_an_address_and_for_a_name";
    let mut other = tokio::process::Command::new(this);
    let other = other.args(["--exact", name]).env(URL, redis.url());
    assert!(other.status().await.unwrap().success());
    let both = redis.command(&["KEYS", "*"]).await;
    assert!(both.starts_with("*2\r\n"), "{both}");
}

#[tokio::test]
async fn nodes_are_counted_also_beside_a_million_that_are_gone() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let start = || {
        let fleet = Fleet::redis(redis.url()).unwrap().count_nodes();
        fleet.secret(SECRET).start().unwrap()
    };
    let nodes = [start(), start()];
    let know = |count: usize| {
        let count = format!("nodes: {count}");
        nodes
            .iter()
            .all(|node| format!("{node:?}").contains(&count))
    };
    wait_until("both know of each other", || know(2)).await;
    // A program that may write to the set can make nodes too many, and not stop them from counting.
    let script = "for i = 1, 1000000 do redis.call('ZADD', KEYS[1], '1e15', i) end \
                  redis.call('PERSIST', KEYS[1])";
    let set = "palisade:{default:0}:nodes";
    redis.command(&["EVAL", script, "1", set]).await;
    wait_until("there are 1,024 at most", || know(1024)).await;
    redis.command(&["DEL", set]).await;
    wait_until("both know of each other again", || know(2)).await;
    // A key of another kind: they stay as many as they were.
    redis.command(&["DEL", set]).await;
    redis.command(&["SET", set, "no set"]).await;
    let layer = layer(Quota::per_minute(60), &nodes[0]);
    assert_eq!(status(&layer, 1).await, 200);
    nodes[0].shutdown().await;
    assert!(know(2) || know(1), "{nodes:?}");
}
