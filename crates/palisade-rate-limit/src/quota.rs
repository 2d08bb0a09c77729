//! Quotas and policies, and their validation.

use crate::nodes::{CountsFleet, FleetHandle};
use palisade_core::ConfigError;
use palisade_guard::Gcra;
use std::{cmp::Reverse, sync::Arc, time::Duration};

/// The largest number of quotas in a [`Policy`].
pub(crate) const MAX_QUOTAS: usize = 4;
/// Bits of a packed burst. Burst and period share one word, which is replaced atomically.
pub(crate) const BURST_BITS: u32 = 24;
/// Bits of a packed period, in microseconds.
pub(crate) const PERIOD_BITS: u32 = 40;
/// The longest debt, burst times period: 12 days, which fits into a word of the table.
const MAX_DEBT_MICROS: u128 = 12 * 24 * 60 * 60 * 1_000_000;

/// A number of requests per period, and a burst.
///
/// The rate is exact and has no windows (GCRA): `per_second(10)` admits one request every 100 ms,
/// and up to the burst at once for a client without debt.
///
/// The quota is validated when a limiter is built from it; see [`ConfigError`].
///
/// ```
/// # use palisade_rate_limit::Quota;
/// Quota::per_second(10).burst(40);
/// Quota::per_hour(100).burst(5).and(Quota::per_second(1)); // Both must grant.
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a quota does nothing until a layer takes it"]
pub struct Quota {
    cells: u32,
    interval: Duration,
    burst: Option<u32>,
}

/// One to four quotas that must all grant a request. A request that one quota denies is charged to
/// none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a layer takes it"]
pub struct Policy {
    quotas: Vec<Quota>,
    fleet: Option<FleetHandle>,
}

// === Quota ===

impl Quota {
    /// Returns a quota of `cells` requests a second: at most 10,000, or 1,000,000 if the time for
    /// one request is a whole number of microseconds.
    ///
    /// ```
    /// use palisade_rate_limit::{Quota, RateLimitLayer};
    /// let error = RateLimitLayer::new(Quota::per_second(30_000)).unwrap_err(); // 33.3 µs each.
    /// assert_eq!(error.faults()[0].value, "30000 per 1s");
    /// assert!(RateLimitLayer::new(Quota::per_second(50_000)).is_ok()); // 20 µs each.
    /// ```
    pub const fn per_second(cells: u32) -> Self {
        Self {
            cells,
            interval: Duration::from_secs(1),
            burst: None,
        }
    }

    /// Returns a quota of `cells` requests a minute.
    pub const fn per_minute(cells: u32) -> Self {
        Self {
            cells,
            interval: Duration::from_secs(60),
            burst: None,
        }
    }

    /// Returns a quota of `cells` requests an hour.
    pub const fn per_hour(cells: u32) -> Self {
        Self {
            cells,
            interval: Duration::from_secs(60 * 60),
            burst: None,
        }
    }

