//! The order of the guards. It stands here and nowhere else.

use tower_layer::Layer;

#[cfg(feature = "body-limit")]
use palisade_body_limit::{BodyLimit, BodyLimitLayer};
#[cfg(feature = "concurrency-limit")]
use palisade_concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitHandle, ConcurrencyLimitLayer};
#[cfg(feature = "rate-limit")]
use palisade_rate_limit::{RateLimit, RateLimitLayer};
#[cfg(feature = "slow-body")]
use palisade_slow_body::{SlowBody, SlowBodyLayer};
#[cfg(feature = "timeout")]
use palisade_timeout::{Timeout, TimeoutLayer};

/// All guards as one `Layer`. Clones, and the services they make, share all state: apply it as
/// often as you like.
#[derive(Clone, Debug)]
pub struct StackLayer {
    #[cfg(feature = "rate-limit")]
    pub(crate) rate_limit: RateLimitLayer,
    #[cfg(feature = "timeout")]
    pub(crate) timeout: TimeoutLayer,
    #[cfg(feature = "body-limit")]
    pub(crate) body_limit: BodyLimitLayer,
    #[cfg(feature = "slow-body")]
    pub(crate) slow_body: SlowBodyLayer,
    #[cfg(feature = "concurrency-limit")]
    pub(crate) concurrency_limit: ConcurrencyLimitLayer,
}

/// `S` behind all guards.
pub type Guarded<S> = RateLimitOf<TimeoutOf<BodyLimitOf<SlowBodyOf<ConcurrencyLimitOf<S>>>>>;

/// A guard's service, or `S` itself where the guard's feature is off.
macro_rules! guard_of {
    ($feature:literal, $alias:ident, $service:ident) => {
        #[cfg(feature = $feature)]
        type $alias<S> = $service<S>;
        #[cfg(not(feature = $feature))]
        type $alias<S> = S;
    };
}

guard_of!("rate-limit", RateLimitOf, RateLimit);
guard_of!("timeout", TimeoutOf, Timeout);
guard_of!("body-limit", BodyLimitOf, BodyLimit);
guard_of!("slow-body", SlowBodyOf, SlowBody);
guard_of!("concurrency-limit", ConcurrencyLimitOf, ConcurrencyLimit);

// === StackLayer ===

#[cfg(feature = "concurrency-limit")]
impl StackLayer {
    /// A handle that changes the concurrency limit while the server runs.
    pub fn concurrency_limit(&self) -> ConcurrencyLimitHandle {
        self.concurrency_limit.handle()
    }
}

impl<S> Layer<S> for StackLayer {
    type Service = Guarded<S>;

    /// What is cheapest to refuse is refused first; the slot is taken last and given back last.
    /// The timeout stands outside the concurrency limit, so that waiting for a slot counts.
    fn layer(&self, inner: S) -> Guarded<S> {
        #[cfg(feature = "concurrency-limit")]
        let inner = self.concurrency_limit.layer(inner);
        #[cfg(feature = "slow-body")]
        let inner = self.slow_body.layer(inner);
        #[cfg(feature = "body-limit")]
        let inner = self.body_limit.layer(inner);
        #[cfg(feature = "timeout")]
        let inner = self.timeout.layer(inner);
        #[cfg(feature = "rate-limit")]
        let inner = self.rate_limit.layer(inner);
        inner
    }
}
