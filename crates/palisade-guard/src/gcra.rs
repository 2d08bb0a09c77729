//! The generic cell rate algorithm (ITU-T I.371), the only arithmetic there is on debts.

use crate::Table;

/// A rate and its burst, in the microseconds of a [`Table`].
///
/// Every cell adds `period` to a debt that time pays off, and no debt may pass `burst` times the
/// period. So `burst` cells pass at once, and then one in every period.
///
/// ```
/// use palisade_guard::{Denied, Gcra};
/// let quota = Gcra::new(100_000, 2).unwrap(); // Ten a second, two at once.
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

/// Why [`Gcra::decide`] says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Not before so many microseconds have passed; at least 1.
    Wait(u64),
    /// More cells than the burst: there is no debt so small that they fit.
    Never,
}

impl Gcra {
    /// One cell per `period` microseconds, `burst` cells at once. `None` if either is 0, or if
    /// their product, the largest debt they can lead to, is more than [`Table::MAX_DEBT`].
    #[inline]
    pub const fn new(period: u64, burst: u32) -> Option<Self> {
        match period.checked_mul(burst as u64) {
            Some(1..=Table::MAX_DEBT) => Some(Self { period, burst }),
            _ => None,
        }
    }

    /// Microseconds per cell.
    pub const fn period(self) -> u64 {
        self.period
    }

    /// Cells at once.
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// The largest debt this can lead to, in microseconds.
    #[inline]
    pub const fn max_debt(self) -> u64 {
        self.period * self.burst as u64
    }

    /// The debt after `cells` more for whoever has `debt`, or why there are to be none. A debt
    /// that this quota cannot have led to is left from another one and counts as the largest that
    /// it can lead to: a change of quota lets nobody off, and lets nobody wait longer than that.
    #[inline]
    pub const fn decide(self, debt: u64, cells: u32) -> Result<u64, Denied> {
        if cells > self.burst {
            return Err(Denied::Never);
        }
        let most = self.max_debt();
        let debt = if debt > most { most } else { debt };
        // Neither term is more than `most`, hence than 2^40: no sum here can overflow.
        let wanted = debt + cells as u64 * self.period;
        if wanted > most {
            Err(Denied::Wait(wanted - most))
        } else {
            Ok(wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_table_cannot_hold_is_no_quota() {
        assert_eq!(Gcra::new(0, 1), None);
        assert_eq!(Gcra::new(1, 0), None);
        assert!(Gcra::new(Table::MAX_DEBT, 1).is_some());
        assert_eq!(Gcra::new(Table::MAX_DEBT, 2), None);
        assert_eq!(Gcra::new(u64::MAX, u32::MAX), None);
    }

    #[test]
    fn a_debt_from_a_wider_quota_counts_as_the_largest_of_this_one() {
        let quota = Gcra::new(1000, 10).unwrap();
        assert_eq!(quota.decide(10_000, 1), Err(Denied::Wait(1000)));
        assert_eq!(quota.decide(10_001, 1), Err(Denied::Wait(1000)));
        assert_eq!(quota.decide(u64::MAX, 10), Err(Denied::Wait(10_000)));
    }

    proptest! {
        #[test]
        fn it_says_what_the_definition_says(
            period in 1..=Table::MAX_DEBT, burst in 1u32.., debt: u64, cells: u32,
        ) {
            let burst = burst.min(u32::try_from(Table::MAX_DEBT / period).unwrap_or(u32::MAX));
            let quota = Gcra::new(period, burst).unwrap();
            let debt = debt % (quota.max_debt() + 1);
            let wanted = u128::from(debt) + u128::from(cells) * u128::from(period);
            let most = u128::from(period) * u128::from(burst);
            match quota.decide(debt, cells) {
                Ok(new) => prop_assert!(u128::from(new) == wanted && wanted <= most),
                Err(Denied::Wait(wait)) => prop_assert_eq!(u128::from(wait) + most, wanted),
                Err(Denied::Never) => prop_assert!(cells > burst),
            }
        }
    }
}
