//! The policy of the rate limit: the key and cost of a request, and its refusal.

use crate::{Decision, KeyExtractor, KeyOutcome, Limiter, RequestHead};
use http::{Request, StatusCode};
use http_body::Body;
use palisade_core::{Gauge, GaugeSource, Guard, Phase, Reason, Rejection, Violation};
use palisade_guard::{Facts, KeepUnread, Keys, NeverQueued, Occupancy, Policy, Refusal, Settings};
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The policy of [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone)]
pub struct RateLimitPolicy {
    pub(crate) settings: Settings,
    pub(crate) limiter: Arc<dyn Limiter>,
    pub(crate) gauges: Arc<dyn GaugeSource>,
    pub(crate) key: Arc<dyn KeyExtractor>,
    pub(crate) cost: Option<CostFn>,
}

pub(crate) type CostFn = Arc<dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync>;

/// The gauges of a limiter.
pub(crate) struct LimiterGauges {
    limiter: Arc<dyn Limiter>,
    evicted_before: u64,
    /// The last occupancy of a large table, and when it was read.
    cached: Mutex<Option<(Instant, Occupancy)>>,
}

/// How long the occupancy of a large table is cached: reading a table of a million keys takes two
/// milliseconds.
const OCCUPANCY_CACHE_TTL: Duration = Duration::from_secs(1);
/// The occupancy of a table with at least this capacity is cached.
const MIN_CACHED_CAPACITY_KEYS: u64 = 1 << 16;

/// Why a request is refused.
#[derive(Clone, Copy)]
pub(crate) enum DenyReason {
    PeerMissing,
    RateExceeded(Duration),
    OverBurst { cost: u32, burst: u32 },
}

// === RateLimitPolicy ===

impl RateLimitPolicy {
    /// Charges the client for a request, or returns why the request is denied.
    #[inline]
    pub(crate) fn check(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Result<(), DenyReason> {
        if !self.settings.is_enabled() {
            return Ok(());
        }
        let key = match keys.get(&self.key, head) {
            KeyOutcome::Key(key) => key,
            KeyOutcome::Exempt => return Ok(()),
            // Refused, or an outcome that this version does not know.
            _ => return Err(DenyReason::PeerMissing),
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(head));
        match self.limiter.check(key, cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => Err(DenyReason::RateExceeded(wait)),
            Decision::NeverPossible { burst } => Err(DenyReason::OverBurst { cost, burst }),
        }
    }

    /// Records a refusal. Returns it as an error if it is enforced.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse(&self, reason: DenyReason, facts: &Facts) -> Result<(), Refusal> {
        let (reason, status, limit, observed, wait) = match reason {
            DenyReason::PeerMissing => (
                Reason::PeerMissing,
                StatusCode::INTERNAL_SERVER_ERROR,
                0,
                0,
                None,
            ),
            DenyReason::RateExceeded(wait) => {
                let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                (
                    Reason::RateExceeded,
                    StatusCode::TOO_MANY_REQUESTS,
                    0,
                    millis,
                    Some(wait),
                )
            }
            DenyReason::OverBurst { cost, burst } => {
                let (limit, observed) = (burst.into(), cost.into());
                (
                    Reason::CostOverBurst,
                    StatusCode::PAYLOAD_TOO_LARGE,
                    limit,
                    observed,
                    None,
                )
            }
        };
        let phase = Phase::RequestHead;
        let violation = Violation::new(Guard::RateLimit, reason, phase, limit, observed);
        let mut rejection = Rejection::new(violation, status, facts.form);
        if let Some(wait) = wait {
            rejection = rejection.retry_after(wait);
        }
        self.settings.refuse_request(rejection, facts)
    }
}

impl Policy for RateLimitPolicy {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = KeepUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<(), Refusal> {
        self.check(&request.into(), keys)
            .or_else(|reason| self.refuse(reason, facts))
    }

    #[inline(always)]
    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    #[inline(always)]
    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}
}

impl fmt::Debug for RateLimitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitPolicy")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// === LimiterGauges ===

impl LimiterGauges {
    pub(crate) fn new(limiter: Arc<dyn Limiter>, evicted_before: u64) -> Self {
        Self {
            limiter,
            evicted_before,
            cached: Mutex::new(None),
        }
    }

    fn occupancy(&self) -> Option<Occupancy> {
        let now = Instant::now();
        let mut cached = self.cached.lock();
        if let Some((read_at, occupancy)) = *cached
            && now.saturating_duration_since(read_at) < OCCUPANCY_CACHE_TTL
        {
            return Some(occupancy);
        }
        let occupancy = self.limiter.occupancy()?;
        if occupancy.capacity >= MIN_CACHED_CAPACITY_KEYS {
            *cached = Some((now, occupancy));
        }
        Some(occupancy)
    }
}

impl GaugeSource for LimiterGauges {
    fn guard(&self) -> Guard {
        Guard::RateLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        if let Some(occupancy) = self.occupancy() {
            visit(Gauge::Keys, occupancy.keys);
            visit(Gauge::KeyCapacity, occupancy.capacity);
            let evicted = occupancy.evicted.saturating_sub(self.evicted_before);
            visit(Gauge::KeysEvicted, evicted);
        }
    }
}
