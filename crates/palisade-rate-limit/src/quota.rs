//! Quotas in plain words, and what is wrong with them.

use palisade_core::ConfigError;
use palisade_guard::Gcra;
use std::{cmp::Reverse, time::Duration};

/// The most quotas a [`Policy`] can have.
pub(crate) const MAX_QUOTAS: usize = 4;
/// Bits of a burst and of a period: both fit into one word, which can be changed at one go.
pub(crate) const BURST_BITS: u32 = 24;
pub(crate) const PERIOD_BITS: u32 = 40;
/// 12 days in microseconds, which is what fits into a word of the table.
const LONGEST: u128 = 12 * 24 * 60 * 60 * 1_000_000;

/// So many requests in such a time.
///
/// The rate is kept to exactly and without windows (GCRA): `per_second(10)` lets one request pass
/// every 100 ms, and, for a client that had a rest, as many at once as the burst says.
///
/// Values that make no sense are found when the quota is put to use; see [`ConfigError`].
///
/// ```
/// # use palisade_rate_limit::Quota;
/// Quota::per_second(10).burst(40);
/// Quota::per_hour(100).burst(5).and(Quota::per_second(1)); // Both must agree.
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    cells: u32,
    per: Duration,
    burst: Option<u32>,
}

/// One to four quotas that must all grant a request. What one of them denies is charged to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    quotas: Vec<Quota>,
}

// === Quota ===

impl Quota {
    /// `cells` requests a second; at most 10,000, or 1,000,000 if the time for one is a whole
    /// number of microseconds.
    pub const fn per_second(cells: u32) -> Self {
        Self {
            cells,
            per: Duration::from_secs(1),
            burst: None,
        }
    }

    /// `cells` requests a minute.
    pub const fn per_minute(cells: u32) -> Self {
        Self {
            cells,
            per: Duration::from_secs(60),
            burst: None,
        }
    }

    /// `cells` requests an hour.
    pub const fn per_hour(cells: u32) -> Self {
        Self {
            cells,
            per: Duration::from_secs(60 * 60),
            burst: None,
        }
    }

    /// One request every `period`. It is rounded up to whole microseconds, as is the time for one
    /// request of the other quotas, and that must not make it slower by more than 1 %.
    pub const fn period(period: Duration) -> Self {
        Self {
            cells: 1,
            per: period,
            burst: None,
        }
    }

    /// How many requests may come at once from a client that had a rest: 1 to 16,777,215. A page
    /// with 30 images is 31 requests at once. The time that so many take at the quota's rate is
    /// how long a client can be in debt: at most 12 days. Defaults to as many as the rate names:
    /// 10 for `per_second(10)`, 100 for `per_hour(100)`, 1 for `period(..)`.
    pub const fn burst(mut self, cells: u32) -> Self {
        self.burst = Some(cells);
        self
    }

    /// This quota and `other`, which must both grant a request.
    pub fn and(self, other: Self) -> Policy {
        Policy::from(self).and(other)
    }

    /// The numbers for the table; what is wrong goes to `fault`.
    fn compile(&self, mut fault: impl FnMut(&'static str, String, &'static str)) -> Option<Gcra> {
        let burst = self.burst.unwrap_or(self.cells);
        let in_burst = (1..1 << BURST_BITS).contains(&burst);
        if self.cells == 0 {
            fault("cells", self.cells.to_string(), "1 to 4294967295");
        }
        if !in_burst && (self.burst.is_some() || self.cells > 0) {
            fault("burst", burst.to_string(), "1 to 16777215");
        }
        let per = self.per.as_nanos();
        if per == 0 {
            fault("period", format!("{:?}", self.per), "1 microsecond or more");
        }
        if self.cells == 0 || per == 0 {
            return None;
        }
        // Rounded up, so that nothing is admitted early.
        let cells = u128::from(self.cells);
        let period = per.div_ceil(cells * 1000);
        if period * cells * 1000 * 100 > per * 101 {
            let value = format!("{} per {:?}", self.cells, self.per);
            let allowed = "at most 10000 per second, or 1000000 per second if the time for one \
                           is a whole number of microseconds";
            fault("rate", value, allowed);
            return None;
        }
        if period * u128::from(burst) > LONGEST {
            let value = format!("{burst} x {:?}", self.per / self.cells);
            fault("burst x period", value, "at most 12 days");
            return None;
        }
        if in_burst {
            Gcra::new(u64::try_from(period).ok()?, burst)
        } else {
            None
        }
    }
}

// === Policy ===

impl Policy {
    /// One more quota.
    pub fn and(mut self, quota: Quota) -> Self {
        self.quotas.push(quota);
        self
    }

    /// Whether a limiter can be made of it.
    ///
    /// # Errors
    ///
    /// With every number that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.compile().map(drop)
    }

    /// The numbers for the table, the quota of the longest debts first.
    pub(crate) fn compile(&self) -> Result<Vec<Gcra>, ConfigError> {
        let mut error = ConfigError::new("this rate limit cannot be");
        let mut compiled = Vec::new();
        for (place, quota) in self.quotas.iter().enumerate() {
            compiled.extend(
                quota.compile(|field, value, allowed| match &self.quotas[..] {
                    [_] => error.push(field, value, allowed),
                    _ => error.push(format!("quotas[{place}].{field}"), value, allowed),
                }),
            );
        }
        let fine = self.quotas.len() <= MAX_QUOTAS;
        error.check(fine, "quotas", &self.quotas.len(), "1 to 4 of them");
        error.into_result()?;
        compiled.sort_by_key(|gcra| Reverse(gcra.max_debt()));
        Ok(compiled)
    }
}

impl From<Quota> for Policy {
    fn from(quota: Quota) -> Self {
        Self {
            quotas: vec![quota],
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
    fn plain_words_become_the_numbers_that_they_say() {
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
    fn a_period_is_rounded_up_so_that_nothing_is_early() {
        assert_eq!(gcra(Quota::per_second(3)).period(), 333_334);
        assert_eq!(gcra(Quota::per_second(9999)).period(), 101);
        assert_eq!(
            gcra(Quota::period(Duration::from_nanos(1_000_001))).period(),
            1001
        );
    }

    #[test]
    fn every_fault_is_named_at_once() {
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
    fn a_fault_says_what_it_is_and_what_is_allowed() {
        let error = Policy::from(Quota::per_hour(1).burst(1000))
            .compile()
            .unwrap_err();
        let text = "this rate limit cannot be:\n  \
                    burst x period is 1000 x 3600s, allowed is at most 12 days";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn whatever_is_allowed_fits_into_a_word_of_the_table() {
        const { assert!(LONGEST <= Table::MAX_DEBT as u128 && LONGEST < 1 << PERIOD_BITS) };
        let twelve_days = Duration::from_secs(12 * 24 * 60 * 60);
        assert_eq!(
            u128::from(gcra(Quota::period(twelve_days)).max_debt()),
            LONGEST
        );
    }
}
