//! The verdict: how much came in how much waiting. Knows no clock, no body and no task.
//!
//! All stamps are nanoseconds of waiting since the start of the body; the time in which nobody
//! waited is not in them. The rule, for pieces of `bytes[i] > 0` at the stamps `at[i]`:
//!
//! - A piece is *worth* the time in which the rate in force when it came asks for so many bytes,
//!   rounded up to a nanosecond.
//! - *Gap*: at `now` the body is too slow if `now` is `gap` or more after the last piece, or
//!   after 0 if there was none.
//! - *Rate*: at `now` the body is too slow if there is a start `s <= now`, either `grace` or the
//!   stamp of a piece at or after `grace`, such that `now - s` is no less than the window plus
//!   the worth of all pieces later than `s`, up to and including `now`.
//! - *Total*: at `now` the body is too slow if `now` is no less than the total plus the worth of
//!   the whole length at the plain rate.
//!
//! The rate's rule says that over any stretch of waiting longer than the window the rate must be
//! kept, less one window. One number carries it: the stamp up to which the waiting is paid. A
//! piece moves it by its worth, but never further than one window beyond now: that is what makes
//! early payment buy no later silence.

use crate::Pace;
use palisade_core::Reason;
use std::time::Duration;

/// What one body has to its credit.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    /// The longest gap.
    gap: u64,
    window: u64,
    /// How long it was waited for.
    waited: u64,
    /// The stamp of the last piece.
    progress: u64,
    /// The stamp up to which the waiting is paid: for ever without a rate.
    paid_until: u64,
    /// Since this stamp, when the credit was last full, so many bytes came.
    full_at: u64,
    since_full: u64,
    /// The stamp at which the body as a whole is too late.
    total: u64,
}

/// A rule that is broken, in the units of its [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow {
    pub(crate) reason: Reason,
    pub(crate) limit: u64,
    pub(crate) observed: u64,
}

const NEVER: u64 = u64::MAX;
const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

impl Meter {
    /// A body that nobody has waited for yet, and its length, if that is known.
    pub(crate) fn new(pace: &Pace, length: Option<u64>) -> Self {
        let (grace, window) = (nanos(pace.grace), nanos(pace.window));
        let paid_until = pace.rate.map_or(NEVER, |_| grace.saturating_add(window));
        let total = match (pace.total, length) {
            (Some(total), Some(length)) => {
                let worth = pace.rate.map_or(0, |rate| worth(length, rate));
                nanos(total).saturating_add(worth)
            }
            _ => NEVER,
        };
        let gap = pace.gap.map_or(NEVER, nanos);
        let (waited, progress, full_at, since_full) = (0, 0, grace, 0);
        Self {
            gap,
            window,
            waited,
            progress,
            paid_until,
            full_at,
            since_full,
            total,
        }
    }

    /// How long the body was waited for.
    pub(crate) fn waited(&self) -> u64 {
        self.waited
    }

    /// Waiting went on until `at`.
    pub(crate) fn wait_until(&mut self, at: u64) {
        self.waited = self.waited.max(at);
    }

    /// The waiting after `at` is not charged, or a verdict waits until then.
    pub(crate) fn rewind_to(&mut self, at: u64) {
        self.waited = at;
    }

    /// So many bytes came at the present stamp, while so many a second were asked for.
    #[inline]
    pub(crate) fn pay(&mut self, bytes: u64, rate: u64) {
        if bytes == 0 {
            return;
        }
        self.progress = self.waited;
        let full = self.waited.saturating_add(self.window);
        let paid = self.paid_until.saturating_add(worth(bytes, rate));
        if paid < full {
            self.paid_until = paid;
            self.since_full = self.since_full.saturating_add(bytes);
        } else {
            // Before the end of the grace it is already paid for longer than that.
            self.paid_until = self.paid_until.max(full);
            self.full_at = self.full_at.max(self.waited);
            self.since_full = 0;
        }
    }

