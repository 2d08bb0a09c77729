//! A preset, and what is to be different from it.

mod check;

use crate::{StackLayer, stack::Layers};
use palisade_core::{ConfigError, Guard, Mode, Recorder, Rejection};
use palisade_guard::OnReject;
use std::{fmt, sync::Arc};

#[cfg(feature = "body-limit")]
use palisade_body_limit::BodyLimitLayer;
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
use palisade_client_ip::ClientIp;
#[cfg(feature = "concurrency-limit")]
use palisade_concurrency_limit::ConcurrencyLimitLayer;
#[cfg(feature = "rate-limit")]
use palisade_core::ClientKey;
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
use palisade_core::KeyExtractor;
#[cfg(feature = "rate-limit")]
use palisade_rate_limit::{Decision, Limiter, Policy, RateLimitLayer, TableLimiter};
#[cfg(feature = "slow-body")]
use palisade_slow_body::{Pace, PaceBuilder, SlowBodyLayer};
#[cfg(feature = "timeout")]
use palisade_timeout::TimeoutLayer;
#[cfg(feature = "timeout")]
use std::time::Duration;

/// Puts guards together: a preset, and what is to be different from it.
///
/// Nothing is checked before [`build`](Self::build), which then names every fault at once.
#[must_use = "nothing is guarded before `build`, and by nothing but the layer it returns"]
pub struct Stack {
    preset: Preset,
    modes: Vec<(Option<Guard>, Mode)>,
    recorder: Option<Recorder>,
    on_reject: Option<OnReject>,
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    client: Option<Arc<dyn KeyExtractor>>,
    #[cfg(feature = "rate-limit")]
    policy: Option<Policy>,
    #[cfg(feature = "rate-limit")]
    max_clients: Option<usize>,
    #[cfg(feature = "timeout")]
    timeout: Duration,
    #[cfg(feature = "timeout")]
    total: Option<Duration>,
    #[cfg(feature = "body-limit")]
    max_body: u64,
    #[cfg(feature = "body-limit")]
    is_grpc: bool,
    #[cfg(feature = "slow-body")]
    pace: PaceBuilder,
    #[cfg(feature = "concurrency-limit")]
    max_requests: usize,
    #[cfg(feature = "concurrency-limit")]
    max_requests_per_client: Option<usize>,
    tunes: Tunes,
}

/// Where the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preset {
    Edge,
    BehindProxy,
    Internal,
}

/// Clients that the rate limit remembers unless told otherwise.
#[cfg(feature = "rate-limit")]
const MAX_CLIENTS: usize = 1 << 20;

type Tune<L> = Option<Box<dyn FnOnce(L) -> L + Send>>;

/// What is done to each layer after everything else.
#[derive(Default)]
struct Tunes {
    #[cfg(feature = "rate-limit")]
    rate_limit: Tune<RateLimitLayer>,
    #[cfg(feature = "timeout")]
    timeout: Tune<TimeoutLayer>,
    #[cfg(feature = "body-limit")]
    body_limit: Tune<BodyLimitLayer>,
    #[cfg(feature = "slow-body")]
    slow_body: Tune<SlowBodyLayer>,
    #[cfg(feature = "concurrency-limit")]
    concurrency_limit: Tune<ConcurrencyLimitLayer>,
}

// === Stack ===

impl Stack {
    /// For a server that the internet reaches directly: the peer of a connection is the client.
    ///
    /// 30 s to the response head; 2 MiB of request body, at 500 B/s or more and never silent for
    /// 15 s; 1,024 requests at work, the last tenth of them for clients who hold few. No rate
    /// limit until you say how much is right.
    pub fn edge() -> Self {
        Self::new(Preset::Edge)
    }

    /// For a server whose peers are your own proxies. The same numbers as [`Self::edge`], but
    /// nothing goes by the peer's address, which is the same for everybody; a rate limit needs
    /// [`Self::client`] to say who is who.
    pub fn behind_proxy() -> Self {
        Self::new(Preset::BehindProxy)
    }

