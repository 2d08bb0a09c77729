//! The rules of a pace: how many bytes must arrive in how much waiting time. Pure: knows no clock,
//! body or task.
//!
//! A *stamp* is a number of nanoseconds of waiting time since the start of the body; time in which
//! the body was not awaited does not count. The rules, for chunks of `bytes[i] > 0` at the stamps
//! `at[i]`:
//!
//! - A chunk *covers* the time in which the rate in force at its arrival requires this many bytes,
//!   rounded up to a nanosecond.
//! - *Gap*: at `now` the body is too slow if `now` is `gap` or more after the last chunk, or after
//!   0 if there was none.
//! - *Rate*: at `now` the body is too slow if there is a start `s <= now`, either `grace` or the
//!   stamp of a chunk at or after `grace`, such that `now - s` is no less than the window plus the
//!   time covered by all chunks later than `s`, up to and including `now`.
//! - *Total*: at `now` the body is too slow if `now` is no less than the total plus the time that
//!   the whole length covers at the base rate, which is the rate without pressure.
//!
//! The rate rule says that over any stretch of waiting time longer than the window the rate must be
//! kept, less one window. The meter needs one number for it: the stamp up to which the chunks cover
//! the waiting time. A chunk moves this stamp by the time it covers, but at most to one window
//! after now, so that bytes which arrive early do not allow a longer silence later. The part of the
//! covered time that lies after now is the *credit*.

use crate::Pace;
use palisade_core::Reason;
use std::time::Duration;

/// Applies the rules of a pace to one body. All times are in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    gap: u64,
    window: u64,
    /// The waiting time so far.
    waited: u64,
    /// The stamp of the last chunk.
    last_chunk: u64,
    /// The stamp up to which the chunks cover the waiting time. [`NEVER`] without a rate.
    covered_until: u64,
    /// The stamp at which the credit was last full.
    credit_full_at: u64,
    /// Bytes that have arrived since the credit was last full.
    bytes_since_full: u64,
    /// The stamp at which the whole body is too late.
    total_due: u64,
}

/// A broken rule, in the units of its [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow {
    pub(crate) reason: Reason,
    pub(crate) limit: u64,
    pub(crate) observed: u64,
}

/// The stamp of an event that never happens.
const NEVER: u64 = u64::MAX;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MILLISECOND: u64 = 1_000_000;

impl Meter {
    /// Creates the meter of a body that has not been awaited yet. `length` is the length of the
    /// body, if known.
    pub(crate) fn new(pace: &Pace, length: Option<u64>) -> Self {
        let (grace, window) = (nanos(pace.grace), nanos(pace.window));
        let covered_until = pace.rate.map_or(NEVER, |_| grace.saturating_add(window));
        let total_due = match (pace.total, length) {
            (Some(total), Some(length)) => {
                let covered = pace.rate.map_or(0, |rate| covered_nanos(length, rate));
                nanos(total).saturating_add(covered)
            }
            _ => NEVER,
        };
        Self {
            gap: pace.gap.map_or(NEVER, nanos),
            window,
            waited: 0,
            last_chunk: 0,
            covered_until,
            credit_full_at: grace,
            bytes_since_full: 0,
            total_due,
        }
    }

    /// Returns the waiting time so far.
    pub(crate) fn waited(&self) -> u64 {
        self.waited
    }

    /// Advances the waiting time to `stamp`.
    pub(crate) fn advance_to(&mut self, stamp: u64) {
        self.waited = self.waited.max(stamp);
    }

    /// Sets the waiting time back to `stamp`, so that the time after it is not charged.
    pub(crate) fn rewind_to(&mut self, stamp: u64) {
        self.waited = stamp;
    }

    /// Adds `bytes` that arrived at the present stamp, while `rate` bytes per second were required.
    #[inline]
    pub(crate) fn add_bytes(&mut self, bytes: u64, rate: u64) {
        if bytes == 0 {
            return;
        }
        self.last_chunk = self.waited;
        let full = self.waited.saturating_add(self.window);
        let covered = self
            .covered_until
            .saturating_add(covered_nanos(bytes, rate));
        if covered < full {
            self.covered_until = covered;
            self.bytes_since_full = self.bytes_since_full.saturating_add(bytes);
        } else {
            // During the grace, more than one window is covered already.
            self.covered_until = self.covered_until.max(full);
            self.credit_full_at = self.credit_full_at.max(self.waited);
            self.bytes_since_full = 0;
        }
    }

    /// Returns the stamp at which the body is too slow if nothing arrives before it.
    #[inline]
    pub(crate) fn due(&self) -> u64 {
        self.gap_due().min(self.covered_until).min(self.total_due)
    }

