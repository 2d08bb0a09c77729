//! The layer of the rate limit.

use crate::{
    ClientIp, ConfigError, KeyExtractor, Limiter, Mode, Networks, Policy, Prefix, RateLimit,
    RequestHead, ResponseHead, TableLimiter,
    fields::Fields,
    fleet::FleetLimiter,
    gauges::LimiterGauges,
    options::{NetworkQuota, Options},
    policy::RateLimitPolicy,
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
    /// The limits of [`Self::ladder`]: those of a home and of a business.
    #[doc(hidden)]
    pub const LADDER: [(Prefix, u32); 2] = [
        (Prefix::new(32, 56).expect("bits of an address"), 8),
        (Prefix::new(32, 48).expect("bits of an address"), 64),
    ];

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
        Self::sized(&policy.into(), TableLimiter::DEFAULT_CAPACITY)
    }

    /// As [`Self::new`], with a table for `clients` keys.
    #[doc(hidden)]
    pub fn sized(policy: &Policy, clients: usize) -> Result<Self, ConfigError> {
        let table = TableLimiter::of_node(policy, clients)?;
        let Some(fleet) = policy.handle() else {
            return Ok(Self::with_limiter(table));
        };
        FleetLimiter::new(table, policy, fleet).map(Self::with_limiter)
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
                options: None,
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

    /// Sets the limit of a wider network: all clients that share the first bits of their address
    /// have `times` the quota of one client, in rate and burst. Each call adds a limit, or replaces
    /// that of the same bits. A family of which `prefix` keeps the whole address has no such limit.
    ///
    /// A client's own quota is charged first, then its networks from the narrowest on. A refusal
    /// charges no wider network, so one noisy client uses no more of what its neighbours share than
    /// its own quota. What a network refuses is given back to the client and to narrower networks.
    /// All are accounts of one table: a client in debt takes one word more for each limit of a
    /// network. A refusal by a network is answered 429 and recorded as `NetworkRateExceeded`.
    ///
    /// The time per request of a network is rounded up to whole microseconds: from 10,000 requests
    /// a second of one client on, the limit is noticeably lower than `times` that. 0 counts as 1.
    ///
    /// Networks are known by the address that the [extractor](KeyExtractor::address) reports:
    /// [`ClientIp`] does. A closure reports none, so requests that it counts have no limit of a
    /// network. Nor has a limiter without [`Limiter::check_accounts`], such as those of governor.
    ///
    /// ```
    /// use palisade_rate_limit::{Mode, Prefix, Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // 20 requests for each address, 40 for each /24 of IPv4, none in common for IPv6.
    /// let per_24 = Prefix::new(24, 128).expect("bits of an address");
    /// let layer = RateLimitLayer::new(Quota::per_minute(20))?;
    /// let layer = layer.wider(per_24, 2).wider_mode(Mode::Enforce);
    /// let service = layer.layer(service_fn(echo));
    /// let mut served = 0;
    /// for host in 1..=3 {
    ///     for _ in 0..20 {
    ///         let response = service.clone().oneshot(request_from([192, 0, 2, host])).await?;
    ///         served += u32::from(response.status() == 200);
    ///     }
    /// }
    /// assert_eq!(served, 40);
    /// let elsewhere = service.oneshot(request_from([192, 0, 3, 1])).await?;
    /// assert_eq!(elsewhere.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to no limits of networks.
    pub fn wider(mut self, prefix: Prefix, times: u32) -> Self {
        self.options_mut().ladder.add(prefix, times);
        self
    }

    /// Sets whether the limits of wider networks are enforced, only recorded, or not checked. A
    /// layer in [`Mode::Shadow`] enforces none of them either. Defaults to [`Mode::Shadow`],
    /// because a mobile carrier has thousands of unrelated users in one /48: enforce the limits
    /// when the metrics show that no honest client would be refused.
    ///
    /// See [`Self::wider`] for an example.
    pub fn wider_mode(mut self, mode: Mode) -> Self {
        self.options_mut().ladder.mode = mode;
        self
    }

    /// Sets limits for the networks that IPv6 subscribers get: 8 times the quota of a client for a
    /// /56, and 64 times for a /48. A home has 256 clients of a /64 each, and a business 65,536
    /// (RIPE-690 section 4.2). The same as two calls of [`Self::wider`].
    ///
    /// ```
    /// use palisade_metrics::Snapshot;
    /// use palisade_rate_limit::{Mode, Quota, RateLimitLayer};
    /// use std::net::{Ipv6Addr, SocketAddr};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let metrics = Snapshot::new();
    /// let layer = RateLimitLayer::new(Quota::per_minute(1))?.ladder().metrics(metrics.clone());
    /// let service = layer.layer(service_fn(echo));
    /// // A home uses all of its networks at once, each for one request.
    /// for network in 0..256 {
    ///     let peer = Ipv6Addr::new(0x2001, 0xdb8, 1, network, 0, 0, 0, 1);
    ///     let mut request = Request::new(Full::<Bytes>::default());
    ///     request.extensions_mut().insert(SocketAddr::new(peer.into(), 4711));
    ///     assert_eq!(service.clone().oneshot(request).await?.status(), 200);
    /// }
    /// // Until `.wider_mode(Mode::Enforce)` the refusals are recorded alone.
    /// assert_eq!(metrics.total_refused(Mode::Shadow), 248);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ladder(self) -> Self {
        let levels = Self::LADDER.into_iter();
        levels.fold(self, |layer, (prefix, times)| layer.wider(prefix, times))
    }

    /// Sets another policy for the clients of certain networks, such as the address of an office or
    /// those of a carrier, behind each of which are many people. The networks can be
    /// [replaced](Networks::reload) while the server runs. A client in several of them has the
    /// policy that was set first. Its debts are kept if it moves from one policy to another, as by
    /// [`TableLimiter::set`]. The limits of [wider networks](Self::wider) are multiples of the
    /// policy of the client, and count the clients there that have the same policy.
    ///
    /// As with [`Self::wider`], the address is the one that the extractor reports, and a closure
    /// reports none.
    ///
    /// ```
    /// use palisade_rate_limit::{Networks, Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let offices = Networks::parse("192.0.2.1  # Some 50 people.")?;
    /// let layer = RateLimitLayer::new(Quota::per_minute(1))?;
    /// let layer = layer.quota_for(offices.clone(), Quota::per_minute(50))?;
    /// let service = layer.layer(service_fn(echo));
    /// let status = async || {
    ///     let request = request_from([192, 0, 2, 1]);
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// for _ in 0..50 {
    ///     assert_eq!(status().await?, 200);
    /// }
    /// assert_eq!(status().await?, 429);
    /// offices.reload("192.0.2.0/28")?; // From a file that has changed.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If a quota is invalid, or if the limiter has one policy for all clients: see
    /// [`Limiter::with_policy`].
    pub fn quota_for(
        mut self,
        networks: impl Into<Networks>,
        policy: impl Into<Policy>,
    ) -> Result<Self, ConfigError> {
        let quota = NetworkQuota::new(networks.into(), policy.into(), &*self.policy.limiter)?;
        self.options_mut().networks.push(quota);
        Ok(self)
    }

    /// Sets what a request costs in the end, by the head of its response: more than it was charged,
    /// or less. The difference is charged at once, up to one burst, or given back, also to the
    /// limits of [wider networks](Self::wider). `settle` is called once for each request that was
    /// charged and that the handler answers; it must be quick and must not panic.
    ///
    /// A request that is dropped, panics, fails, or is refused by a guard further inside in a
    /// `Stack`, stays as charged. So charge first what must not slip through: to count failures
    /// only, charge 1 and give it back for a success. Guesses that are sent at the same time are
    /// then refused when the quota is used up, and not when the first one has failed.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = RateLimitLayer::new(Quota::per_minute(1).burst(20))?;
    /// let layer = layer.settle(|response| match response.status.as_u16() {
    ///     401 => 10, // A login that has failed.
    ///     304 => 0,
    ///     _ => response.charged,
    /// });
    /// let service = layer.layer(service_fn(async |request: Request<Full<Bytes>>| {
    ///     let status = if request.uri().path() == "/login" { 401 } else { 304 };
    ///     Response::builder().status(status).body(Full::<Bytes>::default())
    /// }));
    /// let status = async |path| {
    ///     let request = Request::get(path).body(Full::default())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// for _ in 0..100 {
    ///     assert_eq!(status("/").await?, 304);
    /// }
    /// assert_eq!(status("/login").await?, 401);
    /// assert_eq!(status("/login").await?, 401);
    /// assert_eq!(status("/login").await?, 429);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A request costs one allocation more, in a `Stack` two. A limiter without
    /// [`Limiter::correct`], such as those of governor, leaves each request charged as it is.
    /// Defaults to the charge at the start.
    pub fn settle(
        mut self,
        settle: impl Fn(&ResponseHead<'_>) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.options_mut().settle = Some(Arc::new(settle));
        self
    }

    /// Names the quotas of this layer, and sends the header fields `RateLimit-Policy` and
    /// `RateLimit` with each 429. The quotas are lists of names with parameters:
    ///
    /// - `RateLimit-Policy`: `q` is the burst, and `w` the seconds in which it is granted again. A
    ///   window of less than a second has no `w`.
    /// - `RateLimit`: `r` is the number of requests that the quota has left, and `t` the seconds
    ///   until it has one more. With a 429, those quotas are listed that refuse the request, and
    ///   `Retry-After` is not before any `t`.
    ///
    /// A second quota of the policy is `"name-2"`, and that of a [wider network](Self::wider)
    /// `"name-network"`. The key of the client is not sent (`pk`). gRPC responses have no such
    /// fields, nor has a guard that does not enforce.
    ///
    /// The fields are those of draft-ietf-httpapi-ratelimit-headers-11, which has expired on
    /// 24 November 2026 and may change. Clients that know the `limit=` form of draft 7 or
    /// `X-RateLimit-*` do not read them. `Retry-After` is for all clients.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = RateLimitLayer::new(Quota::per_second(10).burst(40))?.name("api")?;
    /// let service = layer.layer(service_fn(echo));
    /// let send = || service.clone().oneshot(request_from([192, 0, 2, 1]));
    /// for _ in 0..40 {
    ///     assert_eq!(send().await?.headers().get("ratelimit"), None);
    /// }
    /// let refused = send().await?;
    /// assert_eq!(refused.headers()["ratelimit-policy"], r#""api";q=40;w=4"#);
    /// assert_eq!(refused.headers()["ratelimit"], r#""api";r=0;t=1"#);
    /// assert_eq!(refused.headers()["retry-after"], "1");
    ///
    /// let error = RateLimitLayer::new(Quota::per_second(10))?.name("\n").unwrap_err();
    /// assert_eq!(error.faults()[0].allowed, "1 to 64 printable ASCII characters");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A limiter without [`Limiter::quotas`], such as those of governor, sends no fields. Defaults
    /// to no name and no fields.
    ///
    /// # Errors
    ///
    /// If the name has other characters than printable ASCII, none, or more than 64.
    pub fn name(mut self, name: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.options_mut().fields = Some(Fields::new(name.as_ref())?);
        Ok(self)
    }

    /// Sets whether the fields of [`Self::name`] are sent with every response of the handler to a
    /// request that is counted, and not with a 429 alone. They tell a client what it may still send
    /// at once, and an attacker as well. Responses that come from a cache have those of another
    /// request. A response with a `Retry-After` of its own gets the policy alone. Has no effect on
    /// a layer without a name. Defaults to `false`.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = RateLimitLayer::new(Quota::per_hour(100).burst(20))?;
    /// let layer = layer.name("api")?.fields_on_every_response(true);
    /// let service = layer.layer(service_fn(echo));
    /// let response = service.oneshot(request_from([192, 0, 2, 1])).await?;
    /// assert_eq!(response.headers()["ratelimit-policy"], r#""api";q=20;w=720"#);
    /// assert_eq!(response.headers()["ratelimit"], r#""api";r=19;t=36"#);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A request costs three allocations more at least.
    pub fn fields_on_every_response(mut self, on_every_response: bool) -> Self {
        self.options_mut().fields_on_every_response = on_every_response;
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

    fn options_mut(&mut self) -> &mut Options {
        Arc::make_mut(self.policy_mut().options.get_or_insert_default())
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
