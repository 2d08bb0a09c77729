//! What the rate limit decides about a request.

use crate::{Decision, KeyExtractor, KeyOutcome, Limiter, RequestHead};
use http::{Request, StatusCode};
use http_body::Body;
use palisade_core::{Gauge, GaugeSource, Guard, Phase, Reason, Rejection, Violation};
use palisade_guard::{Facts, KeepsWhole, Keys, Never, Occupancy, Policy, Refusal, Settings};
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The policy of [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone)]
pub struct RateLimitPolicy {
    pub(crate) settings: Settings,
    pub(crate) limiter: Arc<dyn Limiter>,
    pub(crate) levels: Arc<dyn GaugeSource>,
    pub(crate) key: Arc<dyn KeyExtractor>,
    pub(crate) cost: Option<Cost>,
}

pub(crate) type Cost = Arc<dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync>;

/// The gauges of a limiter.
pub(crate) struct LimiterLevels {
    limiter: Arc<dyn Limiter>,
    evicted_before: u64,
    /// What was found last in a large table, and when.
    last: Mutex<Option<(Instant, Occupancy)>>,
}

/// A look at a table of a million keys takes two milliseconds. For so long one look serves all who
/// ask,
const SHARED_FOR: Duration = Duration::from_secs(1);
/// if there are so many keys.
const LARGE_TABLE: u64 = 1 << 16;

/// Why a request is refused.
#[derive(Clone, Copy)]
pub(crate) enum Denied {
    PeerMissing,
    Exceeded(Duration),
    OverBurst { cost: u32, burst: u32 },
}

// === RateLimitPolicy ===

impl RateLimitPolicy {
    /// Charges the client for a request.
    #[inline]
    pub(crate) fn check(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Result<(), Denied> {
        if !self.settings.is_on() {
            return Ok(());
        }
        let key = match keys.get(&self.key, head) {
            KeyOutcome::Key(key) => key,
            KeyOutcome::Exempt => return Ok(()),
            KeyOutcome::Refuse => return Err(Denied::PeerMissing),
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(head));
        match self.limiter.check(key, cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => Err(Denied::Exceeded(wait)),
            Decision::NeverPossible { burst } => Err(Denied::OverBurst { cost, burst }),
        }
    }

    /// Records a refusal. An error if it is enforced.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse(&self, denied: Denied, facts: &Facts) -> Result<(), Refusal> {
        let (reason, status, limit, observed, wait) = match denied {
            Denied::PeerMissing => (
                Reason::PeerMissing,
                StatusCode::INTERNAL_SERVER_ERROR,
                0,
                0,
                None,
            ),
            Denied::Exceeded(wait) => {
                let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                (
                    Reason::RateExceeded,
                    StatusCode::TOO_MANY_REQUESTS,
                    0,
                    millis,
                    Some(wait),
                )
            }
            Denied::OverBurst { cost, burst } => {
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
        self.settings.turn_away(rejection, facts)
    }
}

impl Policy for RateLimitPolicy {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type Later = Never;
    type Unread = KeepsWhole;

    #[inline(always)]
    fn listens(&self) -> bool {
        self.settings.recorder.is_on()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<(), Refusal> {
        self.check(&request.into(), keys)
            .or_else(|denied| self.refuse(denied, facts))
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

// === LimiterLevels ===

impl LimiterLevels {
    pub(crate) fn new(limiter: Arc<dyn Limiter>, evicted_before: u64) -> Self {
        Self {
            limiter,
            evicted_before,
            last: Mutex::new(None),
        }
    }

    fn occupancy(&self) -> Option<Occupancy> {
        let now = Instant::now();
        let mut last = self.last.lock();
        if let Some((at, occupancy)) = *last
            && now.saturating_duration_since(at) < SHARED_FOR
        {
            return Some(occupancy);
        }
        let occupancy = self.limiter.occupancy()?;
        if occupancy.capacity >= LARGE_TABLE {
            *last = Some((now, occupancy));
        }
        Some(occupancy)
    }
}

impl GaugeSource for LimiterLevels {
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