    /// The stamp at which the body is too slow if nothing comes until then.
    #[inline]
    pub(crate) fn due(&self) -> u64 {
        self.gap_due().min(self.paid_until).min(self.total)
    }

    /// Whether the last piece settled all that was owed: the credit is full, or there is none.
    pub(crate) fn is_at_ease(&self) -> bool {
        self.since_full == 0
    }

    /// Whether the body is too slow now, while so many bytes a second are asked for.
    pub(crate) fn judge(&self, rate: u64) -> Option<TooSlow> {
        let now = self.waited;
        let due = self.due();
        if now < due {
            return None;
        }
        let slow = |reason, limit, observed| {
            Some(TooSlow {
                reason,
                limit,
                observed,
            })
        };
        if due == self.gap_due() {
            let silence = now.saturating_sub(self.progress);
            slow(Reason::Gap, self.gap / MILLISECOND, silence / MILLISECOND)
        } else if due == self.paid_until {
            let span = now.saturating_sub(self.full_at).max(1);
            let seen = u128::from(self.since_full) * u128::from(SECOND) / u128::from(span);
            slow(Reason::Rate, rate, u64::try_from(seen).unwrap_or(NEVER))
        } else {
            slow(
                Reason::BodyTotal,
                self.total / MILLISECOND,
                now / MILLISECOND,
            )
        }
    }

    fn gap_due(&self) -> u64 {
        self.progress.saturating_add(self.gap)
    }
}

/// The time for which `bytes` pay at so many a second, rounded up.
#[inline]
fn worth(bytes: u64, rate: u64) -> u64 {
    let rate = rate.max(1);
    if let Some(asked) = bytes.checked_mul(SECOND) {
        return asked.div_ceil(rate);
    }
    let asked = u128::from(bytes) * u128::from(SECOND);
    u64::try_from(asked.div_ceil(u128::from(rate))).unwrap_or(NEVER)
}