    /// Whether the last chunk filled the credit. Always true without a rate.
    pub(crate) fn has_full_credit(&self) -> bool {
        self.bytes_since_full == 0
    }

    /// Returns the rule that is broken at the present stamp, while `rate` bytes per second are
    /// required.
    pub(crate) fn check(&self, rate: u64) -> Option<TooSlow> {
        let now = self.waited;
        let due = self.due();
        if now < due {
            return None;
        }
        let too_slow = |reason, limit, observed| {
            Some(TooSlow {
                reason,
                limit,
                observed,
            })
        };
        if due == self.gap_due() {
            let silence = now.saturating_sub(self.last_chunk);
            too_slow(
                Reason::Gap,
                self.gap / NANOS_PER_MILLISECOND,
                silence / NANOS_PER_MILLISECOND,
            )
        } else if due == self.covered_until {
            let span = now.saturating_sub(self.credit_full_at).max(1);
            let observed =
                u128::from(self.bytes_since_full) * u128::from(NANOS_PER_SECOND) / u128::from(span);
            too_slow(
                Reason::Rate,
                rate,
                u64::try_from(observed).unwrap_or(u64::MAX),
            )
        } else {
            too_slow(
                Reason::BodyTotal,
                self.total_due / NANOS_PER_MILLISECOND,
                now / NANOS_PER_MILLISECOND,
            )
        }
    }

    fn gap_due(&self) -> u64 {
        self.last_chunk.saturating_add(self.gap)
    }
}

/// Returns the time that `bytes` cover at `rate` bytes per second, rounded up.
#[inline]
fn covered_nanos(bytes: u64, rate: u64) -> u64 {
    let rate = rate.max(1);
    if let Some(product) = bytes.checked_mul(NANOS_PER_SECOND) {
        return product.div_ceil(rate);
    }
    let product = u128::from(bytes) * u128::from(NANOS_PER_SECOND);
    u64::try_from(product.div_ceil(u128::from(rate))).unwrap_or(NEVER)
}