    /// For a server that only your own services reach: requests count, whoever sends them. The
    /// same numbers as [`Self::edge`], without a share per client.
    pub fn internal() -> Self {
        Self::new(Preset::Internal)
    }

    fn new(preset: Preset) -> Self {
        Self {
            preset,
            modes: Vec::new(),
            recorder: None,
            on_reject: None,
            #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
            client: None,
            #[cfg(feature = "rate-limit")]
            policy: None,
            #[cfg(feature = "rate-limit")]
            max_clients: None,
            #[cfg(feature = "timeout")]
            timeout: Duration::from_secs(30),
            #[cfg(feature = "timeout")]
            total: None,
            #[cfg(feature = "body-limit")]
            max_body: BodyLimitLayer::DEFAULT,
            #[cfg(feature = "body-limit")]
            is_grpc: false,
            #[cfg(feature = "slow-body")]
            pace: Pace::builder(),
            #[cfg(feature = "concurrency-limit")]
            max_requests: 1024,
            #[cfg(feature = "concurrency-limit")]
            max_requests_per_client: None,
            tunes: Tunes::default(),
        }
    }

    /// Tells `metrics` of everything that any guard does. Defaults to nobody.
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = Some(metrics.into());
        self
    }

    /// The mode of all guards, those named by [`Self::mode_of`] before included. Begin with
    /// [`Mode::Shadow`] to see what would be refused. Defaults to [`Mode::Enforce`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.modes.push((None, mode));
        self
    }

    /// The mode of one request guard. The guard of connections has a mode of its own. Defaults to
    /// the mode of all.
    pub fn mode_of(mut self, guard: Guard, mode: Mode) -> Self {
        self.modes.push((Some(guard), mode));
        self
    }

    /// Who counts as one client for the rate limit and the shares of the concurrency limit.
    /// Defaults to [`ClientIp::peer`] at the [`edge`](Self::edge), and to nobody elsewhere.
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    pub fn client(mut self, client: impl KeyExtractor) -> Self {
        self.client = Some(Arc::new(client));
        self
    }

    /// How many requests one client may send. Defaults to no limit.
    #[cfg(feature = "rate-limit")]
    pub fn rate_limit(mut self, policy: impl Into<Policy>) -> Self {
        self.policy = Some(policy.into());
        self
    }

    /// How many clients the rate limit remembers, at 8 bytes each, allocated at once; where there
    /// are more, those who owe least are forgotten. Defaults to 1,048,576, which are 8 MiB.
    #[cfg(feature = "rate-limit")]
    pub fn max_clients(mut self, clients: usize) -> Self {
        self.max_clients = Some(clients);
        self
    }

    /// How long the response head may take. Defaults to 30 s.
    #[cfg(feature = "timeout")]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a response may take until its last frame. Defaults to no limit.
    #[cfg(feature = "timeout")]
    pub fn total_timeout(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }

    /// How many bytes a request body may have. axum's extractors have a limit of their own, of 2
    /// MiB: with more here, set `axum::extract::DefaultBodyLimit` as well; with the features `axum`
    /// and `tracing` a log line says so once. Defaults to 2 MiB.
    #[cfg(feature = "body-limit")]
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.max_body = bytes;
        self
    }

    /// The handlers are gRPC services: [`Self::max_body`] holds for each message, and a stream may
    /// have any number of them. See [`BodyLimitLayer::grpc`] for what else that means. Defaults to
    /// one limit for the whole body.
    #[cfg(feature = "body-limit")]
    pub fn grpc(mut self) -> Self {
        self.is_grpc = true;
        self
    }

    /// How fast request bodies must come. Defaults to [`Pace::default`].
    #[cfg(feature = "slow-body")]
    pub fn pace(mut self, pace: PaceBuilder) -> Self {
        self.pace = pace;
        self
    }

    /// How many requests may be at work. Defaults to 1,024.
    #[cfg(feature = "concurrency-limit")]
    pub fn max_requests(mut self, requests: usize) -> Self {
        self.max_requests = requests;
        self
    }

    /// How many requests of one client may be present, at work or waiting for that client.
    /// Defaults to no such limit.
    #[cfg(feature = "concurrency-limit")]
    pub fn max_requests_per_client(mut self, requests: usize) -> Self {
        self.max_requests_per_client = Some(requests);
        self
    }

    /// Writes the answers to refused requests of plain HTTP in place of the defaults. See
    /// [`Rejection::into_response`](palisade_core::Rejection::into_response), which it replaces.
    pub fn on_reject(
        mut self,
        answer: impl Fn(&Rejection) -> http::Response<bytes::Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.on_reject = Some(Arc::new(answer));
        self
    }

    /// Changes the rate limit in any way its own layer allows, after all numbers, modes and metrics
    /// of the stack are set. What is set here is not checked. Defaults to no change.
    #[cfg(feature = "rate-limit")]
    pub fn tune_rate_limit(
        mut self,
        tune: impl FnOnce(RateLimitLayer) -> RateLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.rate_limit = Some(Box::new(tune));
        self
    }

    /// Changes the timeout in any way its own layer allows, after all numbers, modes and metrics
    /// of the stack are set. What is set here is not checked. Defaults to no change.
    #[cfg(feature = "timeout")]
    pub fn tune_timeout(
        mut self,
        tune: impl FnOnce(TimeoutLayer) -> TimeoutLayer + Send + 'static,
    ) -> Self {
        self.tunes.timeout = Some(Box::new(tune));
        self
    }

    /// Changes the body limit in any way its own layer allows, after all numbers, modes and metrics
    /// of the stack are set. What is set here is not checked. Defaults to no change.
    #[cfg(feature = "body-limit")]
    pub fn tune_body_limit(
        mut self,
        tune: impl FnOnce(BodyLimitLayer) -> BodyLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.body_limit = Some(Box::new(tune));
        self
    }

    /// Changes the slow-body guard in any way its own layer allows, after all numbers, modes and
    /// metrics of the stack are set. What is set here is not checked. Defaults to no change.
    #[cfg(feature = "slow-body")]
    pub fn tune_slow_body(
        mut self,
        tune: impl FnOnce(SlowBodyLayer) -> SlowBodyLayer + Send + 'static,
    ) -> Self {
        self.tunes.slow_body = Some(Box::new(tune));
        self
    }

    /// Changes the concurrency limit in any way its own layer allows, after all numbers, modes and
    /// metrics of the stack are set. What is set here is not checked. Defaults to no change.
    #[cfg(feature = "concurrency-limit")]
    pub fn tune_concurrency_limit(
        mut self,
        tune: impl FnOnce(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer + Send + 'static,
    ) -> Self {
        self.tunes.concurrency_limit = Some(Box::new(tune));
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If any number cannot be, or two of them contradict each other: all faults at once.
    pub fn build(mut self) -> Result<StackLayer, ConfigError> {
        self.check()?;
        #[cfg(all(feature = "axum", feature = "body-limit", feature = "tracing"))]
        if self.max_body > BodyLimitLayer::DEFAULT && !self.is_grpc {
            warn_of_axum_once(self.max_body);
        }
        let tunes = std::mem::take(&mut self.tunes);
        // What is set on every layer alike.
        macro_rules! dressed {
            ($layer:expr, $guard:expr, $tune:ident) => {{
                let mut layer = $layer.mode(self.mode_for($guard));
                if let Some(recorder) = &self.recorder {
                    layer = layer.metrics(recorder.clone());
                }
                if let Some(answer) = self.on_reject.clone() {
                    layer = layer.on_reject(move |rejection| answer(rejection));
                }
                match tunes.$tune {
                    Some(tune) => tune(layer),
                    None => layer,
                }
            }};
        }
        #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
        let client = self.client_of_preset();
        let layers = Layers {
            #[cfg(feature = "rate-limit")]
            rate_limit: {
                let layer = match (&self.policy, client.clone()) {
                    (Some(policy), Some(client)) => {
                        let limiter = TableLimiter::new(policy.clone());
                        let limiter = limiter.expect("it was checked above");
                        let clients = self.max_clients.unwrap_or(MAX_CLIENTS);
                        RateLimitLayer::with_limiter(limiter.capacity(clients)).shared_key(client)
                    }
                    _ => RateLimitLayer::with_limiter(Unlimited),
                };
                dressed!(layer, Guard::RateLimit, rate_limit)
            },
            #[cfg(feature = "timeout")]
            timeout: {
                let mut layer = TimeoutLayer::new(self.timeout);
                if let Some(total) = self.total {
                    layer = layer.total(total);
                }
                dressed!(layer, Guard::Timeout, timeout)
            },
            #[cfg(feature = "body-limit")]
            body_limit: {
                let mut layer = BodyLimitLayer::new(self.max_body);
                if self.is_grpc {
                    layer = layer.grpc();
                }
                dressed!(layer, Guard::BodyLimit, body_limit)
            },
            #[cfg(feature = "slow-body")]
            slow_body: {
                let pace = self.pace.build().expect("it was checked above");
                let layer = SlowBodyLayer::new().request(pace);
                dressed!(layer, Guard::SlowBody, slow_body)
            },
            #[cfg(feature = "concurrency-limit")]
            concurrency_limit: {
                let mut layer = ConcurrencyLimitLayer::new(self.max_requests);
                if let Some(client) = client {
                    layer = layer.fairness().shared_client(client);
                }
                if let Some(requests) = self.max_requests_per_client {
                    layer = layer.per_client(requests);
                }
                dressed!(layer, Guard::ConcurrencyLimit, concurrency_limit)
            },
        };
        Ok(layers.stack())
    }

    fn mode_for(&self, guard: Guard) -> Mode {
        #[cfg(feature = "rate-limit")]
        if guard == Guard::RateLimit && self.policy.is_none() {
            return Mode::Off;
        }
        let said = self.modes.iter().rev();
        let said = said
            .clone()
            .find(|(one, _)| one.is_none_or(|one| one == guard));
        said.map(|(_, mode)| *mode).unwrap_or_default()
    }

    /// Who counts as one client, or nobody.
    #[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
    fn client_of_preset(&self) -> Option<Arc<dyn KeyExtractor>> {
        match (&self.client, self.preset) {
            (Some(client), _) => Some(client.clone()),
            (None, Preset::Edge) => Some(Arc::new(ClientIp::peer())),
            (None, Preset::BehindProxy | Preset::Internal) => None,
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("preset", &self.preset)
            .finish_non_exhaustive()
    }
}

#[cfg(all(feature = "axum", feature = "body-limit", feature = "tracing"))]
fn warn_of_axum_once(max_body: u64) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            target: "palisade",
            max_body,
            "axum's extractors take no more than 2 MiB unless `axum::extract::DefaultBodyLimit` is \
             set as well"
        );
    });
}