/// Whole nanoseconds; 584 years stand for anything longer.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: u64 = 500;

    fn s(seconds: u64) -> u64 {
        seconds * SECOND
    }

    fn meter() -> Meter {
        Meter::new(&Pace::default(), None)
    }

    /// Waits until `at`, and says what is wrong then.
    fn at(meter: &mut Meter, at: u64) -> Option<Reason> {
        meter.wait_until(at);
        meter.judge(PLAIN).map(|slow| slow.reason)
    }

    #[test]
    fn silence_from_the_start_ends_with_the_gap() {
        let mut meter = meter();
        assert_eq!(meter.due(), s(15));
        assert_eq!(at(&mut meter, s(15) - 1), None);
        assert_eq!(at(&mut meter, s(15)), Some(Reason::Gap));
    }

    #[test]
    fn a_burst_paid_in_advance_buys_one_window_of_silence() {
        let mut meter = meter();
        meter.wait_until(s(6));
        meter.pay(1 << 40, PLAIN);
        assert_eq!(at(&mut meter, s(16) - 1), None);
        assert_eq!(at(&mut meter, s(16)), Some(Reason::Rate));
        // Before the grace is over it buys what everybody has for nothing, and no more.
        let mut meter = super::tests::meter();
        meter.pay(u64::MAX, PLAIN);
        assert_eq!(meter.due(), s(15));
    }

    #[test]
    fn one_byte_in_a_window_or_just_within_the_gap_is_too_slow() {
        for step in [s(10), s(15) - MILLISECOND, s(1)] {
            let mut meter = meter();
            let mut now = 0;
            let end = loop {
                now += step;
                let due = meter.due();
                if due <= now {
                    break due;
                }
                meter.wait_until(now);
                meter.pay(1, PLAIN);
            };
            // The bytes pay for 2 ms each.
            assert!(
                (s(15)..s(15) + 30 * MILLISECOND + 1).contains(&end),
                "{step}: {end}"
            );
        }
    }

    #[test]
    fn one_byte_within_the_gap_is_enough_for_a_gap_alone() {
        let pace = Pace::conversation();
        let mut meter = Meter::new(&pace, Some(u64::MAX));
        for round in 1..1000 {
            assert_eq!(at(&mut meter, round * (s(60) - MILLISECOND)), None);
            meter.pay(1, PLAIN);
        }
    }

    #[test]
    fn a_client_at_exactly_the_rate_lives_and_one_a_byte_below_does_not() {
        for (bytes, ends) in [(500, false), (499, true)] {
            let mut meter = meter();
            let mut seen = None;
            for second in 1..100_000 {
                seen = seen.or(at(&mut meter, s(second)));
                meter.pay(bytes, PLAIN);
            }
            assert_eq!(seen.is_some(), ends);
        }
    }

    #[test]
    fn pieces_of_no_bytes_are_no_progress() {
        let mut meter = meter();
        for second in 0..15 {
            assert_eq!(at(&mut meter, s(second)), None);
            meter.pay(0, PLAIN);
        }
        assert_eq!(at(&mut meter, s(15)), Some(Reason::Gap));
    }

    #[test]
    fn one_byte_frames_earn_what_they_carry() {
        let mut whole = meter();
        let mut pieces = meter();
        for meter in [&mut whole, &mut pieces] {
            assert_eq!(at(meter, s(14)), None);
        }
        whole.pay(1000, PLAIN);
        for _ in 0..1000 {
            pieces.pay(1, PLAIN);
        }
        assert_eq!(whole.due(), s(17));
        assert_eq!(pieces.due(), s(17));
    }

    #[test]
    fn what_is_asked_for_under_pressure_counts_from_then_on() {
        let mut meter = meter();
        meter.wait_until(s(14));
        meter.pay(500, PLAIN * 8);
        assert_eq!(meter.due(), s(15) + SECOND / 8);
    }

    #[test]
    fn a_known_length_has_a_total_of_its_own_if_asked_for() {
        let pace = Pace::builder()
            .total(Duration::from_secs(3))
            .build()
            .expect("is a pace");
        let mut meter = Meter::new(&pace, Some(1000));
        meter.wait_until(s(4));
        meter.pay(400, PLAIN);
        assert_eq!(at(&mut meter, s(5) - 1), None);
        meter.wait_until(s(5));
        let slow = TooSlow {
            reason: Reason::BodyTotal,
            limit: 5000,
            observed: 5000,
        };
        assert_eq!(meter.judge(PLAIN), Some(slow));
        assert_eq!(Meter::new(&pace, None).total, NEVER);
    }

    #[test]
    fn what_was_seen_is_told_in_the_units_of_the_reason() {
        let mut meter = meter();
        meter.wait_until(s(14));
        meter.pay(1000, PLAIN);
        meter.wait_until(s(17));
        // 1,000 bytes since the grace ended, 12 s ago.
        let slow = TooSlow {
            reason: Reason::Rate,
            limit: 500,
            observed: 83,
        };
        assert_eq!(meter.judge(PLAIN), Some(slow));
        meter.wait_until(s(40));
        meter.progress = s(20);
        meter.paid_until = s(50);
        let slow = TooSlow {
            reason: Reason::Gap,
            limit: 15_000,
            observed: 20_000,
        };
        assert_eq!(meter.judge(PLAIN), Some(slow));
    }

    #[test]
    fn a_pace_that_is_off_is_never_broken() {
        let pace = Pace::off();
        let mut meter = Meter::new(&pace, Some(1));
        assert_eq!(meter.due(), NEVER);
        assert_eq!(at(&mut meter, NEVER - 1), None);
    }

    /// Keeps every piece and asks the definition.
    struct Oracle {
        pace: Pace,
        length: Option<u64>,
        pieces: Vec<(u64, u64, u64)>,
    }

    impl Oracle {
        fn worth(bytes: u64, rate: u64) -> u128 {
            (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate))
        }

        fn broken(&self, now: u64) -> Vec<Reason> {
            let now = u128::from(now);
            let mut broken = Vec::new();
            let last = self
                .pieces
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
            let starts = self.pieces.iter().map(|(at, ..)| u128::from(*at));
            let mut starts = starts
                .chain([grace])
                .filter(|start| (grace..=now).contains(start));
            let short = |start: u128| {
                let later = self
                    .pieces
                    .iter()
                    .filter(|(at, ..)| u128::from(*at) > start);
                let worth: u128 = later
                    .map(|(_, bytes, rate)| Self::worth(*bytes, *rate))
                    .sum();
                now - start >= self.pace.window.as_nanos() + worth
            };
            if self.pace.rate.is_some() && starts.any(short) {
                broken.push(Reason::Rate);
            }
            if let (Some(total), Some(length)) = (self.pace.total, self.length) {
                let worth = self.pace.rate.map_or(0, |rate| Self::worth(length, rate));
                if now >= total.as_nanos() + worth {
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
            proptest::option::of(prop_oneof![1..2000u64, Just(MAX)]),
            1..20_000u64,
            0..10_000u64,
            millis(1..30_000u64),
        )
            .prop_map(|(gap, rate, window, grace, total)| Pace {
                gap,
                rate,
                window: Duration::from_millis(window),
                grace: Duration::from_millis(grace),
                total,
            })
    }

    const MAX: u64 = 1 << 30;

    /// A wait, how much then came, and the pressure at that time.
    fn any_step() -> impl Strategy<Value = (u64, u64, u64)> {
        let wait = prop_oneof![
            2 => Just(0u64),
            2 => 0..3u64,
            6 => (0..12_000u64).prop_map(|ms| ms * MILLISECOND),
        ];
        let bytes =
            prop_oneof![4 => 0..3u64, 6 => 0..20_000u64, 1 => any::<u64>().prop_map(|n| n >> 1)];
        (wait, bytes, 1..=8u64)
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(
            pace in any_pace(),
            length in proptest::option::of(0..1_000_000u64),
            steps in proptest::collection::vec(any_step(), 0..40),
        ) {
            let mut meter = Meter::new(&pace, length);
            let mut oracle = Oracle { pace, length, pieces: Vec::new() };
            let mut now = 0;
            let plain = pace.rate.unwrap_or(1);
            for (wait, bytes, times) in steps {
                now += wait;
                meter.wait_until(now);
                let broken = oracle.broken(now);
                let verdict = meter.judge(plain);
                prop_assert_eq!(verdict.is_some(), !broken.is_empty());
                if let Some(slow) = verdict {
                    prop_assert!(broken.contains(&slow.reason));
                }
                // Exactly when it is due, and not a nanosecond before.
                let due = meter.due();
                if (now + 1..NEVER).contains(&due) {
                    prop_assert!(oracle.broken(due - 1).is_empty());
                    prop_assert!(!oracle.broken(due).is_empty());
                }
                meter.pay(bytes, plain * times);
                if bytes > 0 {
                    oracle.pieces.push((now, bytes, plain * times));
                }
            }
        }

        /// What the total leaves to the rate: n bytes are here within grace, window and n / rate.
        #[test]
        fn whoever_keeps_the_rate_is_done_in_time(
            pace in any_pace(),
            steps in proptest::collection::vec(any_step(), 0..40),
        ) {
            let Some(rate) = pace.rate else { return Ok(()) };
            let pace = Pace { total: None, ..pace };
            let mut meter = Meter::new(&pace, None);
            let (mut now, mut sum) = (0u64, 0u64);
            for (wait, bytes, _) in steps {
                now += wait;
                meter.wait_until(now);
                if meter.judge(rate).is_some() {
                    break;
                }
                let free = nanos(pace.grace) + nanos(pace.window);
                prop_assert!(now <= free.saturating_add(worth(sum, rate)).saturating_add(40));
                meter.pay(bytes, rate);
                sum = sum.saturating_add(bytes);
            }
        }
    }
}
