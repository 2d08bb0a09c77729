//! Nodes on a real Redis.

use crate::{SECRET, status};
use palisade_fleet::{Fleet, OnFailure};
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::redis::RedisServer;
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
    let fleet = node(&redis, 1).on_failure(OnFailure::Deny);
    let layer = layer(Quota::per_hour(8), &fleet);
    let mut served = 0;
    for _ in 0..12 {
        assert_eq!(redis.command(&["SCRIPT", "FLUSH"]).await, "+OK\r\n");
        match status(&layer, 1).await {
            200 => served += 1,
            status => assert_eq!(status, 429),
        }
    }
    assert_eq!(served, 8);
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
    assert!(longest < Duration::from_millis(50), "{longest:?}");
    redis.restart().await;
    let back = Instant::now();
    while redis.command(&["KEYS", "*"]).await == "*0\r\n" {
        let _ = status(&layer, 3).await;
        assert!(back.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
    println!("reported {:?} after it was back", back.elapsed());
}
