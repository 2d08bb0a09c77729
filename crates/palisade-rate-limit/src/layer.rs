//! The layer of the rate limit.

use crate::{
    ClientIp, ConfigError, KeyExtractor, Limiter, Policy, RateLimit, RequestHead, TableLimiter,
    policy::{LimiterGauges, RateLimitPolicy},
};
use palisade_guard::Settings;
use std::sync::Arc;
use tower_layer::Layer;

/// Applies [`RateLimit`]. All clones, and the services they create, share one limit.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct RateLimitLayer {
    policy: Arc<RateLimitPolicy>,
}

// === RateLimitLayer ===

impl RateLimitLayer {
    /// Creates a layer that limits each client to `policy`: one [`Quota`](crate::Quota), or
    /// several. The table of clients takes 8 MiB; [`TableLimiter::capacity`] changes its size.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = RateLimitLayer::new(Quota::per_minute(1).burst(2))?;
    /// let service = layer.layer(service_fn(handler));
    /// let send = || service.clone().oneshot(Request::default());
    /// assert_eq!(send().await?.status(), 200);
    /// assert_eq!(send().await?.status(), 200);
    /// let refused = send().await?;
    /// assert_eq!(refused.status(), 429);
    /// assert_eq!(refused.headers()["retry-after"], "60");
    ///
    /// let error = RateLimitLayer::new(Quota::per_second(0)).unwrap_err();
    /// let text = "invalid rate limit:\n  cells is 0, allowed is 1 to 4294967295";
    /// assert_eq!(error.to_string(), text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a quota is invalid or its debts are too long for the table.
    pub fn new(policy: impl Into<Policy>) -> Result<Self, ConfigError> {
        TableLimiter::new(policy).map(Self::with_limiter)
    }

    /// Creates a layer that applies the decisions of `limiter`: a [`TableLimiter`] of another
    /// size, or a limiter in an `Arc` that is shared with other layers or gets a new policy while
    /// the server runs.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer, TableLimiter};
    /// use std::sync::Arc;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let limiter = Arc::new(TableLimiter::new(Quota::per_minute(1))?);
    /// let pages = RateLimitLayer::with_limiter(limiter.clone()).layer(service_fn(handler));
    /// let api = RateLimitLayer::with_limiter(limiter).layer(service_fn(handler));
    /// // One quota for both.
    /// assert_eq!(pages.oneshot(Request::default()).await?.status(), 200);
    /// assert_eq!(api.oneshot(Request::default()).await?.status(), 429);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_limiter(limiter: impl Limiter) -> Self {
        let limiter: Arc<dyn Limiter> = Arc::new(limiter);
        Self {
            policy: Arc::new(RateLimitPolicy {
                settings: Settings::default(),
                gauges: limiter.levels(&|evicted_before| {
                    Arc::new(LimiterGauges::new(limiter.clone(), evicted_before))
                }),
                limiter,
                key: Arc::new(ClientIp::peer()),
                cost: None,
            }),
        }
    }

    /// Sets what requests are counted by: [`ClientIp`] with other options, or any closure from
    /// [`RequestHead`] to [`KeyOutcome`](crate::KeyOutcome).
    ///
    /// ```
    /// # use palisade_rate_limit::{ClientIp, KeyOutcome, KeyExtractor, Quota};
    /// # use palisade_rate_limit::{RateLimitLayer, RequestHead};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // Health probes are exempt. All other requests count by address.
    /// let by_ip = ClientIp::peer();
    /// let layer = RateLimitLayer::new(Quota::per_minute(1))?.key(move |head: &RequestHead<'_>| {
    ///     if head.uri.path() == "/health" { KeyOutcome::Exempt } else { by_ip.extract(head) }
    /// });
    /// let service = layer.layer(service_fn(handler));
    /// let status = async |path| {
    ///     let request = Request::get(path).body(Full::default())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// assert_eq!(status("/").await?, 200);
    /// assert_eq!(status("/").await?, 429);
    /// assert_eq!(status("/health").await?, 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Never count by a value that a client can invent: each new value would get a fresh quota.
    /// Defaults to [`ClientIp::peer()`].
    pub fn key(self, key: impl KeyExtractor) -> Self {
        self.shared_key(Arc::new(key))
    }

    /// Sets an extractor that other layers of a stack share. It is called once per request.
    #[doc(hidden)]
    pub fn shared_key(mut self, key: Arc<dyn KeyExtractor>) -> Self {
        self.policy_mut().key = key;
        self
    }

    /// Sets how many cells of the quota a request takes. `cost` is called once for each request
    /// that has a key; it must be quick and must not panic. A request that costs 0 is admitted. A
    /// request that costs more than the burst can never be admitted: it is answered 413 without
    /// `Retry-After`, because waiting does not help, as with a body over its limit. Defaults to 1.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let quota = Quota::per_minute(1).burst(10);
    /// let layer = RateLimitLayer::new(quota)?.cost(|head| match head.uri.path() {
    ///     "/health" => 0,
    ///     "/export" => 10,
    ///     "/dump" => 11,
    ///     _ => 1,
    /// });
    /// let service = layer.layer(service_fn(handler));
    /// let status = async |path| {
    ///     let request = Request::get(path).body(Full::default())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// assert_eq!(status("/export").await?, 200); // The whole burst.
    /// assert_eq!(status("/").await?, 429);
    /// assert_eq!(status("/health").await?, 200);
    /// assert_eq!(status("/dump").await?, 413); // More than the burst.
    /// # Ok(())
    /// # }
    /// ```
    pub fn cost(mut self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.policy_mut().cost = Some(Arc::new(cost));
        self
    }

    /// Returns the policy of this layer, for a stack of several guards.
    #[doc(hidden)]
    pub fn policy(&self) -> &RateLimitPolicy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut RateLimitPolicy {
        Arc::make_mut(&mut self.policy)
    }
}

palisade_guard::settings_methods!(
    RateLimitLayer,
    gauges: gauges,
    example: "RateLimitLayer::new(Quota::per_second(1))?.cost(|_| 2)" => 413 "cost_over_burst"
);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.policy.clone())
    }
}
