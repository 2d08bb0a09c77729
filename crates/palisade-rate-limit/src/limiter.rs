//! Whatever decides, and our own one that does.

use crate::{
    ConfigError, Policy,
    quota::{BURST_BITS, MAX_QUOTAS, PERIOD_BITS},
};
use palisade_core::{ClientKey, GaugeSource};
use palisade_guard::{Clock, Denied, Gcra, Occupancy, Table};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

/// Keys in a table unless told otherwise: 8 MiB.
const CAPACITY: usize = 1 << 20;

/// Says whether a client may have its request.
///
/// [`TableLimiter`] is the one to use. With the feature `governor` the keyed limiters of that
/// crate are limiters, too.
pub trait Limiter: Send + Sync + 'static {
    /// Charges `key` with `cost` cells if there are so many left for it. Called once per request:
    /// must not block, must not panic. A cost of 0 is always admitted.
    fn check(&self, key: ClientKey, cost: u32) -> Decision;

    /// How many keys are held, for the metrics. Defaults to not saying.
    fn occupancy(&self) -> Option<Occupancy> {
        None
    }

    /// The gauges of this limiter: those that another layer has made of it, or else what `make`
    /// returns for so many keys evicted before. So layers that share a limiter count its keys once.
    #[doc(hidden)]
    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        make(0)
    }
}

/// What a [`Limiter`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request may pass and is charged for.
    Admit,
    /// Not now, and nothing was charged.
    Deny {
        /// After how long the same request would be admitted, if nothing is charged until then.
        wait: Duration,
    },
    /// Never: it costs more than the quota grants at once.
    NeverPossible {
        /// What the quota grants at once.
        burst: u32,
    },
}

/// A [`Policy`] over a table of fixed size: one atomic word per client and quota, no lock, no
/// allocation, one look at tokio's clock per check.
///
/// Put it into an `Arc` to change its policy while the server runs:
///
/// ```
/// use palisade_rate_limit::{Quota, RateLimitLayer, TableLimiter};
/// use std::sync::Arc;
/// # fn main() -> Result<(), palisade_rate_limit::ConfigError> {
/// let limiter = Arc::new(TableLimiter::new(Quota::per_second(10).burst(40))?);
/// let layer = RateLimitLayer::with_limiter(limiter.clone());
/// // Later, while the layer is at work:
/// limiter.set(Quota::per_second(5).burst(20))?;
/// # Ok(())
/// # }
/// ```
///
/// If the table is full of clients in debt, the one with the least debt is forgotten for the sake
/// of a new one: it gets back what it had used up, and the metrics count it.
pub struct TableLimiter {
    table: Table,
    clock: Clock,
    /// The quotas, the one of the longest debts first, so that it keeps its place when others are
    /// added; 0 where there is none. All of a quota is in one word, so that a change needs no lock
    /// and nobody sees half of it.
    quotas: [AtomicU64; MAX_QUOTAS],
    /// The longest debt that any quota has led to so far, in microseconds.
    max_debt: AtomicU64,
    /// The gauges, while a layer has them.
    levels: Mutex<Option<Weak<dyn GaugeSource>>>,
}

// === Limiter ===

impl<L: Limiter + ?Sized> Limiter for Arc<L> {
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        (**self).check(key, cost)
    }

    fn occupancy(&self) -> Option<Occupancy> {
        (**self).occupancy()
    }

    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        (**self).levels(make)
    }
}

// === Decision ===

impl Decision {
    fn denied(denied: Denied, gcra: Gcra) -> Self {
        match denied {
            Denied::Wait(micros) => Self::Deny {
                wait: Duration::from_micros(micros),
            },
            Denied::Never => Self::NeverPossible {
                burst: gcra.burst(),
            },
        }
    }
}

// === TableLimiter ===

impl TableLimiter {
    /// A limiter for `policy` with room for 1,048,576 keys: 8 MiB, allocated at once.
    ///
    /// # Errors
    /// If a quota makes no sense or the table could not hold its debts.
    pub fn new(policy: impl Into<Policy>) -> Result<Self, ConfigError> {
        let limiter = Self {
            table: Table::new(CAPACITY),
            clock: Clock::new(),
            quotas: Default::default(),
            max_debt: AtomicU64::new(0),
            levels: Mutex::new(None),
        };
        limiter.set(policy)?;
        Ok(limiter)
    }

    /// Room for `keys` keys, at 8 bytes each, rounded up to a power of two between 16 and
    /// 16,777,216. A client takes one for each quota of the policy, for as long as it is in debt.
    /// Defaults to 1,048,576.
    pub fn capacity(mut self, keys: usize) -> Self {
        self.table = Table::new(keys);
        self
    }

    /// Puts `policy` in place of the present one, from the next check on. What a client owes it
    /// goes on owing, in time, but from its next request on nobody more than the new quota's burst
    /// is worth: so nobody is told to wait for longer than somebody who has just used up that
    /// burst, and nobody gets a second one.
    ///
    /// Of several quotas, the one of the longest debts (burst times period) takes over what was
    /// owed to the one of the longest debts, the second to the second; if there are more than
    /// before, nobody owes the last ones anything yet.
    ///
    /// # Errors
    /// As [`Self::new`]; nothing is changed then.
    pub fn set(&self, policy: impl Into<Policy>) -> Result<(), ConfigError> {
        let quotas = policy.into().compile()?;
        let max_debt = quotas.first().map_or(0, |widest| widest.max_debt());
        self.max_debt.fetch_max(max_debt, Relaxed);
        let words = quotas.into_iter().map(pack).chain(std::iter::repeat(0));
        for (quota, word) in self.quotas.iter().zip(words) {
            // After `max_debt`: whoever sees this quota knows how long its debts are.
            quota.store(word, Release);
        }
        Ok(())
    }

