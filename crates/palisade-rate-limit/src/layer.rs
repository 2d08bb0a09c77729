//! The layer and its service.

use crate::{
    ClientIp, ConfigError, KeyExtractor, Limiter, Policy, RateLimit, RequestHead, TableLimiter,
    policy::{LimiterLevels, RateLimitPolicy},
};
use palisade_guard::Settings;
use std::sync::Arc;
use tower_layer::Layer;

/// Applies [`RateLimit`]. Clones, and the services they make, share one limit.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    policy: Arc<RateLimitPolicy>,
}

// === RateLimitLayer ===

impl RateLimitLayer {
    /// At most `policy` for each client: a [`Quota`](crate::Quota), or several of them. The table
    /// of clients takes 8 MiB; [`TableLimiter::capacity`] makes it smaller or larger.
    ///
    /// # Errors
    /// If a quota makes no sense or the table could not hold its debts.
    pub fn new(policy: impl Into<Policy>) -> Result<Self, ConfigError> {
        TableLimiter::new(policy).map(Self::with_limiter)
    }

    /// Whatever `limiter` says: a [`TableLimiter`] of another size, or one in an `Arc` that other
    /// layers use, too, or whose policy is to change while the server runs.
    pub fn with_limiter(limiter: impl Limiter) -> Self {
        let limiter: Arc<dyn Limiter> = Arc::new(limiter);
        Self {
            policy: Arc::new(RateLimitPolicy {
                settings: Settings::default(),
                levels: limiter
                    .levels(&|before| Arc::new(LimiterLevels::new(limiter.clone(), before))),
                limiter,
                key: Arc::new(ClientIp::peer()),
                cost: None,
            }),
        }
    }

    /// By what requests are counted: [`ClientIp`] with other options, or any closure from
    /// [`RequestHead`] to [`KeyOutcome`](crate::KeyOutcome).
    ///
    /// ```
    /// # use palisade_rate_limit::{ClientIp, ClientKey, KeyOutcome, KeyExtractor, Quota};
    /// # use palisade_rate_limit::{RateLimitLayer, RequestHead};
    /// # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// // Health probes are free, everybody else counts by address.
    /// let by_ip = ClientIp::peer();
    /// let layer = RateLimitLayer::new(Quota::per_second(10))?.key(move |head: &RequestHead<'_>| {
    ///     if head.uri.path() == "/health" { KeyOutcome::Exempt } else { by_ip.extract(head) }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Never count by what a client can make up: it would get a fresh quota for every value.
    /// Defaults to [`ClientIp::peer()`].
    pub fn key(self, key: impl KeyExtractor) -> Self {
        self.shared_key(Arc::new(key))
    }

    /// The same by an extractor that other layers of a stack have, too: it is asked once.
    #[doc(hidden)]
    pub fn shared_key(mut self, key: Arc<dyn KeyExtractor>) -> Self {
        self.policy_mut().key = key;
        self
    }

    /// How many cells of the quota a request takes. `cost` is called once for each request that
    /// has a key: be quick, never panic. A request that costs 0 passes. One that costs more than
    /// the burst can never pass: it is answered 413 without `Retry-After`, because like a body
    /// over its limit it does not get better by waiting. Defaults to 1.
    pub fn cost(mut self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.policy_mut().cost = Some(Arc::new(cost));
        self
    }

    /// The policy of this layer, for a stack of several.
    #[doc(hidden)]
    pub fn policy(&self) -> &RateLimitPolicy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut RateLimitPolicy {
        Arc::make_mut(&mut self.policy)
    }
}

palisade_guard::settings_methods!(RateLimitLayer, levels: levels);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.policy.clone())
    }
}
