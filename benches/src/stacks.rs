//! palisade's stack, and the stack of peer layers that a careful user assembles.

use http::StatusCode;
use palisade::{Memory, Quota, RuntimeLoad, Stack, StackLayer, rate_limit::Policy};
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

/// The maximum length of a request body.
const MAX_BODY_BYTES: usize = 2 << 20;
/// The timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest gap of a request body.
const MAX_BODY_GAP: Duration = Duration::from_secs(15);
/// The maximum number of requests in flight.
const MAX_REQUESTS: usize = 1024;

/// A quota that the benches never use up.
pub fn high_quota() -> Quota {
    Quota::per_second(1_000_000).burst(5_000_000)
}

/// A quota of one request per hour.
pub fn low_quota() -> Quota {
    Quota::per_hour(1)
}

/// Returns a stack of all six guards with the limits of [`Stack::edge`].
pub fn palisade(quota: impl Into<Policy>) -> StackLayer {
    let (memory, load) = at_rest();
    Stack::edge()
        .rate_limit(quota)
        .memory(memory)
        .runtime_load(load)
        .build()
        .expect("the preset is valid")
}

/// Returns memory and load that nothing changes. A runtime that is not run, as it is here, would
/// count as stalled.
pub fn at_rest() -> (Memory, RuntimeLoad) {
    let memory = Memory::reported(1 << 30).expect("the limit is not 0");
    (memory, RuntimeLoad::reported())
}

type Governor<B> = GovernorLayer<
    PeerIpKeyExtractor,
    ::governor::middleware::NoOpMiddleware<::governor::clock::QuantaInstant>,
    B,
>;

/// The stack of the peers' five layers.
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

/// Returns the layers of tower, tower-http and `tower_governor` with the same limits. `B` is the
/// body of the service's responses.
pub fn peers<B>(quota_is_high: bool) -> PeerStack<B> {
    ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            TIMEOUT,
        ))
        .layer(peers_limit())
        .layer(RequestBodyTimeoutLayer::new(MAX_BODY_GAP))
        .layer(tower_governor(quota_is_high))
}

/// Returns tower-http's limit on request bodies.
pub fn peers_limit() -> RequestBodyLimitLayer {
    RequestBodyLimitLayer::new(MAX_BODY_BYTES)
}

/// Returns `tower_governor`'s rate limit by the peer's address.
pub fn tower_governor<B>(quota_is_high: bool) -> Governor<B> {
    let mut config = GovernorConfigBuilder::default();
    if quota_is_high {
        config.per_nanosecond(1000).burst_size(5_000_000);
    } else {
        config.per_second(3600).burst_size(1);
    }
    GovernorLayer::new(Arc::new(config.finish().expect("neither number is 0")))
}
