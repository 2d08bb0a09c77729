//! governor's quotas and limiters here, and our table there.

use crate::{ConfigError, Decision, Limiter, Policy, Quota};
use governor::{
    NotUntil, RateLimiter, clock, middleware::RateLimitingMiddleware, nanos::Nanos,
    state::StateStore,
};
use palisade_core::ClientKey;
use palisade_guard::Table;
use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

/// The largest cost that governor's limiters are asked for. Theirs is 64-bit arithmetic that wraps
/// in release builds: without this, 5,124,097 cells of a quota of ten an hour are granted. Up to
/// this cost nothing wraps for quotas of one cell in three days or faster.
const MAX_COST: u32 = 1 << 16;

/// Clients' states for a governor [`RateLimiter`], in a table of fixed size, where governor's own
/// stores grow with every key that ever came along. It is a type of its own because a [`Table`]
/// does not know governor.
///
/// governor does not tell its store the time, so the store must know the quota: from the state
/// that a new client would get, and the longest debt there can be, it reckons what is paid.
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

/// The same rate and burst; governor's intervals are rounded up to whole microseconds. Whether the
/// table can hold it is seen where the quota is put to use.
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

/// A cost above 65,536 counts as more than the burst, because governor's arithmetic could wrap;
/// for the same reason quotas slower than one cell in three days are safe with a cost of 1 only.
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
        let answer = match NonZeroU32::new(cost) {
            None => return Decision::Admit,
            Some(NonZeroU32::MIN) => self.check_key(&key),
            Some(cost) if cost.get() <= MAX_COST => match self.check_key_n(&key, cost) {
                Ok(answer) => answer,
                Err(insufficient) => {
                    return Decision::NeverPossible {
                        burst: insufficient.0,
                    };
                }
            },
            Some(_) => return Decision::NeverPossible { burst: MAX_COST },
        };
        answer.map_or_else(deny, |_| Decision::Admit)
    }
}

// === TableStore ===

impl TableStore {
    /// Room for `keys` clients at 8 bytes each, as [`TableLimiter::capacity`] has it, for a limiter
    /// with `quota`.
    ///
    /// # Errors
    /// If the table could not hold the debts of `quota`: they may be 6 days long here.
    ///
    /// [`TableLimiter::capacity`]: crate::TableLimiter::capacity
    pub fn new(keys: usize, quota: governor::Quota) -> Result<Self, ConfigError> {
        let burst: u64 = Policy::from(quota)
            .compile()?
            .iter()
            .map(|gcra| gcra.max_debt())
            .sum();
        // Twice as much, because the store's idea of now is up to one burst behind.
        let max_debt = 2 * burst;
        let mut error = ConfigError::new("this rate limit cannot be");
        let (fine, debt) = (max_debt <= Table::MAX_DEBT, Duration::from_micros(burst));
        error.check(
            fine,
            "burst x period",
            &debt,
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
        // Now plus what the request costs, hence at most one burst after now.
        let (_, fresh) = f(None)?;
        let now = (fresh.as_u64() / 1000).saturating_sub(self.max_debt / 2);
        let decide = |debt: u64| {
            let tat = (debt > 0).then(|| Nanos::new(now.saturating_add(debt).saturating_mul(1000)));
            let (value, tat) = f(tat)?;
            // Rounded up, so that nothing is admitted early.
            Ok((value, tat.as_u64().div_ceil(1000).saturating_sub(now)))
        };
        loop {
            // governor has no word for "others were quicker", so it is tried until it is done.
            if let Some(done) = self.table.update(*key, now, self.max_debt, decide) {
                return done;
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
