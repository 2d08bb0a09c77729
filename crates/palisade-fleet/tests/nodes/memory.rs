//! Nodes that share a store in memory count together.

use crate::{SECRET, status};
use palisade_fleet::{Answers, Batch, Fleet, MemoryStore, OnFailure, QuotaStore, StoreError};
use palisade_rate_limit::{Quota, RateLimitLayer};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, advance, sleep};

fn node<S: QuotaStore>(store: S, nodes: u32) -> Fleet {
    let fleet = Fleet::with_store(store).nodes(nodes).secret(SECRET);
    fleet.start().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_has_one_limit_over_all_nodes() {
    let store = MemoryStore::new();
    let quota = Quota::per_minute(16);
    let nodes: Vec<_> = (0..4)
        .map(|_| RateLimitLayer::new(quota.fleet(&node(store.clone(), 4))).unwrap())
        .collect();
    let mut served = 0;
    for _ in 0..40 {
        for node in &nodes {
            served += u32::from(status(node, 1).await == 200);
        }
        advance(Duration::from_millis(5)).await;
    }
    // 16, and what the four nodes may admit before they have reported.
    assert!((16..=16 + 8).contains(&served), "{served}");
    assert_eq!(status(&nodes[0], 2).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_page_with_thirty_requests_is_served_by_one_node() {
    let fleet = node(MemoryStore::new(), 8);
    let layer = RateLimitLayer::new(Quota::per_second(10).burst(40).fleet(&fleet)).unwrap();
    let started = Instant::now();
    let page = (0..30).map(|_| {
        let layer = layer.clone();
        tokio::spawn(async move { status(&layer, 1).await })
    });
    for response in page.collect::<Vec<_>>() {
        assert_eq!(response.await.unwrap(), 200);
    }
    assert!(started.elapsed() < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_each_node_admits_its_share() {
    let store = MemoryStore::new();
    let (first, second) = (node(store.clone(), 2), node(store, 2));
    let policy = |fleet: &Fleet| Quota::per_minute(20).fleet(fleet);
    let layer = RateLimitLayer::new(policy(&first.on_failure(OnFailure::LocalShare(0.5)))).unwrap();
    let other = RateLimitLayer::new(policy(&second.on_failure(OnFailure::Deny))).unwrap();
    first.shutdown().await;
    second.shutdown().await;
    let mut served = 0;
    for _ in 0..20 {
        served += u32::from(status(&layer, 1).await == 200);
    }
    assert_eq!(served, 5);
    assert_eq!(status(&other, 1).await, 503);
    sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_slow_quota_on_many_nodes_is_not_the_whole_quota() {
    let fleet = node(MemoryStore::new(), 1024);
    let layer = RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet)).unwrap();
    fleet.shutdown().await;
    assert_eq!(status(&layer, 1).await, 200);
    advance(Duration::from_secs(2 * 60 * 60)).await;
    assert_eq!(status(&layer, 1).await, 429);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_built_again_has_its_accounts_and_another_one_at_its_place_has_not() {
    let store = MemoryStore::new();
    let fleet = node(store.clone(), 1);
    let policy = |name| RateLimitLayer::new(Quota::per_hour(1).fleet(&fleet.named(name)));
    let first = policy("first").unwrap();
    assert_eq!(status(&first, 1).await, 200);
    assert!(policy("first").is_err());
    sleep(Duration::from_millis(30)).await;
    drop(first);
    // At the same place, under another name: another account.
    let second = policy("second").unwrap();
    assert_eq!(status(&second, 1).await, 200);
    drop(second);
    // Again under its name, with the table of the node empty: its account in the store is not.
    let again = policy("first").unwrap();
    let _ = status(&again, 1).await;
    sleep(Duration::from_millis(30)).await;
    assert_eq!(status(&again, 1).await, 429);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_counted_know_how_many_they_are() {
    let store = MemoryStore::new();
    let start = || {
        let fleet = Fleet::with_store(store.clone()).count_nodes();
        fleet.secret(SECRET).start().unwrap()
    };
    let nodes: Vec<_> = (0..3).map(|_| start()).collect();
    sleep(Duration::from_millis(1_100)).await;
    for node in &nodes {
        assert!(format!("{node:?}").contains("nodes: 3"), "{node:?}");
    }
    let [first, rest @ ..] = &nodes[..] else {
        unreachable!()
    };
    for node in rest {
        node.shutdown().await;
    }
    sleep(Duration::from_secs(5)).await;
    assert!(format!("{first:?}").contains("nodes: 1"), "{first:?}");
}

#[test]
fn without_a_runtime_a_request_does_not_wait() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fleet = runtime.block_on(async { node(MemoryStore::new(), 1) });
    let policy = Quota::per_hour(40).fleet(&fleet.on_failure(OnFailure::LocalFull));
    let layer = RateLimitLayer::new(policy).unwrap();
    // Ten are admitted before they are reported, and the others would wait.
    let served = (0..50).filter(|_| {
        let mut request = std::pin::pin!(status(&layer, 1));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        request.as_mut().poll(&mut cx) == std::task::Poll::Ready(200)
    });
    assert_eq!(served.count(), 40);
}

/// A store in two parts, of which the first refuses all calls at once. Counts what is reported.
#[derive(Clone, Default)]
struct HalfDead {
    inner: MemoryStore,
    reported: Arc<AtomicU32>,
}

impl QuotaStore for HalfDead {
    fn shards(&self) -> u32 {
        2
    }

    async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
        if batch.shard == 0 {
            return Err(StoreError::unsent("it is dead"));
        }
        sleep(Duration::from_millis(5)).await;
        let reported = batch.asks.iter().map(|ask| ask.admitted).sum();
        self.reported.fetch_add(reported, Relaxed);
        self.inner.call(batch).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_reports_to_one_part_of_the_store_also_if_another_one_fails() {
    let store = HalfDead::default();
    let fleet = node(store.clone(), 1);
    let layer = RateLimitLayer::new(Quota::per_hour(8).fleet(&fleet)).unwrap();
    let mut served = 0;
    for client in 0..200 {
        served += u32::from(status(&layer, client).await == 200);
    }
    assert_eq!(served, 200);
    fleet.shutdown().await;
    let reported = store.reported.load(Relaxed);
    assert!((60..=140).contains(&reported), "{reported}");
}
