//! palisade's stack, and what a careful user assembles from its peers.

use http::StatusCode;
use palisade::{Quota, Stack, StackLayer};
use std::{sync::Arc, time::Duration};
use tower::{
    ServiceBuilder,
    layer::util::{Identity, Stack as Both},
    limit::GlobalConcurrencyLimitLayer,
    load_shed::LoadShedLayer,
};
use tower_governor::{
    GovernorLayer, governor::GovernorConfigBuilder, key_extractor::PeerIpKeyExtractor,
};
use tower_http::{
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
};

/// No more than this many bytes in a request body.
const MAX_BODY: usize = 2 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);
const BODY_GAP: Duration = Duration::from_secs(15);
const MAX_REQUESTS: usize = 1024;

/// No figure is about running into this one.
pub fn generous() -> Quota {
    Quota::per_second(1_000_000).burst(5_000_000)
}

/// One request, and the next after an hour.
pub fn stingy() -> Quota {
    Quota::per_hour(1)
}

/// All five guards at the numbers of the preset for the internet.
pub fn palisade(quota: Quota) -> StackLayer {
    Stack::edge()
        .rate_limit(quota)
        .build()
        .expect("the preset is sound")
}

type Governor<B> = GovernorLayer<
    PeerIpKeyExtractor,
    ::governor::middleware::NoOpMiddleware<::governor::clock::QuantaInstant>,
    B,
>;

/// The peers of the five guards.
pub type PeerStack<B> = ServiceBuilder<
    Both<
        Governor<B>,
        Both<
            RequestBodyTimeoutLayer,
            Both<
                RequestBodyLimitLayer,
                Both<
                    TimeoutLayer,
                    Both<GlobalConcurrencyLimitLayer, Both<LoadShedLayer, Identity>>,
                >,
            >,
        >,
    >,
>;

/// tower's, tower-http's and `tower_governor`'s own, at the same numbers. `B` is the body of the
/// service's responses.
pub fn peers<B>(quota_is_generous: bool) -> PeerStack<B> {
    ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            TIMEOUT,
        ))
        .layer(peers_limit())
        .layer(RequestBodyTimeoutLayer::new(BODY_GAP))
        .layer(tower_governor(quota_is_generous))
}

/// tower-http's limit on request bodies.
pub fn peers_limit() -> RequestBodyLimitLayer {
    RequestBodyLimitLayer::new(MAX_BODY)
}

/// `tower_governor` by the peer's address.
pub fn tower_governor<B>(quota_is_generous: bool) -> Governor<B> {
    let mut config = GovernorConfigBuilder::default();
    if quota_is_generous {
        config.per_nanosecond(1000).burst_size(5_000_000);
    } else {
        config.per_second(3600).burst_size(1);
    }
    GovernorLayer::new(Arc::new(config.finish().expect("neither number is 0")))
}