    /// Returns a quota of one request every `period`. The period is rounded up to whole
    /// microseconds, as is the time for one request of the other quotas. The rounding must not make
    /// the quota more than 1 % slower.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let quarter = Duration::from_millis(250);
    /// let limiter = TableLimiter::new(Quota::period(quarter))?;
    /// let alice = ClientKey::of("alice");
    /// assert_eq!(limiter.check(alice, 1), Decision::Admit);
    /// assert_eq!(limiter.check(alice, 1), Decision::Deny { wait: quarter });
    /// tokio::time::advance(quarter).await;
    /// assert_eq!(limiter.check(alice, 1), Decision::Admit);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn period(period: Duration) -> Self {
        Self {
            cells: 1,
            interval: period,
            burst: None,
        }
    }

    /// Sets how many requests a client without debt may send at once: 1 to 16,777,215. A page with
    /// 30 images is 31 requests at once. The time that a whole burst takes at the quota's rate is
    /// the longest debt of a client: at most 12 days. Defaults to the number in the rate: 10 for
    /// `per_second(10)`, 100 for `per_hour(100)`, 1 for `period(..)`.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// let limiter = TableLimiter::new(Quota::per_second(10).burst(31))?;
    /// let alice = ClientKey::of("alice");
    /// assert!((0..31).all(|_| limiter.check(alice, 1) == Decision::Admit));
    /// // From here on, one every 100 ms.
    /// assert_eq!(limiter.check(alice, 1), Decision::Deny { wait: Duration::from_millis(100) });
    /// # Ok(())
    /// # }
    /// ```
    pub const fn burst(mut self, cells: u32) -> Self {
        self.burst = Some(cells);
        self
    }

    /// Returns a policy of this quota and `other`, which must both grant a request.
    ///
    /// ```
    /// use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
    /// use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_rate_limit::ConfigError> {
    /// // 100 an hour, of which 20 without a pause of 36 s, but no two within a second.
    /// let quota = Quota::per_hour(100).burst(20).and(Quota::per_second(1));
    /// let limiter = TableLimiter::new(quota)?;
    /// let alice = ClientKey::of("alice");
    /// assert_eq!(limiter.check(alice, 1), Decision::Admit);
    /// assert_eq!(limiter.check(alice, 1), Decision::Deny { wait: Duration::from_secs(1) });
    /// # Ok(())
    /// # }
    /// ```
    pub fn and(self, other: Self) -> Policy {
        Policy::from(self).and(other)
    }

    /// Returns a policy of this quota that counts each client over all nodes of `fleet`, which is a
    /// `Fleet` of the crate palisade-fleet. See [`Policy::fleet`].
    ///
    /// ```text
    /// let fleet = Fleet::redis("redis://10.0.0.5")?.nodes(8).secret(secret).start()?;
    /// let layer = RateLimitLayer::new(Quota::per_minute(100).fleet(&fleet))?;
    /// ```
    pub fn fleet<F: CountsFleet + Clone>(self, fleet: &F) -> Policy {
        Policy::from(self).fleet(fleet)
    }

    /// Returns the quota in the table's units, or passes every fault to `report`.
    fn compile(&self, mut report: impl FnMut(&'static str, String, &'static str)) -> Option<Gcra> {
        let burst = self.burst.unwrap_or(self.cells);
        let is_burst_valid = (1..1 << BURST_BITS).contains(&burst);
        if self.cells == 0 {
            report("cells", self.cells.to_string(), "1 to 4294967295");
        }
        if !is_burst_valid && (self.burst.is_some() || self.cells > 0) {
            report("burst", burst.to_string(), "1 to 16777215");
        }
        let interval_nanos = self.interval.as_nanos();
        if interval_nanos == 0 {
            report(
                "period",
                format!("{:?}", self.interval),
                "1 microsecond or more",
            );
        }
        if self.cells == 0 || interval_nanos == 0 {
            return None;
        }
        // Rounded up, so that no request is admitted early.
        let cells = u128::from(self.cells);
        let period = interval_nanos.div_ceil(cells * 1000);
        if period * cells * 1000 * 100 > interval_nanos * 101 {
            let value = format!("{} per {:?}", self.cells, self.interval);
            let allowed = "at most 10000 per second, or 1000000 per second if the time for one \
                           is a whole number of microseconds";
            report("rate", value, allowed);
            return None;
        }
        if period * u128::from(burst) > MAX_DEBT_MICROS {
            let value = format!("{burst} x {:?}", self.interval / self.cells);
            report("burst x period", value, "at most 12 days");
            return None;
        }
        if is_burst_valid {
            Gcra::new(u64::try_from(period).ok()?, burst)
        } else {
            None
        }
    }
}

// === Policy ===

impl Policy {
    /// Adds a quota.
    ///
    /// ```
    /// use palisade_rate_limit::Quota;
    /// let three = Quota::per_second(10).and(Quota::per_minute(100)).and(Quota::per_hour(1_000));
    /// assert!(three.check().is_ok());
    /// let policy = three.and(Quota::per_hour(2_000)).and(Quota::per_hour(3_000));
    /// let error = policy.check().unwrap_err();
    /// let text = "invalid rate limit:\n  quotas is 5, allowed is 1 to 4 quotas";
    /// assert_eq!(error.to_string(), text);
    /// ```
    pub fn and(mut self, quota: Quota) -> Self {
        self.quotas.push(quota);
        self
    }

    /// Counts each client over all nodes of `fleet`, which is a `Fleet` of the crate
    /// palisade-fleet. The policy then admits on all nodes together what it would admit on one.
    /// Defaults to none: each node counts alone.
    ///
    /// ```text
    /// let quotas = Quota::per_second(10).and(Quota::per_hour(5_000));
    /// let layer = RateLimitLayer::new(quotas.fleet(&fleet.named("search")))?;
    /// ```
    ///
    /// Exact in the long run. With N nodes, what is admitted at once exceeds the burst B of a quota
    /// by 2·N·*a* cells at most, where *a* is B / 4N, but 1 at least. A request may wait for an
    /// answer of the store, 5 ms at most. Dropped meanwhile, it stays charged.
    ///
    /// The policy fits into a [`RateLimitLayer`](crate::RateLimitLayer), its
    /// [`quota_for`](crate::RateLimitLayer::quota_for), or a `Stack`. A bare
    /// [`TableLimiter`](crate::TableLimiter) cannot wait, and refuses it with an error. So does a
    /// layer if another policy of the fleet has the same name.
    pub fn fleet<F: CountsFleet + Clone>(mut self, fleet: &F) -> Self {
        self.fleet = Some(FleetHandle(Arc::new(fleet.clone())));
        self
    }

    /// Returns what counts the policy over several nodes.
    pub(crate) fn handle(&self) -> Option<&FleetHandle> {
        self.fleet.as_ref()
    }

    /// Returns an error if the policy is counted over several nodes.
    pub(crate) fn check_local(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("invalid rate limit");
        let allowed = "RateLimitLayer::new: a check of a TableLimiter cannot wait for other nodes";
        error.check(self.fleet.is_none(), "fleet", &"set", allowed);
        error.into_result()
    }

