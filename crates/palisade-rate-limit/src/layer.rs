//! The layer and its service.

use crate::{
    ClientIp, ConfigError, Decision, Extracted, KeyExtractor, Limiter, Policy, RequestHead,
    ResponseFuture, TableLimiter,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{
    AnswerForm, ConnInfo, Guard, GuardBody, Level, Levels, Phase, Reason, Rejection, Settings,
    Violation, linger,
};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`RateLimit`]. Clones, and the services they make, share one limit.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    shared: Arc<Shared>,
}

/// Refuses what a client asks too fast. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    limiter: Arc<dyn Limiter>,
    levels: Arc<LimiterLevels>,
    key: Arc<dyn KeyExtractor>,
    cost: Option<Cost>,
}

type Cost = Arc<dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync>;

struct LimiterLevels(Arc<dyn Limiter>);

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
            shared: Arc::new(Shared {
                settings: Settings::default(),
                levels: Arc::new(LimiterLevels(limiter.clone())),
                limiter,
                key: Arc::new(ClientIp::peer()),
                cost: None,
            }),
        }
    }

    /// By what requests are counted: [`ClientIp`] with other options, or any closure from
    /// [`RequestHead`] to [`Extracted`].
    ///
    /// ```
    /// # use palisade_rate_limit::{ClientIp, ClientKey, Extracted, KeyExtractor, Quota};
    /// # use palisade_rate_limit::{RateLimitLayer, RequestHead};
    /// # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// // Health probes are free, everybody else counts by address.
    /// let by_ip = ClientIp::peer();
    /// let layer = RateLimitLayer::new(Quota::per_second(10))?.key(move |head: &RequestHead<'_>| {
    ///     if head.uri.path() == "/health" { Extracted::Exempt } else { by_ip.key(head) }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Never count by what a client can make up: it would get a fresh quota for every value.
    /// Defaults to [`ClientIp::peer()`].
    pub fn key(mut self, key: impl KeyExtractor) -> Self {
        Arc::make_mut(&mut self.shared).key = Arc::new(key);
        self
    }

    /// How many cells of the quota a request takes. `cost` is called once for each request that
    /// has a key: be quick, never panic. A request that costs 0 passes. One that costs more than
    /// the burst can never pass: it is answered 413 without `Retry-After`, because like a body
    /// over its limit it does not get better by waiting. Defaults to 1.
    pub fn cost(mut self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.shared).cost = Some(Arc::new(cost));
        self
    }
}

palisade_core::settings_methods!(RateLimitLayer, levels: levels);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit { inner, shared: self.shared.clone() }
    }
}

// === RateLimit ===

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<GuardBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if self.shared.settings.is_on()
            && let Err(refusal) = self.shared.check(&RequestHead::from(&request))
            && let Some(rejection) = self.shared.refuse(refusal, &request)
        {
            return self.shared.turn_away(rejection, request);
        }
        ResponseFuture::admitted(self.inner.call(request))
    }
}

// === Shared ===

/// Why a request is refused.
enum Refusal {
    PeerMissing,
    Exceeded(Duration),
    OverBurst { cost: u32, burst: u32 },
}

impl Shared {
    #[inline]
    fn check(&self, head: &RequestHead<'_>) -> Result<(), Refusal> {
        let key = match self.key.key(head) {
            Extracted::Key(key) => key,
            Extracted::Exempt => return Ok(()),
            Extracted::Refuse => return Err(Refusal::PeerMissing),
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(head));
        match self.limiter.check(key, cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => Err(Refusal::Exceeded(wait)),
            Decision::NeverPossible { burst } => Err(Refusal::OverBurst { cost, burst }),
        }
    }

    /// Records `refusal`. `None` if the request passes all the same.
    #[cold]
    fn refuse<B: Body>(&self, refusal: Refusal, request: &Request<B>) -> Option<Rejection> {
        let rejection = refusal.rejection(AnswerForm::of(request));
        let conn = ConnInfo::of(request.extensions()).map(Arc::as_ref);
        self.settings.refuse(&rejection, conn).then_some(rejection)
    }

    #[cold]
    #[inline(never)]
    fn turn_away<F, B>(
        self: &Arc<Self>,
        rejection: Rejection,
        request: Request<B>,
    ) -> ResponseFuture<F>
    where
        B: Body + Send + 'static,
    {
        let version = request.version();
        linger(request.into_body(), version);
        ResponseFuture::refused(rejection, self.clone())
    }
}

impl Refusal {
    #[cold]
    fn rejection(self, form: AnswerForm) -> Rejection {
        let (reason, status, limit, observed, wait) = match self {
            Self::PeerMissing => {
                (Reason::PeerMissing, StatusCode::INTERNAL_SERVER_ERROR, 0, 0, None)
            }
            Self::Exceeded(wait) => {
                let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                (Reason::RateExceeded, StatusCode::TOO_MANY_REQUESTS, 0, millis, Some(wait))
            }
            Self::OverBurst { cost, burst } => {
                let (limit, observed) = (burst.into(), cost.into());
                (Reason::CostOverBurst, StatusCode::PAYLOAD_TOO_LARGE, limit, observed, None)
            }
        };
        let violation =
            Violation::new(Guard::RateLimit, reason, Phase::RequestHead, limit, observed);
        let rejection = Rejection::new(violation, status, form);
        match wait {
            Some(wait) => rejection.retry_after(wait),
            None => rejection,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

// === LimiterLevels ===

impl Levels for LimiterLevels {
    fn guard(&self) -> Guard {
        Guard::RateLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Level, u64)) {
        if let Some(occupancy) = self.0.occupancy() {
            visit(Level::Keys, occupancy.keys);
            visit(Level::KeyCapacity, occupancy.capacity);
            visit(Level::KeysEvicted, occupancy.evicted);
        }
    }
}
