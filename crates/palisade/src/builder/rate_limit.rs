//! The options of the rate limit beyond one quota per client.

use super::Stack;
use palisade_core::{ConfigError, KeyExtractor, Mode, Networks, Prefix};
use palisade_rate_limit::{Policy, RateLimitLayer, ResponseHead};
use std::sync::Arc;

/// The options, as they have been set.
#[derive(Default)]
pub(super) struct RateOptions {
    wider: Vec<(Prefix, u32)>,
    wider_mode: Option<Mode>,
    networks: Vec<(Networks, Policy)>,
    settle: Option<Settle>,
    name: Option<String>,
}

type Settle = Arc<dyn Fn(&ResponseHead<'_>) -> u32 + Send + Sync>;

impl Stack {
    /// Sets the limit of a wider network: all clients that share the first bits of their address
    /// have `times` the quota of one client. See [`RateLimitLayer::wider`]. Only recorded until
    /// [`Self::wider_mode`] enforces it. Defaults to no limits of networks.
    ///
    /// ```
    /// use palisade::{Mode, Quota, Stack, rate_limit::Prefix};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let per_24 = Prefix::new(24, 128).expect("bits of an address");
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1));
    /// let stack = stack.wider(per_24, 2).wider_mode(Mode::Enforce).build()?;
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 200);
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 2])).await, 200);
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 3])).await, 429);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wider(mut self, prefix: Prefix, times: u32) -> Self {
        self.rate_options.wider.push((prefix, times));
        self
    }

    /// Sets the limits of a /56 and a /48, with 8 and 64 times the quota of an IPv6 client. See
    /// [`RateLimitLayer::ladder`]. Only recorded until [`Self::wider_mode`] enforces them. Defaults
    /// to no limits of networks.
    ///
    /// ```
    /// use palisade::{Guard, Quota, Reason, Snapshot, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let metrics = Snapshot::new();
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1)).ladder();
    /// let stack = stack.metrics(metrics.clone()).build()?;
    /// for network in 0..10 {
    ///     let peer = std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, network, 0, 0, 0, 1);
    ///     let mut request = Request::new(Empty::<Bytes>::new());
    ///     request.extensions_mut().insert(std::net::SocketAddr::new(peer.into(), 4711));
    ///     assert_eq!(status(&stack, request).await, 200);
    /// }
    /// assert_eq!(metrics.would_refuse(Guard::RateLimit, Reason::NetworkRateExceeded), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ladder(self) -> Self {
        let levels = RateLimitLayer::LADDER.into_iter();
        levels.fold(self, |stack, (prefix, times)| stack.wider(prefix, times))
    }

    /// Sets whether the limits of wider networks are enforced, only recorded, or not checked. A
    /// rate limit in shadow mode enforces none of them either. Defaults to [`Mode::Shadow`]. See
    /// [`Self::wider`] for an example.
    pub fn wider_mode(mut self, mode: Mode) -> Self {
        self.rate_options.wider_mode = Some(mode);
        self
    }

    /// Sets another policy for the clients of certain networks, such as an office or a carrier,
    /// behind each address of which are many people. See [`RateLimitLayer::quota_for`]. Defaults to
    /// the same policy for all clients.
    ///
    /// ```
    /// use palisade::{Quota, Stack, rate_limit::Networks};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let offices = Networks::parse("192.0.2.1")?;
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1));
    /// let stack = stack.quota_for(offices, Quota::per_minute(50)).build()?;
    /// for _ in 0..50 {
    ///     assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 200);
    /// }
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 429);
    /// # Ok(())
    /// # }
    /// ```
    pub fn quota_for(mut self, networks: impl Into<Networks>, policy: impl Into<Policy>) -> Self {
        let quota = (networks.into(), policy.into());
        self.rate_options.networks.push(quota);
        self
    }

    /// Sets what a request costs in the end, by the head of its response. See
    /// [`RateLimitLayer::settle`]. What another guard of the stack refuses stays as charged.
    /// Defaults to the charge at the start.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // Failed logins count, and nothing else.
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(3));
    /// let stack = stack.settle(|response| u32::from(response.status == 401)).build()?;
    /// let service = stack.layer(service_fn(async |request: Request<_>| {
    ///     let status = if request.uri().path() == "/login" { 401 } else { 200 };
    ///     Response::builder().status(status).body(Full::<Bytes>::default())
    /// }));
    /// let status = async |path| {
    ///     let request = Request::get(path).body(Empty::<Bytes>::new())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// for _ in 0..100 {
    ///     assert_eq!(status("/").await?, 200);
    /// }
    /// for _ in 0..3 {
    ///     assert_eq!(status("/login").await?, 401);
    /// }
    /// assert_eq!(status("/login").await?, 429);
    /// # Ok(())
    /// # }
    /// ```
    pub fn settle(
        mut self,
        settle: impl Fn(&ResponseHead<'_>) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.rate_options.settle = Some(Arc::new(settle));
        self
    }

    /// Names the quotas, and sends `RateLimit-Policy` and `RateLimit` with each 429. See
    /// [`RateLimitLayer::name`]. Defaults to no such fields.
    ///
    /// ```
    /// use palisade::{Quota, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().rate_limit(Quota::per_minute(1)).rate_limit_name("api").build()?;
    /// assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 200);
    /// let service = stack.layer(service_fn(echo));
    /// let refused = service.oneshot(request_from([192, 0, 2, 1])).await?;
    /// assert_eq!(refused.headers()["ratelimit"], r#""api";r=0;t=60"#);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rate_limit_name(mut self, name: impl Into<String>) -> Self {
        self.rate_options.name = Some(name.into());
        self
    }
}

