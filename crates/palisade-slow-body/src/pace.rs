//! The numbers.

use palisade_core::ConfigError;
use std::{fmt, time::Duration};

/// How fast a body must move while the other side is waited for.
///
/// The default is for everything that is not a conversation: at least something every 15 s, and
/// 500 bytes a second over any 10 s once 5 s have passed. Nobody who uploads anything at all is
/// slower than that: it is a tenth of what the oldest mobile networks carry.
///
/// All times are times of waiting: the clock of a body stands still while nobody asks it for
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub(crate) gap: Option<Duration>,
    pub(crate) rate: Option<u64>,
    pub(crate) window: Duration,
    pub(crate) grace: Duration,
    pub(crate) total: Option<Duration>,
}

/// Makes a [`Pace`] of other numbers. Nothing is checked before [`build`](Self::build).
#[derive(Clone, Copy, Debug)]
pub struct PaceBuilder {
    pace: Pace,
}

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const MAX_RATE: u64 = 1 << 30;

// === Pace ===

impl Pace {
    const DEFAULT: Self = Self {
        gap: Some(Duration::from_secs(15)),
        rate: Some(500),
        window: Duration::from_secs(10),
        grace: Duration::from_secs(5),
        total: None,
    };

    /// Other numbers, beginning with those of the default.
    ///
    /// ```
    /// # use {palisade_slow_body::Pace, std::time::Duration};
    /// let pace = Pace::builder().rate(16 * 1024).gap(Duration::from_secs(5)).build()?;
    /// let error = Pace::builder().rate(0).gap(Duration::ZERO).build().unwrap_err();
    /// assert_eq!(error.faults().len(), 2);
    /// # Ok::<_, palisade_slow_body::ConfigError>(())
    /// ```
    pub const fn builder() -> PaceBuilder {
        PaceBuilder {
            pace: Self::DEFAULT,
        }
    }

    /// No limit at all.
    pub const fn off() -> Self {
        Self {
            gap: None,
            rate: None,
            total: None,
            ..Self::DEFAULT
        }
    }

    /// Something every `gap`, however little: for those who speak when they have something to
    /// say. It does not stop a client that sends one byte in time, for ever.
    ///
    /// # Errors
    ///
    /// If `gap` is not within 1 ms..=24 h.
    pub fn gap_only(gap: Duration) -> Result<Self, ConfigError> {
        Self::builder().gap(gap).no_rate().build()
    }

    /// Something every 60 s, however little: what requests that say they are
    /// gRPC over HTTP/2 get unless told otherwise.
    pub const fn conversation() -> Self {
        Self {
            gap: Some(Duration::from_secs(60)),
            rate: None,
            ..Self::DEFAULT
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.gap.is_none() && self.rate.is_none() && self.total.is_none()
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// === PaceBuilder ===

impl PaceBuilder {
    /// The longest wait for the next byte, 1 ms to 24 h. Defaults to 15 s.
    pub const fn gap(mut self, gap: Duration) -> Self {
        self.pace.gap = Some(gap);
        self
    }

    /// No limit on a single wait, except what the rate implies. Defaults to 15 s.
    pub const fn no_gap(mut self) -> Self {
        self.pace.gap = None;
        self
    }

    /// The least bytes per second, 1 to 2^30. Defaults to 500.
    pub const fn rate(mut self, bytes_per_second: u64) -> Self {
        self.pace.rate = Some(bytes_per_second);
        self
    }

    /// No least rate. Defaults to 500 bytes a second.
    pub const fn no_rate(mut self) -> Self {
        self.pace.rate = None;
        self
    }

    /// For how long what came counts towards the rate, 1 ms to 1 h. Who sends more than is
    /// asked for is credited with no more than this, so that it is also the longest silence
    /// that the rate allows. Defaults to 10 s.
    pub const fn window(mut self, window: Duration) -> Self {
        self.pace.window = window;
        self
    }

    /// How long the rate does not count at the start, 0 to 1 h. Defaults to 5 s.
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.pace.grace = grace;
        self
    }

    /// The longest wait, in sum, for a body whose length is known: this plus what the length
    /// takes at the rate, if there is one. 1 ms to 24 h.
    ///
    /// The rate alone already implies the window and the grace in place of this, see
    /// [the rule](crate#the-rule): it is for bodies without a rate, and for those that should be
    /// here sooner. Defaults to none.
    pub const fn total(mut self, total: Duration) -> Self {
        self.pace.total = Some(total);
        self
    }

    /// The pace, if every number is in its range.
    ///
    /// # Errors
    ///
    /// Names every number that is not.
    pub fn build(self) -> Result<Pace, ConfigError> {
        let Pace {
            gap,
            rate,
            window,
            grace,
            total,
        } = self.pace;
        let mut error = ConfigError::new("this pace cannot be");
        let mut check = |fine, field, value: &dyn fmt::Debug, allowed| {
            error.check(fine, field, value, allowed);
        };
        if let Some(gap) = gap {
            check(
                (MILLISECOND..=DAY).contains(&gap),
                "gap",
                &gap,
                "1 ms to 24 h",
            );
        }
        if let Some(rate) = rate {
            let fine = (1..=MAX_RATE).contains(&rate);
            check(fine, "rate", &rate, "1 to 1073741824 bytes per second");
        }
        check(
            (MILLISECOND..=HOUR).contains(&window),
            "window",
            &window,
            "1 ms to 1 h",
        );
        check(grace <= HOUR, "grace", &grace, "0 to 1 h");
        if let Some(total) = total {
            check(
                (MILLISECOND..=DAY).contains(&total),
                "total",
                &total,
                "1 ms to 24 h",
            );
        }
        error.into_result().map(|()| self.pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_out_of_range_is_named() {
        let error = Pace::builder()
            .gap(Duration::ZERO)
            .rate(MAX_RATE + 1)
            .window(HOUR + MILLISECOND)
            .grace(Duration::MAX)
            .total(Duration::MAX)
            .build()
            .expect_err("all are wrong");
        let fields: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| fault.field.clone())
            .collect();
        assert_eq!(fields, ["gap", "rate", "window", "grace", "total"]);
        let text = Pace::gap_only(Duration::ZERO)
            .expect_err("no gap")
            .to_string();
        assert_eq!(
            text,
            "this pace cannot be:\n  gap is 0ns, allowed is 1 ms to 24 h"
        );
    }

    #[test]
    fn the_edges_of_the_ranges_are_in_them() {
        let least = Pace::builder().gap(MILLISECOND).rate(1).window(MILLISECOND);
        least
            .grace(Duration::ZERO)
            .total(MILLISECOND)
            .build()
            .expect("is a pace");
        let most = Pace::builder()
            .gap(DAY)
            .rate(MAX_RATE)
            .window(HOUR)
            .grace(HOUR)
            .total(DAY);
        most.build().expect("is a pace");
    }
}