// === Unlimited ===

/// Stands in where no rate limit was asked for.
#[cfg(feature = "rate-limit")]
struct Unlimited;

#[cfg(feature = "rate-limit")]
impl Limiter for Unlimited {
    fn check(&self, _key: ClientKey, _cost: u32) -> Decision {
        Decision::Admit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(
        feature = "rate-limit",
        feature = "timeout",
        feature = "slow-body",
        feature = "concurrency-limit"
    ))]
    fn every_fault_is_named_at_once() {
        let error = Stack::behind_proxy()
            .rate_limit(palisade_rate_limit::Quota::per_second(0))
            .timeout(Duration::ZERO)
            .pace(Pace::builder().rate(0))
            .max_requests(0)
            .build()
            .unwrap_err();
        let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
        assert_eq!(fields[0], "rate_limit");
        assert!(fields[1].starts_with("rate_limit."));
        assert_eq!(
            fields[fields.len() - 3..],
            ["timeout", "pace.rate", "max_requests"]
        );
        assert_eq!(error.to_string().lines().count(), 1 + fields.len());
    }

    #[test]
    #[cfg(feature = "timeout")]
    fn a_total_below_the_time_to_the_head_is_a_contradiction() {
        let error = Stack::edge()
            .total_timeout(Duration::from_secs(1))
            .build()
            .unwrap_err();
        assert_eq!(error.faults()[0].field, "total_timeout");
        Stack::edge()
            .total_timeout(Duration::from_secs(30))
            .build()
            .unwrap();
    }

    #[test]
    #[cfg(all(feature = "rate-limit", feature = "concurrency-limit"))]
    fn what_would_guard_nothing_or_refuse_everybody_is_a_fault() {
        let fields = |stack: Stack| -> Vec<_> {
            let error = stack.build().unwrap_err();
            error
                .faults()
                .iter()
                .map(|fault| fault.field.clone())
                .collect()
        };
        let enforced = Stack::edge().mode_of(Guard::RateLimit, Mode::Enforce);
        assert_eq!(fields(enforced), ["rate_limit"]);
        assert_eq!(
            fields(Stack::edge().tune_rate_limit(|layer| layer)),
            ["rate_limit"]
        );
        let nobody = Stack::edge().max_requests_per_client(0);
        assert_eq!(fields(nobody), ["max_requests_per_client"]);
        let everybody = Stack::internal().max_requests_per_client(9);
        assert_eq!(fields(everybody), ["max_requests_per_client"]);
    }

    #[test]
    #[cfg(all(feature = "rate-limit", feature = "timeout"))]
    fn what_would_do_nothing_is_a_fault() {
        let fields = |stack: Stack| -> Vec<_> {
            let error = stack.build().unwrap_err();
            error
                .faults()
                .iter()
                .map(|fault| fault.field.clone())
                .collect()
        };
        let limited = || Stack::edge().rate_limit(palisade_rate_limit::Quota::per_second(1));
        assert_eq!(fields(limited().max_clients(0)), ["max_clients"]);
        assert_eq!(fields(Stack::edge().max_clients(1000)), ["max_clients"]);
        limited().max_clients(1).build().unwrap();
        assert_eq!(
            fields(Stack::edge().timeout(Duration::from_nanos(1))),
            ["timeout"]
        );
        Stack::edge()
            .timeout(Duration::from_millis(1))
            .build()
            .unwrap();
        let connection = Stack::edge().mode_of(Guard::Connection, Mode::Shadow);
        assert_eq!(fields(connection), ["mode_of"]);
    }

    #[test]
    fn the_presets_build() {
        for stack in [Stack::edge(), Stack::behind_proxy(), Stack::internal()] {
            stack.build().unwrap();
        }
    }

    #[test]
    fn the_last_word_on_a_mode_counts() {
        let stack = Stack::edge()
            .mode_of(Guard::Timeout, Mode::Off)
            .mode(Mode::Shadow);
        assert_eq!(stack.mode_for(Guard::Timeout), Mode::Shadow);
        let stack = stack.mode_of(Guard::Timeout, Mode::Enforce);
        assert_eq!(stack.mode_for(Guard::Timeout), Mode::Enforce);
        assert_eq!(stack.mode_for(Guard::BodyLimit), Mode::Shadow);
        // Without a policy there is nothing to enforce.
        #[cfg(feature = "rate-limit")]
        assert_eq!(stack.mode_for(Guard::RateLimit), Mode::Off);
    }
}