impl Stack {
    /// Returns the layer of the rate limit, which admits all requests if there is no quota.
    ///
    /// # Errors
    ///
    /// If a policy cannot be counted over several nodes. All else has been checked.
    pub(super) fn rate_limit_layer(
        &self,
        client_key: Option<Arc<dyn KeyExtractor>>,
    ) -> Result<RateLimitLayer, ConfigError> {
        let (Some(policy), Some(client_key)) = (&self.rate_policy, client_key) else {
            return Ok(RateLimitLayer::with_limiter(super::Unlimited));
        };
        let clients = self.max_clients.unwrap_or(super::DEFAULT_MAX_CLIENTS);
        let layer = RateLimitLayer::sized(policy, clients)?;
        self.rate_options.apply(layer.shared_key(client_key))
    }
}

impl RateOptions {
    /// Reports the faults of a stack that has a rate limit, or has none.
    pub(super) fn check(&self, has_limit: bool, error: &mut ConfigError) {
        if !has_limit {
            let allowed = "only with a quota: set `rate_limit(quota)`, too";
            for (field, is_set) in [
                ("wider", !self.wider.is_empty()),
                ("wider_mode", self.wider_mode.is_some()),
                ("quota_for", !self.networks.is_empty()),
                ("settle", self.settle.is_some()),
                ("rate_limit_name", self.name.is_some()),
            ] {
                if is_set {
                    error.push(field, "set", allowed);
                }
            }
            return;
        }
        for (_, policy) in &self.networks {
            if let Err(policy) = policy.check() {
                let why = "the table supports no other values";
                super::check::push_faults_of(error, "quota_for", &policy, why);
            }
        }
        if let Some(name) = &self.name
            && let Err(name) = RateLimitLayer::with_limiter(super::Unlimited).name(name)
        {
            let why = "it is sent as a structured field";
            super::check::push_faults_of(error, "rate_limit", &name, why);
        }
    }

    /// Applies the options, which have been checked, to `layer`.
    ///
    /// # Errors
    ///
    /// If a policy cannot be counted over several nodes.
    fn apply(&self, mut layer: RateLimitLayer) -> Result<RateLimitLayer, ConfigError> {
        for &(prefix, times) in &self.wider {
            layer = layer.wider(prefix, times);
        }
        if let Some(mode) = self.wider_mode {
            layer = layer.wider_mode(mode);
        }
        for (networks, policy) in &self.networks {
            layer = layer.quota_for(networks.clone(), policy.clone())?;
        }
        if let Some(settle) = self.settle.clone() {
            layer = layer.settle(move |response| settle(response));
        }
        if let Some(name) = &self.name {
            layer = layer.name(name)?;
        }
        Ok(layer)
    }
}
