//! governor interoperability: its quotas and limiters in palisade, palisade's table in governor.

use crate::{ConfigError, Decision, Limiter, Policy, Quota};
use governor::{
    NotUntil, RateLimiter, clock, middleware::RateLimitingMiddleware, nanos::Nanos,
    state::StateStore,
};
use palisade_core::ClientKey;
use palisade_guard::Table;
use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

/// The largest cost that is passed to governor's limiters. governor's 64-bit arithmetic wraps in
/// release builds: without this bound, 5,124,097 cells of a quota of ten an hour are granted. Up
/// to this cost nothing wraps for quotas of one cell in three days or faster.
const MAX_GOVERNOR_COST_CELLS: u32 = 1 << 16;

/// A state store for a governor [`RateLimiter`] over a table of fixed size. governor's own stores
/// grow with every new key. A separate type, because [`Table`] does not depend on governor.
///
/// governor does not pass the current time to its store, so the store needs the quota: it derives
/// which debts are paid from the state that a new client would get and the longest possible debt.
///
/// ```
/// use governor::{Quota, RateLimiter, clock::DefaultClock};
/// use palisade_rate_limit::{RateLimitLayer, TableStore};
/// use std::num::NonZeroU32;
/// # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
/// let quota = Quota::per_second(NonZeroU32::new(10).unwrap());
/// let store = TableStore::new(1 << 16, quota)?;
/// let limiter = RateLimiter::<_, _, _>::new(quota, store, DefaultClock::default());
/// let layer = RateLimitLayer::with_limiter(limiter);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TableStore {
    table: Arc<Table>,
    max_debt: u64,
}

// === Quota ===

/// Keeps the rate and the burst. governor's intervals are rounded up to whole microseconds. The
/// quota is validated when a limiter is built from it.
impl From<governor::Quota> for Quota {
    fn from(quota: governor::Quota) -> Self {
        Self::period(quota.replenish_interval()).burst(quota.burst_size().get())
    }
}

impl From<governor::Quota> for Policy {
    fn from(quota: governor::Quota) -> Self {
        Quota::from(quota).into()
    }
}

// === Limiter ===

/// A cost above 65,536 counts as more than the burst, because governor's arithmetic could wrap.
/// For the same reason, quotas slower than one cell in three days are safe only with a cost of 1.
///
/// A limiter of governor has one quota for all keys, and cannot give back what it has charged. So a
/// layer with it has no limits of wider networks, no quotas for certain networks, no charges that
/// are corrected, and no `RateLimit` fields: these need a [`TableLimiter`](crate::TableLimiter).
impl<S, C, MW> Limiter for RateLimiter<ClientKey, S, C, MW>
where
    S: StateStore<Key = ClientKey> + Send + Sync + 'static,
    C: clock::Clock + Send + Sync + 'static,
    C::Instant: Send + Sync,
    MW: RateLimitingMiddleware<C::Instant, NegativeOutcome = NotUntil<C::Instant>>,
    MW: Send + Sync + 'static,
{
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        let deny = |not_until: NotUntil<C::Instant>| Decision::Deny {
            wait: not_until.wait_time_from(clock::Clock::now(self.clock())),
        };
        let outcome = match NonZeroU32::new(cost) {
            None => return Decision::Admit,
            Some(NonZeroU32::MIN) => self.check_key(&key),
            Some(cost) if cost.get() <= MAX_GOVERNOR_COST_CELLS => {
                match self.check_key_n(&key, cost) {
                    Ok(outcome) => outcome,
                    Err(insufficient) => {
                        return Decision::NeverPossible {
                            burst: insufficient.0,
                        };
                    }
                }
            }
            Some(_) => {
                return Decision::NeverPossible {
                    burst: MAX_GOVERNOR_COST_CELLS,
                };
            }
        };
        outcome.map_or_else(deny, |_| Decision::Admit)
    }
}

// === TableStore ===

impl TableStore {
    /// Creates a store with room for `keys` clients, for a limiter with `quota`. The size is
    /// rounded as in [`TableLimiter::capacity`]; each key takes 8 bytes.
    ///
    /// ```
    /// use governor::Quota;
    /// use palisade_rate_limit::TableStore;
    /// use std::time::Duration;
    /// let weekly = Quota::with_period(Duration::from_secs(7 * 24 * 60 * 60)).expect("not zero");
    /// let error = TableStore::new(1 << 16, weekly).unwrap_err();
    /// let text = "invalid rate limit:
    ///   burst x period is 604800s, allowed is at most 6 days in a governor store";
    /// assert_eq!(error.to_string(), text);
    /// ```
    ///
    /// # Errors
    /// If `quota` is invalid, or if its debts can be longer than 6 days, which is the most that
    /// this store can hold.
    ///
    /// [`TableLimiter::capacity`]: crate::TableLimiter::capacity
    pub fn new(keys: usize, quota: governor::Quota) -> Result<Self, ConfigError> {
        let burst: u64 = Policy::from(quota)
            .compile()?
            .iter()
            .map(|gcra| gcra.max_debt())
            .sum();
        // Doubled, because the time that the store derives lags by up to one burst.
        let max_debt = 2 * burst;
        let mut error = ConfigError::new("invalid rate limit");
        error.check(
            max_debt <= Table::MAX_DEBT,
            "burst x period",
            &Duration::from_micros(burst),
            "at most 6 days in a governor store",
        );
        error.into_result()?;
        Ok(Self {
            table: Arc::new(Table::new(keys)),
            max_debt,
        })
    }
}

impl StateStore for TableStore {
    type Key = ClientKey;

    fn measure_and_replace<T, F, E>(&self, key: &ClientKey, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The current time plus the cost of the request, so at most one burst ahead of it.
        let (_, fresh) = f(None)?;
        let now = (fresh.as_u64() / 1000).saturating_sub(self.max_debt / 2);
        let decide = |debt: u64| {
            let tat = (debt > 0).then(|| Nanos::new(now.saturating_add(debt).saturating_mul(1000)));
            let (value, tat) = f(tat)?;
            // Rounded up, so that nothing is admitted early.
            Ok((value, tat.as_u64().div_ceil(1000).saturating_sub(now)))
        };
        loop {
            // The `StateStore` contract has no result for a lost race, so the update is retried
            // until it succeeds.
            if let Some(result) = self.table.update(*key, now, self.max_debt, decide) {
                return result;
            }
        }
    }
}

impl fmt::Debug for TableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableStore")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