    /// Validates the policy.
    ///
    /// ```
    /// use palisade_rate_limit::Quota;
    /// let policy = Quota::per_second(0).and(Quota::per_hour(1).burst(0));
    /// let error = policy.check().unwrap_err();
    /// let text = "invalid rate limit:
    ///   quotas[0].cells is 0, allowed is 1 to 4294967295
    ///   quotas[1].burst is 0, allowed is 1 to 16777215";
    /// assert_eq!(error.to_string(), text);
    /// ```
    ///
    /// # Errors
    ///
    /// If any number is invalid. The error names every fault.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.compile().map(drop)
    }

    /// Returns the quotas in the table's units, the one with the longest debts first.
    pub(crate) fn compile(&self) -> Result<Vec<Gcra>, ConfigError> {
        let mut error = ConfigError::new("invalid rate limit");
        let mut compiled = Vec::new();
        for (index, quota) in self.quotas.iter().enumerate() {
            compiled.extend(
                quota.compile(|field, value, allowed| match &self.quotas[..] {
                    [_] => error.push(field, value, allowed),
                    _ => error.push(format!("quotas[{index}].{field}"), value, allowed),
                }),
            );
        }
        let count = self.quotas.len();
        error.check(count <= MAX_QUOTAS, "quotas", &count, "1 to 4 quotas");
        error.into_result()?;
        compiled.sort_by_key(|gcra| Reverse(gcra.max_debt()));
        Ok(compiled)
    }
}

impl From<Quota> for Policy {
    fn from(quota: Quota) -> Self {
        Self {
            quotas: vec![quota],
            fleet: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_guard::Table;

    fn gcra(quota: Quota) -> Gcra {
        Policy::from(quota).compile().unwrap()[0]
    }

    fn faults(policy: impl Into<Policy>) -> Vec<String> {
        let error = policy.into().compile().unwrap_err();
        error
            .faults()
            .iter()
            .map(|fault| fault.field.to_string())
            .collect()
    }

    #[test]
    fn each_constructor_sets_the_period_and_the_burst_it_names() {
        assert_eq!(
            gcra(Quota::per_second(10).burst(40)),
            Gcra::new(100_000, 40).unwrap()
        );
        assert_eq!(gcra(Quota::per_second(10)), Gcra::new(100_000, 10).unwrap());
        assert_eq!(
            gcra(Quota::per_minute(60)),
            Gcra::new(1_000_000, 60).unwrap()
        );
        assert_eq!(
            gcra(Quota::per_hour(3600).burst(2)),
            Gcra::new(1_000_000, 2).unwrap()
        );
        assert_eq!(
            gcra(Quota::period(Duration::from_millis(5))),
            Gcra::new(5000, 1).unwrap()
        );
        assert_eq!(
            gcra(Quota::per_second(1_000_000).burst(1)),
            Gcra::new(1, 1).unwrap()
        );
    }

    #[test]
    fn a_period_is_rounded_up_to_whole_microseconds() {
        assert_eq!(gcra(Quota::per_second(3)).period(), 333_334);
        assert_eq!(gcra(Quota::per_second(9999)).period(), 101);
        assert_eq!(
            gcra(Quota::period(Duration::from_nanos(1_000_001))).period(),
            1001
        );
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        assert_eq!(faults(Quota::per_second(0)), ["cells"]);
        assert_eq!(faults(Quota::per_second(0).burst(0)), ["cells", "burst"]);
        assert_eq!(faults(Quota::period(Duration::ZERO)), ["period"]);
        assert_eq!(faults(Quota::per_second(30_000)), ["rate"]);
        assert_eq!(faults(Quota::period(Duration::from_nanos(1))), ["rate"]);
        assert_eq!(
            faults(Quota::per_hour(1).burst(u32::MAX)),
            ["burst", "burst x period"]
        );
        assert_eq!(
            faults(Quota::period(Duration::MAX).burst(9)),
            ["burst x period"]
        );
        let policy = Quota::per_second(1)
            .and(Quota::per_second(0))
            .and(Quota::per_hour(1).burst(0));
        assert_eq!(faults(policy), ["quotas[1].cells", "quotas[2].burst"]);
        let quota = Quota::per_second(1);
        assert_eq!(
            faults(quota.and(quota).and(quota).and(quota).and(quota)),
            ["quotas"]
        );
    }

    #[test]
    fn a_fault_names_the_value_and_what_is_allowed() {
        let error = Policy::from(Quota::per_hour(1).burst(1000))
            .compile()
            .unwrap_err();
        let text = "invalid rate limit:\n  \
                    burst x period is 1000 x 3600s, allowed is at most 12 days";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn the_longest_allowed_debt_fits_into_a_word_of_the_table() {
        const { assert!(MAX_DEBT_MICROS <= Table::MAX_DEBT as u128) };
        const { assert!(MAX_DEBT_MICROS < 1 << PERIOD_BITS) };
        let twelve_days = Duration::from_secs(12 * 24 * 60 * 60);
        assert_eq!(
            u128::from(gcra(Quota::period(twelve_days)).max_debt()),
            MAX_DEBT_MICROS
        );
    }
}
