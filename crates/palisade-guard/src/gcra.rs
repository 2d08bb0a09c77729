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

    /// The time in microseconds by which [`times`](Self::times) may make the largest debt longer,
    /// at most.
    pub const MAX_ROUNDING: u64 = 1 << 21;

    /// Returns this quota `times` over, for a network of several clients. The period is rounded up
    /// to whole microseconds, and the burst is as many fewer cells, so the result is at most
    /// `times` this quota. The largest debt is the same, or longer by the rounding, which is less
    /// than [`MAX_ROUNDING`](Self::MAX_ROUNDING). 0 counts as 1.
    ///
    /// ```
    /// use palisade_guard::Gcra;
    /// let quota = Gcra::new(100_000, 40).expect("a valid quota");
    /// assert_eq!(Some(quota.times(8)), Gcra::new(12_500, 320));
    /// let fast = Gcra::new(100, 40).expect("a valid quota");
    /// assert_eq!(Some(fast.times(64)), Gcra::new(2, 2_000)); // 1.56 µs, and 2,560 cells.
    /// ```
    #[inline]
    pub const fn times(self, times: u32) -> Self {
        if times <= 1 {
            return self;
        }
        let max_debt = self.max_debt();
        let period = self.period.div_ceil(times as u64);
        // The rounding of the debt is less than `period`, and than a microsecond for each cell. So
        // it is less than the root of their product, 2^20 or so. And because `period` is rounded
        // up, these are at most `times` as many cells.
        let cells = if period * times as u64 == self.period {
            self.burst as u64 * times as u64 // One division less.
        } else {
            max_debt.div_ceil(period)
        };
        let burst = if cells > u32::MAX as u64 {
            u32::MAX
        } else {
            cells as u32
        };
        Self { period, burst }
    }

    /// Returns `share` of this quota, between 0 and 1: the rate, and the burst in whole cells, but
    /// one at least. The largest debt is about the same.
    ///
    /// ```
    /// use palisade_guard::Gcra;
    /// let quota = Gcra::new(100_000, 40).expect("a valid quota");
    /// assert_eq!(Some(quota.part(0.25)), Gcra::new(400_000, 10));
    /// assert_eq!(Some(quota.part(0.01)), Gcra::new(10_000_000, 1));
    /// assert_eq!(quota.part(1.0), quota);
    /// ```
    pub fn part(self, share: f64) -> Self {
        let share = share.clamp(f64::MIN_POSITIVE, 1.0);
        // Conversions of floats saturate. A period is below 2^40, so that `f64` has it exactly.
        let burst = ((f64::from(self.burst) * share) as u32).max(1);
        // Less than `MAX_DEBT`, which is a power of two and takes one bit more than all below it.
        let longest = (Table::MAX_DEBT - 1) / u64::from(burst);
        let longest = longest.max(self.period);
        let period = (self.period as f64 / share).ceil() as u64;
        Self {
            period: period.clamp(self.period, longest),
            burst,
        }
    }

    /// Returns the debt of a key that has `debt`, and was charged `charged` cells where `cells`
    /// would have been right. It is at least 0 and at most [`max_debt`](Self::max_debt).
    ///
    /// ```
    /// use palisade_guard::Gcra;
    /// let quota = Gcra::new(100_000, 4).expect("a valid quota");
    /// assert_eq!(quota.correct(200_000, 1, 0), 100_000);
    /// assert_eq!(quota.correct(50_000, 1, 0), 0);
    /// assert_eq!(quota.correct(100_000, 1, 3), 300_000);
    /// assert_eq!(quota.correct(100_000, 1, 10), 400_000); // One burst, and no more.
    /// ```
    #[inline]
    pub const fn correct(self, debt: u64, charged: u32, cells: u32) -> u64 {
        let max_debt = self.max_debt();
        let difference = (cells.abs_diff(charged) as u64).saturating_mul(self.period);
        let debt = if debt > max_debt { max_debt } else { debt };
        let corrected = if cells < charged {
            debt.saturating_sub(difference)
        } else {
            debt.saturating_add(difference)
        };
        if corrected > max_debt {
            max_debt
        } else {
            corrected
        }
    }

    /// Returns how many cells a key that has `debt` may use at once, and after how many
    /// microseconds it is one more; `None` if it has no debt.
    ///
    /// ```
    /// use palisade_guard::Gcra;
    /// let quota = Gcra::new(100_000, 4).expect("a valid quota");
    /// assert_eq!(quota.available(0), (4, None));
    /// assert_eq!(quota.available(100_000), (3, Some(100_000)));
    /// assert_eq!(quota.available(100_001), (2, Some(1)));
    /// assert_eq!(quota.available(400_000), (0, Some(100_000)));
    /// ```
    #[inline]
    pub const fn available(self, debt: u64) -> (u32, Option<u64>) {
        let max_debt = self.max_debt();
        if debt == 0 {
            return (self.burst, None);
        }
        let debt = if debt > max_debt { max_debt } else { debt };
        let cells = (max_debt - debt) / self.period;
        // At most `burst`, which is a `u32`.
        (
            cells as u32,
            Some(debt - (max_debt - (cells + 1) * self.period)),
        )
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

    #[test]
    fn several_times_a_quota_is_never_more_than_that() {
        let quota = Gcra::new(1, 5_000_000).unwrap();
        assert_eq!(quota.times(64), quota); // A microsecond is the shortest period.
        let longest = Gcra::new(Table::MAX_DEBT / 2, 2).unwrap();
        assert_eq!(longest.times(1 << 20).max_debt(), Table::MAX_DEBT);
        let uneven = Gcra::new(100_000, 4).unwrap().times(64);
        assert_eq!((uneven.period(), uneven.burst()), (1_563, 256));
        assert_eq!((quota.times(0), quota.times(1)), (quota, quota));
    }

    proptest! {
        #[test]
        fn a_multiple_lies_between_the_quota_and_its_multiple(
            period in 1..=Table::MAX_DEBT, burst in 1u32.., times in 1u32..,
        ) {
            let burst = burst.min(u32::try_from(Table::MAX_DEBT / period).unwrap_or(u32::MAX));
            let quota = Gcra::new(period, burst).unwrap();
            let wide = quota.times(times);
            prop_assert!(wide.period() * u64::from(times) >= period && wide.period() <= period);
            prop_assert!(wide.burst() >= burst);
            prop_assert!(u64::from(wide.burst()) <= u64::from(burst) * u64::from(times));
            prop_assert!(wide.max_debt() < quota.max_debt() + Gcra::MAX_ROUNDING);
        }

        #[test]
        fn as_many_cells_are_granted_as_are_available(
            period in 1..1_000_000u64, burst in 1..10_000u32, debt: u64,
        ) {
            let quota = Gcra::new(period, burst).unwrap();
            let debt = debt % (quota.max_debt() + 1);
            let (cells, next) = quota.available(debt);
            prop_assert!(quota.decide(debt, cells).is_ok());
            match next {
                None => prop_assert_eq!(cells, burst),
                Some(micros) => {
                    prop_assert!(quota.decide(debt, cells + 1).is_err());
                    prop_assert!((1..=period).contains(&micros));
                    prop_assert!(quota.decide(debt - micros, cells + 1).is_ok());
                    prop_assert!(quota.decide(debt - micros + 1, cells + 1).is_err());
                }
            }
        }

        #[test]
        fn what_is_charged_and_given_back_leaves_no_trace(
            period in 1..1_000_000u64, burst in 1..10_000u32, debt: u64, cells in 0..10_000u32,
        ) {
            let quota = Gcra::new(period, burst).unwrap();
            let debt = debt % (quota.max_debt() + 1);
            if let Ok(charged) = quota.decide(debt, cells) {
                prop_assert_eq!(quota.correct(charged, cells, 0), debt);
            }
            prop_assert!(quota.correct(debt, 0, cells) <= quota.max_debt());
        }

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
