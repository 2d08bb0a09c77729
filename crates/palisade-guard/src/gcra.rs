//! The generic cell rate algorithm (ITU-T I.371). All arithmetic on debts is here.

use crate::Table;

/// A rate and its burst. All times are microseconds, as in a [`Table`].
///
/// Every cell adds `period` to a debt, which decreases as time passes. A debt never exceeds `burst`
/// times the period. So `burst` cells are admitted at once, and then one per period.
///
/// ```
/// use palisade_guard::{Denied, Gcra};
/// let quota = Gcra::new(100_000, 2).unwrap(); // Ten per second, two at once.
/// assert_eq!(quota.decide(0, 1), Ok(100_000));
/// assert_eq!(quota.decide(100_000, 1), Ok(200_000));
/// assert_eq!(quota.decide(200_000, 1), Err(Denied::Wait(100_000)));
/// assert_eq!(quota.decide(0, 3), Err(Denied::Never));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    period: u64,
    burst: u32,
}

/// The reason for which [`Gcra::decide`] refuses cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The cells can be admitted after this many microseconds; at least 1.
    Wait(u64),
    /// The number of cells exceeds the burst, so they can never be admitted.
    Never,
}

impl Gcra {
    /// Admits one cell per `period` microseconds, and `burst` cells at once. Returns `None` if
    /// either is 0, or if their product, the largest debt, exceeds [`Table::MAX_DEBT`].
    ///
    /// ```
    /// use palisade_guard::{Gcra, Table};
    /// assert!(Gcra::new(100_000, 40).is_some()); // Ten per second, forty at once.
    /// assert!(Gcra::new(0, 40).is_none());
    /// assert!(Gcra::new(100_000, 0).is_none());
    /// assert!(Gcra::new(Table::MAX_DEBT, 2).is_none());
    /// ```
    #[inline]
    pub const fn new(period: u64, burst: u32) -> Option<Self> {
        match period.checked_mul(burst as u64) {
            Some(1..=Table::MAX_DEBT) => Some(Self { period, burst }),
            _ => None,
        }
    }

    /// Returns the microseconds per cell.
    pub const fn period(self) -> u64 {
        self.period
    }

    /// Returns the number of cells that are admitted at once.
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// Returns the largest debt under this quota, in microseconds.
    ///
    /// ```
    /// use palisade_guard::Gcra;
    /// let quota = Gcra::new(100_000, 40).expect("a valid quota");
    /// assert_eq!(quota.max_debt(), 4_000_000); // 4 s after a burst, the key has no debt.
    /// ```
    #[inline]
    pub const fn max_debt(self) -> u64 {
        self.period * self.burst as u64
    }

    /// Returns the new debt of a key that has `debt` and asks for `cells`, or the reason for which
    /// the cells are refused.
    ///
    /// A debt larger than [`max_debt`](Self::max_debt) stems from another quota and counts as
    /// `max_debt`. So a change of quota neither clears a debt nor makes a key wait longer than the
    /// new quota can.
    ///
    /// ```
    /// use palisade_guard::{Denied, Gcra};
    /// let quota = Gcra::new(100_000, 4).expect("a valid quota");
    /// assert_eq!(quota.decide(0, 3), Ok(300_000));
    /// assert_eq!(quota.decide(300_000, 3), Err(Denied::Wait(200_000)));
    /// assert_eq!(quota.decide(9_000_000, 1), Err(Denied::Wait(100_000))); // Counts as 400,000.
    /// assert_eq!(quota.decide(0, 5), Err(Denied::Never));
    /// ```
    #[inline]
    pub const fn decide(self, debt: u64, cells: u32) -> Result<u64, Denied> {
        if cells > self.burst {
            return Err(Denied::Never);
        }
        let max_debt = self.max_debt();
        let debt = if debt > max_debt { max_debt } else { debt };
        // Neither term exceeds `max_debt`, and hence 2^40: this sum cannot overflow.
        let new_debt = debt + cells as u64 * self.period;
        if new_debt > max_debt {
            Err(Denied::Wait(new_debt - max_debt))
        } else {
            Ok(new_debt)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quota_whose_debts_exceed_the_table_is_rejected() {
        assert_eq!(Gcra::new(0, 1), None);
        assert_eq!(Gcra::new(1, 0), None);
        assert!(Gcra::new(Table::MAX_DEBT, 1).is_some());
        assert_eq!(Gcra::new(Table::MAX_DEBT, 2), None);
        assert_eq!(Gcra::new(u64::MAX, u32::MAX), None);
    }

    #[test]
    fn a_debt_from_a_larger_quota_is_clamped_to_the_maximum() {
        let quota = Gcra::new(1000, 10).unwrap();
        assert_eq!(quota.decide(10_000, 1), Err(Denied::Wait(1000)));
        assert_eq!(quota.decide(10_001, 1), Err(Denied::Wait(1000)));
        assert_eq!(quota.decide(u64::MAX, 10), Err(Denied::Wait(10_000)));
    }

    proptest! {
        #[test]
        fn decisions_match_the_definition(
            period in 1..=Table::MAX_DEBT, burst in 1u32.., debt: u64, cells: u32,
        ) {
            let burst = burst.min(u32::try_from(Table::MAX_DEBT / period).unwrap_or(u32::MAX));
            let quota = Gcra::new(period, burst).unwrap();
            let debt = debt % (quota.max_debt() + 1);
            let wanted = u128::from(debt) + u128::from(cells) * u128::from(period);
            let max_debt = u128::from(period) * u128::from(burst);
            match quota.decide(debt, cells) {
                Ok(new) => prop_assert!(u128::from(new) == wanted && wanted <= max_debt),
                Err(Denied::Wait(wait)) => prop_assert_eq!(u128::from(wait) + max_debt, wanted),
                Err(Denied::Never) => prop_assert!(cells > burst),
            }
        }
    }
}