    fn check_at(&self, key: ClientKey, cost: u32, now: u64) -> Decision {
        match unpack(&self.quotas[0]) {
            Some(only) if self.quotas[1].load(Relaxed) == 0 => self.take(key, cost, now, only),
            _ => self.check_all(key, cost, now),
        }
    }

    /// Every quota has its own word. All are asked before any is charged, and each is charged
    /// only if it still grants: a race can cost a client what it did not get, never the reverse.
    /// The quota that recovers soonest is charged first, so that this is least.
    fn check_all(&self, key: ClientKey, cost: u32, now: u64) -> Decision {
        let quotas = self.quotas.each_ref().map(unpack);
        let max_debt = self.max_debt.load(Relaxed);
        let word = |place: usize| key.account(place as u32); // Four places at most.
        let quotas = || {
            let soonest_first = quotas.iter().enumerate().rev();
            soonest_first.filter_map(|(place, gcra)| Some((place, (*gcra)?)))
        };
        let asked = quotas().fold(Decision::Admit, |verdict, (place, gcra)| {
            let debt = self.table.debt(word(place), now, max_debt);
            match gcra.decide(debt, cost) {
                Ok(_) => verdict,
                // It is denied, and what a wider quota has left is put right.
                Err(_) if debt > gcra.max_debt() => {
                    stricter(verdict, self.take(word(place), cost, now, gcra))
                }
                Err(denied) => stricter(verdict, Decision::denied(denied, gcra)),
            }
        });
        if asked != Decision::Admit {
            return asked;
        }
        for (place, gcra) in quotas() {
            let taken = self.take(word(place), cost, now, gcra);
            if taken != Decision::Admit {
                return taken;
            }
        }
        Decision::Admit
    }

    fn take(&self, key: ClientKey, cost: u32, now: u64, gcra: Gcra) -> Decision {
        let decide = |debt| match gcra.decide(debt, cost) {
            Ok(debt) => Ok((Ok(()), debt)),
            // Left from a wider quota. It is written down, so that the wait of this client ends.
            Err(denied) if debt > gcra.max_debt() => Ok((Err(denied), gcra.max_debt())),
            Err(denied) => Err(denied),
        };
        match self
            .table
            .update(key, now, self.max_debt.load(Relaxed), decide)
        {
            Some(Ok(Ok(()))) => Decision::Admit,
            Some(Ok(Err(denied)) | Err(denied)) => Decision::denied(denied, gcra),
            // So many others were at this key within a few nanoseconds that it is no injustice.
            None => Decision::Deny {
                wait: Duration::from_micros(gcra.period()),
            },
        }
    }
}

impl Limiter for TableLimiter {
    fn check(&self, key: ClientKey, cost: u32) -> Decision {
        if cost == 0 {
            return Decision::Admit;
        }
        self.check_at(key, cost, self.clock.now())
    }

    fn occupancy(&self) -> Option<Occupancy> {
        Some(
            self.table
                .occupancy(self.clock.now(), self.max_debt.load(Relaxed)),
        )
    }

    fn levels(&self, make: &dyn Fn(u64) -> Arc<dyn GaugeSource>) -> Arc<dyn GaugeSource> {
        let mut known = self.levels.lock();
        if let Some(levels) = known.as_ref().and_then(Weak::upgrade) {
            return levels;
        }
        // The metrics keep the totals of gauges that are gone.
        let before = known
            .as_ref()
            .and_then(|_| self.occupancy())
            .map_or(0, |now| now.evicted);
        let made = make(before);
        *known = Some(Arc::downgrade(&made));
        made
    }
}

impl fmt::Debug for TableLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quotas: Vec<Gcra> = self.quotas.iter().filter_map(unpack).collect();
        f.debug_struct("TableLimiter")
            .field("quotas", &quotas)
            .field("table", &self.table)
            .finish()
    }
}

/// The one of two verdicts that holds if both must be heeded.
fn stricter(one: Decision, other: Decision) -> Decision {
    use Decision::{Admit, Deny, NeverPossible};
    match (one, other) {
        (Admit, verdict) | (verdict, Admit) => verdict,
        (Deny { wait: one }, Deny { wait: other }) => Deny {
            wait: one.max(other),
        },
        (NeverPossible { burst: one }, NeverPossible { burst: other }) => NeverPossible {
            burst: one.min(other),
        },
        (never @ NeverPossible { .. }, Deny { .. }) | (Deny { .. }, never) => never,
    }
}

fn pack(gcra: Gcra) -> u64 {
    (u64::from(gcra.burst()) << PERIOD_BITS) | gcra.period()
}

fn unpack(word: &AtomicU64) -> Option<Gcra> {
    const _: () = assert!(BURST_BITS + PERIOD_BITS == u64::BITS && BURST_BITS < u32::BITS);
    let word = word.load(Acquire);
    Gcra::new(
        word & ((1 << PERIOD_BITS) - 1),
        (word >> PERIOD_BITS) as u32,
    )
}