/// Returns the whole nanoseconds of `duration`, at most 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The default rate, in bytes per second.
    const BASE_RATE: u64 = 500;

    fn seconds(count: u64) -> u64 {
        count * NANOS_PER_SECOND
    }

    fn default_meter() -> Meter {
        Meter::new(&Pace::default(), None)
    }

    /// Advances `meter` to `stamp` and returns the rule that is then broken.
    fn broken_at(meter: &mut Meter, stamp: u64) -> Option<Reason> {
        meter.advance_to(stamp);
        meter.check(BASE_RATE).map(|slow| slow.reason)
    }

    #[test]
    fn a_body_without_bytes_is_too_slow_after_the_gap() {
        let mut meter = default_meter();
        assert_eq!(meter.due(), seconds(15));
        assert_eq!(broken_at(&mut meter, seconds(15) - 1), None);
        assert_eq!(broken_at(&mut meter, seconds(15)), Some(Reason::Gap));
    }

    #[test]
    fn an_early_burst_allows_one_window_of_silence() {
        let mut meter = default_meter();
        meter.advance_to(seconds(6));
        meter.add_bytes(1 << 40, BASE_RATE);
        assert_eq!(broken_at(&mut meter, seconds(16) - 1), None);
        assert_eq!(broken_at(&mut meter, seconds(16)), Some(Reason::Rate));
        // During the grace, a burst allows no more silence than no bytes at all.
        let mut meter = default_meter();
        meter.add_bytes(u64::MAX, BASE_RATE);
        assert_eq!(meter.due(), seconds(15));
    }

    #[test]
    fn one_byte_per_window_or_per_gap_is_too_slow() {
        for step in [seconds(10), seconds(15) - NANOS_PER_MILLISECOND, seconds(1)] {
            let mut meter = default_meter();
            let mut now = 0;
            let end = loop {
                now += step;
                let due = meter.due();
                if due <= now {
                    break due;
                }
                meter.advance_to(now);
                meter.add_bytes(1, BASE_RATE);
            };
            // Each byte covers 2 ms.
            assert!(
                (seconds(15)..seconds(15) + 30 * NANOS_PER_MILLISECOND + 1).contains(&end),
                "{step}: {end}"
            );
        }
    }

    #[test]
    fn one_byte_per_gap_is_enough_without_a_rate() {
        let pace = Pace::conversation();
        let mut meter = Meter::new(&pace, Some(u64::MAX));
        for round in 1..1000 {
            assert_eq!(
                broken_at(&mut meter, round * (seconds(60) - NANOS_PER_MILLISECOND)),
                None
            );
            meter.add_bytes(1, BASE_RATE);
        }
    }

    #[test]
    fn exactly_the_rate_is_enough_and_one_byte_less_is_too_slow() {
        for (bytes, ends) in [(500, false), (499, true)] {
            let mut meter = default_meter();
            let mut seen = None;
            for second in 1..100_000 {
                seen = seen.or(broken_at(&mut meter, seconds(second)));
                meter.add_bytes(bytes, BASE_RATE);
            }
            assert_eq!(seen.is_some(), ends);
        }
    }

    #[test]
    fn empty_chunks_are_not_progress() {
        let mut meter = default_meter();
        for second in 0..15 {
            assert_eq!(broken_at(&mut meter, seconds(second)), None);
            meter.add_bytes(0, BASE_RATE);
        }
        assert_eq!(broken_at(&mut meter, seconds(15)), Some(Reason::Gap));
    }

    #[test]
    fn one_byte_chunks_cover_as_much_time_as_one_chunk_of_the_same_bytes() {
        let mut whole = default_meter();
        let mut chunks = default_meter();
        for meter in [&mut whole, &mut chunks] {
            assert_eq!(broken_at(meter, seconds(14)), None);
        }
        whole.add_bytes(1000, BASE_RATE);
        for _ in 0..1000 {
            chunks.add_bytes(1, BASE_RATE);
        }
        assert_eq!(whole.due(), seconds(17));
        assert_eq!(chunks.due(), seconds(17));
    }

    #[test]
    fn a_higher_rate_applies_to_bytes_that_arrive_from_then_on() {
        let mut meter = default_meter();
        meter.advance_to(seconds(14));
        meter.add_bytes(500, BASE_RATE * 8);
        assert_eq!(meter.due(), seconds(15) + NANOS_PER_SECOND / 8);
    }

    #[test]
    fn a_total_limits_a_body_of_known_length_only() {
        let pace = Pace::builder()
            .total(Duration::from_secs(3))
            .build()
            .expect("the pace is valid");
        let mut meter = Meter::new(&pace, Some(1000));
        meter.advance_to(seconds(4));
        meter.add_bytes(400, BASE_RATE);
        assert_eq!(broken_at(&mut meter, seconds(5) - 1), None);
        meter.advance_to(seconds(5));
        let slow = TooSlow {
            reason: Reason::BodyTotal,
            limit: 5000,
            observed: 5000,
        };
        assert_eq!(meter.check(BASE_RATE), Some(slow));
        assert_eq!(Meter::new(&pace, None).total_due, NEVER);
    }

    #[test]
    fn a_broken_rule_is_reported_in_the_units_of_its_reason() {
        let mut meter = default_meter();
        meter.advance_to(seconds(14));
        meter.add_bytes(1000, BASE_RATE);
        meter.advance_to(seconds(17));
        // 1,000 bytes since the grace ended, 12 s ago.
        let slow = TooSlow {
            reason: Reason::Rate,
            limit: 500,
            observed: 83,
        };
        assert_eq!(meter.check(BASE_RATE), Some(slow));
        meter.advance_to(seconds(40));
        meter.last_chunk = seconds(20);
        meter.covered_until = seconds(50);
        let slow = TooSlow {
            reason: Reason::Gap,
            limit: 15_000,
            observed: 20_000,
        };
        assert_eq!(meter.check(BASE_RATE), Some(slow));
    }

    #[test]
    fn a_pace_that_is_off_is_never_violated() {
        let pace = Pace::off();
        let mut meter = Meter::new(&pace, Some(1));
        assert_eq!(meter.due(), NEVER);
        assert_eq!(broken_at(&mut meter, NEVER - 1), None);
    }

    /// Keeps every chunk and evaluates the definition in the module docs.
    struct Oracle {
        pace: Pace,
        length: Option<u64>,
        /// The stamp, bytes and rate of each chunk.
        chunks: Vec<(u64, u64, u64)>,
    }

    impl Oracle {
        fn covered_nanos(bytes: u64, rate: u64) -> u128 {
            (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate))
        }

        fn broken_rules(&self, now: u64) -> Vec<Reason> {
            let now = u128::from(now);
            let mut broken = Vec::new();
            let last = self
                .chunks
                .iter()
                .map(|(at, ..)| u128::from(*at))
                .max()
                .unwrap_or(0);
            if self
                .pace
                .gap
                .is_some_and(|gap| now - last >= gap.as_nanos())
            {
                broken.push(Reason::Gap);
            }
            let grace = self.pace.grace.as_nanos();
            let starts = self.chunks.iter().map(|(at, ..)| u128::from(*at));
            let mut starts = starts
                .chain([grace])
                .filter(|start| (grace..=now).contains(start));
            let short = |start: u128| {
                let later = self
                    .chunks
                    .iter()
                    .filter(|(at, ..)| u128::from(*at) > start);
                let covered: u128 = later
                    .map(|(_, bytes, rate)| Self::covered_nanos(*bytes, *rate))
                    .sum();
                now - start >= self.pace.window.as_nanos() + covered
            };
            if self.pace.rate.is_some() && starts.any(short) {
                broken.push(Reason::Rate);
            }
            if let (Some(total), Some(length)) = (self.pace.total, self.length) {
                let covered = self
                    .pace
                    .rate
                    .map_or(0, |rate| Self::covered_nanos(length, rate));
                if now >= total.as_nanos() + covered {
                    broken.push(Reason::BodyTotal);
                }
            }
            broken
        }
    }

    fn any_pace() -> impl Strategy<Value = Pace> {
        let millis = |range| {
            proptest::option::of(range).prop_map(|ms: Option<u64>| ms.map(Duration::from_millis))
        };
        (
            millis(1..20_000u64),
            proptest::option::of(prop_oneof![1..2000u64, Just(MAX_RATE)]),
            1..20_000u64,
            0..10_000u64,
            millis(1..30_000u64),
        )
            .prop_map(|(gap, rate, window, grace, total)| Pace {
                gap,
                rate,
                full_pressure_rate: None,
                window: Duration::from_millis(window),
                grace: Duration::from_millis(grace),
                total,
            })
    }

    const MAX_RATE: u64 = 1 << 30;

    /// A waiting time, the bytes that then arrive, and the factor of the rate at that time.
    fn any_step() -> impl Strategy<Value = (u64, u64, u64)> {
        let wait = prop_oneof![
            2 => Just(0u64),
            2 => 0..3u64,
            6 => (0..12_000u64).prop_map(|ms| ms * NANOS_PER_MILLISECOND),
        ];
        let bytes =
            prop_oneof![4 => 0..3u64, 6 => 0..20_000u64, 1 => any::<u64>().prop_map(|n| n >> 1)];
        (wait, bytes, 1..=8u64)
    }

    proptest! {
        #[test]
        fn the_meter_agrees_with_the_definition(
            pace in any_pace(),
            length in proptest::option::of(0..1_000_000u64),
            steps in proptest::collection::vec(any_step(), 0..40),
        ) {
            let mut meter = Meter::new(&pace, length);
            let mut oracle = Oracle { pace, length, chunks: Vec::new() };
            let mut now = 0;
            let base_rate = pace.rate.unwrap_or(1);
            for (wait, bytes, factor) in steps {
                now += wait;
                meter.advance_to(now);
                let broken = oracle.broken_rules(now);
                let too_slow = meter.check(base_rate);
                prop_assert_eq!(too_slow.is_some(), !broken.is_empty());
                if let Some(slow) = too_slow {
                    prop_assert!(broken.contains(&slow.reason));
                }
                // A rule is broken exactly at the due stamp, and not a nanosecond before.
                let due = meter.due();
                if (now + 1..NEVER).contains(&due) {
                    prop_assert!(oracle.broken_rules(due - 1).is_empty());
                    prop_assert!(!oracle.broken_rules(due).is_empty());
                }
                meter.add_bytes(bytes, base_rate * factor);
                if bytes > 0 {
                    oracle.chunks.push((now, bytes, base_rate * factor));
                }
            }
        }

        /// The rate implies a total: n bytes arrive within grace, window and n / rate.
        #[test]
        fn a_body_that_keeps_the_rate_arrives_in_time(
            pace in any_pace(),
            steps in proptest::collection::vec(any_step(), 0..40),
        ) {
            let Some(rate) = pace.rate else { return Ok(()) };
            let pace = Pace { total: None, ..pace };
            let mut meter = Meter::new(&pace, None);
            let (mut now, mut sum) = (0u64, 0u64);
            for (wait, bytes, _) in steps {
                now += wait;
                meter.advance_to(now);
                if meter.check(rate).is_some() {
                    break;
                }
                let allowance = nanos(pace.grace) + nanos(pace.window);
                let limit = allowance.saturating_add(covered_nanos(sum, rate));
                prop_assert!(now <= limit.saturating_add(40));
                meter.add_bytes(bytes, rate);
                sum = sum.saturating_add(bytes);
            }
        }
    }
}
