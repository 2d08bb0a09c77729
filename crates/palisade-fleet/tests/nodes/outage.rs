//! Honest clients before, during and after an outage of the store.

use crate::{SECRET, status};
use palisade_fleet::{Answers, Batch, Fleet, MemoryStore, OnFailure, QuotaStore, StoreError};
use palisade_rate_limit::{Quota, RateLimitLayer};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, advance, sleep};

/// A store that answers, or does not.
#[derive(Clone)]
struct Switched {
    inner: MemoryStore,
    is_up: Arc<AtomicBool>,
}

impl QuotaStore for Switched {
    async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
        if !self.is_up.load(Relaxed) {
            pending::<()>().await;
        }
        self.inner.call(batch).await
    }
}

/// Eight nodes that count 600 a minute, 40 at once.
struct Nodes {
    layers: Vec<RateLimitLayer>,
    is_up: Arc<AtomicBool>,
}

const NODES: u32 = 8;

impl Nodes {
    fn start(on_failure: OnFailure) -> Self {
        let store = Switched {
            inner: MemoryStore::new(),
            is_up: Arc::new(AtomicBool::new(true)),
        };
        let layer = |_| {
            let fleet = Fleet::with_store(store.clone()).nodes(NODES).secret(SECRET);
            let fleet = fleet.start().unwrap().on_failure(on_failure);
            RateLimitLayer::new(Quota::per_minute(600).burst(40).fleet(&fleet)).unwrap()
        };
        Self {
            layers: (0..NODES).map(layer).collect(),
            is_up: store.is_up,
        }
    }

    /// Sends nine requests a second for `seconds`, each to the node that `node` names. Returns how
    /// many were served, and how many were refused.
    async fn send(&self, client: u8, seconds: u32, node: impl Fn(usize) -> usize) -> (u32, u32) {
        let (mut served, mut refused) = (0, 0);
        let pause = Duration::from_micros(111_112);
        let end = Instant::now() + Duration::from_secs(seconds.into());
        for request in 0.. {
            if Instant::now() >= end {
                break;
            }
            let layer = &self.layers[node(request) % self.layers.len()];
            match status(layer, client).await {
                200 => served += 1,
                429 => refused += 1,
                status => panic!("{status}"),
            }
            sleep(pause).await;
        }
        (served, refused)
    }

    /// The store does not answer for a minute. Returns what became of requests before, during and
    /// after that.
    async fn through_an_outage(&self, node: impl Fn(usize) -> usize) -> [(u32, u32); 3] {
        let before = self.send(1, 20, &node).await;
        self.is_up.store(false, Relaxed);
        let during = self.send(1, 60, &node).await;
        self.is_up.store(true, Relaxed);
        // Until the node tries the store again it is an outage.
        self.send(1, 1, &node).await;
        let after = self.send(1, 60, &node).await;
        [before, during, after]
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_below_its_rate_on_all_nodes_does_not_notice_an_outage() {
    let nodes = Nodes::start(OnFailure::LocalShare(2.0));
    let parts = nodes.through_an_outage(|request| request).await;
    assert!(parts.iter().all(|(_, refused)| *refused == 0), "{parts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_below_its_rate_on_one_node_does_not_notice_it_with_the_whole_limit() {
    let nodes = Nodes::start(OnFailure::LocalFull);
    let parts = nodes.through_an_outage(|_| 3).await;
    assert!(parts.iter().all(|(_, refused)| *refused == 0), "{parts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_on_one_node_has_twice_its_share_in_an_outage_and_all_of_it_afterwards() {
    let nodes = Nodes::start(OnFailure::LocalShare(2.0));
    let [before, during, after] = nodes.through_an_outage(|_| 3).await;
    assert_eq!((before.1, after.1), (0, 0), "{before:?} {after:?}");
    // 2.5 a second, and a burst of 10.
    let (served, refused) = during;
    assert!((145..=165).contains(&served), "{during:?}");
    assert!(refused > 300, "{during:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_or_ends_refuses_nothing_on_the_others() {
    let mut nodes = Nodes::start(OnFailure::LocalShare(2.0));
    for round in 0..10 {
        let (_, refused) = nodes.send(1, 2, |request| request).await;
        assert_eq!(refused, 0, "{round}");
        // Without a shutdown: what it has not reported is reported as it ends.
        drop(nodes.layers.pop());
        if round % 2 == 1 {
            let more = Nodes::start(OnFailure::LocalShare(2.0));
            nodes.layers.extend(more.layers.into_iter().take(2));
        }
        advance(Duration::from_millis(10)).await;
    }
}
