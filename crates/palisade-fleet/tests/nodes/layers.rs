//! The options of a layer whose policy is counted over several nodes.

use crate::SECRET;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_core::{Guard, Mode, Reason, Violation};
use palisade_fleet::{Fleet, MemoryStore, OnFailure};
use palisade_rate_limit::{Prefix, Quota, RateLimitLayer};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

async fn status(layer: &RateLimitLayer, network: u16) -> u16 {
    let peer = Ipv6Addr::new(0x2001, 0xdb8, 1, network, 0, 0, 0, 1);
    let mut request = Request::new(Full::<Bytes>::default());
    let peer = SocketAddr::new(peer.into(), 4711);
    request.extensions_mut().insert(peer);
    let handler = async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()));
    let service = layer.layer(service_fn(handler));
    service.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_only_watched_leaves_the_limit_of_each_client_in_force() {
    let journal = Journal::default();
    let fleet = Fleet::with_store(MemoryStore::new()).nodes(1);
    let fleet = fleet.secret(SECRET).start().unwrap();
    let layer = RateLimitLayer::new(Quota::per_hour(4).fleet(&fleet)).unwrap();
    let layer = layer.ladder().metrics(journal.clone());
    // Twelve clients of one /56, which has the quota of eight, and so nothing left for the last.
    for network in 0..12 {
        let mut served = 0;
        for _ in 0..20 {
            served += u32::from(status(&layer, network).await == 200);
            advance(Duration::from_millis(30)).await;
        }
        assert_eq!(served, 4, "{network}");
    }
    let watched = (Guard::RateLimit, Reason::NetworkRateExceeded);
    assert!(journal.refused().contains(&watched));
    let is_shadow = |(violation, mode): &(Violation, Mode)| {
        violation.reason != watched.1 || *mode == Mode::Shadow
    };
    assert!(journal.refusals().iter().all(is_shadow));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_costs_more_than_the_share_of_a_node_may_be_sent_again() {
    let fleet = Fleet::with_store(MemoryStore::new()).nodes(8);
    let fleet = fleet.secret(SECRET).start().unwrap();
    let layer = RateLimitLayer::new(Quota::per_hour(40).fleet(&fleet)).unwrap();
    let layer = layer.cost(|_| 20);
    fleet.shutdown().await;
    assert_eq!(status(&layer, 0).await, 503);
    assert_eq!(status(&layer.cost(|_| 41), 0).await, 413);
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_charges_no_client_for_what_its_network_refuses() {
    let fleet = Fleet::with_store(MemoryStore::new()).nodes(2);
    let fleet = fleet.secret(SECRET).start().unwrap();
    let alone = fleet.on_failure(OnFailure::LocalShare(1.0));
    let layer = RateLimitLayer::new(Quota::per_hour(8).fleet(&alone)).unwrap();
    let per_56 = Prefix::new(32, 56).unwrap();
    let layer = layer.wider(per_56, 2).wider_mode(Mode::Enforce);
    fleet.shutdown().await;
    for client in [0, 0, 0, 0, 1, 1, 1, 1] {
        assert_eq!(status(&layer, client).await, 200);
    }
    // The share of the network is used up, and a third client keeps its own.
    for _ in 0..8 {
        assert_eq!(status(&layer, 2).await, 429);
    }
    advance(Duration::from_secs(30 * 60)).await;
    for _ in 0..4 {
        assert_eq!(status(&layer, 2).await, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_gives_back_what_a_response_settles() {
    let fleet = Fleet::with_store(MemoryStore::new()).nodes(2);
    let fleet = fleet.secret(SECRET).start().unwrap();
    let alone = fleet.on_failure(OnFailure::LocalShare(1.0));
    let layer = RateLimitLayer::new(Quota::per_hour(8).fleet(&alone)).unwrap();
    let layer = layer.settle(|_| 0);
    fleet.shutdown().await;
    for _ in 0..20 {
        assert_eq!(status(&layer, 0).await, 200);
    }
}
